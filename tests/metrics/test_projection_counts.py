from __future__ import annotations

import math

import pytest
import torch

from sparse_but_wrong.metrics.projection_counts import (
    RELATIVE_ERROR,
    count_projections,
    histogram,
    sorted_entries,
)

D, H, B = 7, 23, 300


def projected(x, directions, b_dec):
    return ((x - b_dec) @ directions.T).flatten().sort(descending=True).values


def counted(x, directions, b_dec):
    counts = count_projections(x, directions, b_dec)
    return sorted_entries(counts, torch.arange(len(x) * len(directions)))


def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(H, D, generator=generator), dim=1)
    return torch.randn(B, D, generator=generator), directions, generator


def assert_within_the_bound(found, sorted_values):
    exact = sorted_values.double()
    smallest_normal = torch.finfo(torch.float32).tiny
    # A ulp more: products of another shape may be added up in another order.
    bound = (RELATIVE_ERROR + 1e-6) * exact.abs() + smallest_normal
    assert ((found - exact).abs() <= bound).all()


@pytest.mark.parametrize(
    "case", ["normal", "huge-spread", "all-negative", "far-from-zero", "tiny", "one-outlier"]
)
def test_every_rank_is_within_the_bound_of_a_full_sort(case):
    x, directions, generator = draw(3)
    b_dec = torch.randn(D, generator=generator)
    if case == "huge-spread":
        x = x * 10 ** (60 * torch.rand(B, 1, generator=generator) - 30)
        b_dec = torch.zeros(D)
    elif case == "all-negative":
        x, directions, b_dec = -x.abs(), directions.abs(), torch.zeros(D)
    elif case == "far-from-zero":
        x, directions = x + 1e4, directions.abs()
    elif case == "tiny":
        x, b_dec = x * 1e-36, torch.zeros(D)
    elif case == "one-outlier":
        x[17] *= 1e12
    exact = projected(x, directions, b_dec)
    found = counted(x, directions, b_dec)
    assert_within_the_bound(found, exact)
    # The case is what it says: no test of one sign only, or of a spread that is not there.
    if case == "all-negative":
        assert exact.max() < 0
    if case == "huge-spread":
        assert exact.max() > 1e20 * exact.abs().median() > 1e-20


def test_zeros_and_ties_come_out_exactly():
    # Axis-aligned rows make every product exact; powers of two with few bits lie on bin edges,
    # and the middle of their bin is half a bin above them.
    x = torch.tensor([[0.0, 2.0], [0.0, 2.0], [0.0, -4.0], [0.0, 0.0]])
    found = counted(x, torch.eye(2), torch.zeros(2))
    half = RELATIVE_ERROR
    expected = [2 * (1 + half)] * 2 + [0.0] * 5 + [-4 * (1 + half)]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-6, atol=0)
    assert found[2:7].tolist() == [0.0] * 5


def test_counts_add_up_over_chunks_and_tiles(monkeypatch):
    x, directions, generator = draw(4)
    b_dec = torch.randn(D, generator=generator)
    whole = count_projections(x, directions, b_dec)
    assert int(whole.sum()) == B * H
    by_chunk = torch.stack([count_projections(part, directions, b_dec) for part in x.split(64)])
    monkeypatch.setattr("sparse_but_wrong.metrics.projection_counts._TILE_ELEMENTS", {"cpu": 5 * B})
    tiled = count_projections(x, directions, b_dec)
    # Products of other shapes may round otherwise, and what lies at an edge change bins; what is
    # found stays within the bound.
    exact = projected(x, directions, b_dec)
    for other in (by_chunk.sum(0), tiled):
        assert int(other.sum()) == B * H
        assert_within_the_bound(sorted_entries(other, torch.arange(B * H)), exact)


def test_the_bias_is_taken_off_before_the_product():
    # x and the bias are near 1e4, their difference near 1: taken off the products, it would be
    # known to 1e-3 only.
    x, directions, _ = draw(5)
    b_dec = torch.full((D,), 1e4)
    exact = ((x + 1e4).double() - 1e4) @ directions.double().T
    found = counted(x + 1e4, directions, b_dec)
    assert_within_the_bound(found, exact.flatten().sort(descending=True).values)


def test_histogram_counts_what_lies_between_edges():
    x = torch.tensor([[-3.0], [-0.5], [0.25], [0.26], [2.0], [50.0]])
    counts = count_projections(x, torch.ones(1, 1), torch.zeros(1))
    bars = histogram(counts, torch.tensor([-1.0, 0.0, 1.0, 3.0]))
    # −3 and 50 lie beyond the edges and are in the outermost bars.
    assert bars.tolist() == [2, 2, 2]


def test_half_precision_samples_are_counted_in_float32():
    x, directions, _ = draw(6)
    x = x.bfloat16()
    found = counted(x, directions, torch.zeros(D))
    assert_within_the_bound(found, projected(x.float(), directions, torch.zeros(D)))


def test_the_bound_is_what_it_says():
    assert math.isclose(RELATIVE_ERROR, 1 / 2048)
