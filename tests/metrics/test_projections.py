"""s_n^dec for every n: sorted by definition, and counted within a bound of that."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.metrics.projections import (
    RELATIVE_ERROR,
    CountedProjections,
    SortedProjections,
    count_projections,
    sorted_entries,
)


def full_sort(sae, activations):
    """s_n^dec for every n, as the definition has it."""
    rows = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    flat = ((activations - sae.b_dec) @ rows.T).flatten()
    return flat.sort(descending=True).values[torch.arange(rows.shape[0]) * activations.shape[0]]


def test_worked_example(make_sae):
    # Rows of norm 2 and 5 count as unit rows; b_dec is taken off first.
    sae = make_sae(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), b_dec=torch.tensor([1.0, 0.0]))
    x = torch.tensor([[4.0, -1.0], [1.0, 7.0], [2.0, 0.5]])
    # Z = [[3, -1], [0, 7], [1, 0.5]], from the top 7, 3, 1, 0.5, 0, -1; B = 3.
    assert evaluate(sae, x).projections.tolist() == [7.0, 0.5]
    # A row of zeros projects to 0: Z = [[0, -1], [0, -2]].
    sae = make_sae(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    s = evaluate(sae, torch.tensor([[9.0, -1.0], [9.0, -2.0]])).projections
    assert s.tolist() == [0.0, -1.0]


@pytest.mark.parametrize("samples", [1, 7, 8192, 8193, 20_000])
def test_equals_a_full_sort(make_sae, samples):
    generator = torch.Generator().manual_seed(samples)
    sae = make_sae(
        torch.randn(11, 6, generator=generator), b_dec=torch.randn(6, generator=generator)
    )
    x = torch.randn(samples, 6, generator=generator)
    s = torch.from_numpy(evaluate(sae, x).projections)
    torch.testing.assert_close(s, full_sort(sae, x).detach())
    assert (s.diff() <= 0).all()


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(6, 4),
        torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]),
        -torch.arange(1.0, 13).reshape(3, 4),
    ],
    ids=["zeros", "ties", "all-negative"],
)
def test_equals_a_full_sort_on_awkward_values(make_sae, x):
    # Axis-aligned rows make every product exact, so that the values agree to the last bit.
    sae = make_sae(torch.eye(4)[[0, 1, 2, 3, 1]])
    assert evaluate(sae, x).projections.tolist() == full_sort(sae, x).tolist()


def test_decoder_norms_do_not_matter(make_sae):
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(5, 4, generator=generator)
    x = torch.randn(50, 4, generator=generator)
    scaled = W_dec * torch.tensor([0.1, 1, 3, 10, 100]).unsqueeze(1)
    plain, found = (evaluate(make_sae(rows), x).projections for rows in (W_dec, scaled))
    np.testing.assert_allclose(found, plain, rtol=1e-5)


def test_the_right_sae_falls_off_at_the_true_l0(make_sae):
    # With orthogonal features the projections are the features, so exactly the share that fires
    # is above zero: on average L0 of them per sample.
    generator = torch.Generator().manual_seed(1)
    fires = (torch.rand(2000, 10, generator=generator) < 0.35).float()
    l0 = fires.sum(1).mean().item()
    s = evaluate(make_sae(torch.eye(10)), fires).projections
    assert s.tolist() == [1.0 if n < l0 else 0.0 for n in range(10)]
    assert 3 < l0 < 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_located(make_sae, value):
    x = torch.ones(4, 5)
    x[2, 3] = x[3, 0] = value
    with pytest.raises(ValueError, match=r"2 value\(s\), the first at sample 2, dimension 3"):
        evaluate(make_sae(torch.eye(5)), x)


def test_finite_values_whose_sum_overflows_are_accepted(make_sae):
    x = torch.full((4, 2), 3e38)
    assert not torch.isfinite(x.sum())
    assert evaluate(make_sae(torch.eye(2)), x).projections[0] == pytest.approx(3e38)


@pytest.mark.parametrize("name", ["W_dec", "b_dec"])
def test_a_diverged_sae_is_nan_throughout(make_sae, name):
    sae = make_sae(torch.eye(3))
    getattr(sae, name).data.view(-1)[0] = math.nan
    assert np.isnan(evaluate(sae, torch.ones(4, 3)).projections).all()


def test_half_precision_weights_are_measured_in_float32(make_sae):
    generator = torch.Generator().manual_seed(2)
    W_dec = torch.randn(6, 5, generator=generator).bfloat16()
    x = torch.randn(300, 5, generator=generator)
    s = evaluate(make_sae(W_dec), x).projections
    assert s.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(s), full_sort(make_sae(W_dec.float()), x).detach())


def test_a_large_bias_does_not_cost_digits(make_sae):
    # The samples lie 1e4 from the origin and 1e-2 apart, as those of a language model may.
    generator = torch.Generator().manual_seed(3)
    W_dec, b_dec = torch.randn(4, 8, generator=generator), torch.full((8,), 1e4)
    x = b_dec + 0.01 * torch.randn(100, 8, generator=generator)
    measured = evaluate(make_sae(W_dec, b_dec=b_dec), x).projections
    exact = evaluate(make_sae(W_dec.double(), b_dec=b_dec.double()), x.double()).projections
    assert exact.dtype == np.float64
    np.testing.assert_allclose(measured, exact, rtol=1e-5)


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
    monkeypatch.setattr("sparse_but_wrong.metrics.projections._TILE_ELEMENTS", {"cpu": 5 * B})
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
    for kept in (CountedProjections(torch.ones(1, 1)), SortedProjections(torch.ones(1, 1), 6)):
        kept.add(x, torch.zeros(1))
        kept.end_batch()
        bars = kept.histogram(torch.tensor([-1.0, 0.0, 1.0, 3.0]))
        # −3 and 50 lie beyond the edges and are in the outermost bars.
        assert bars.tolist() == [2, 2, 2]
