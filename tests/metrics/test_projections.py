"""s_n^dec for every n: sorted by definition, and counted within a bound of that."""

from __future__ import annotations

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
from tests.metrics.evaluated import make_sae


def full_sort(sae, activations):
    """s_n^dec for every n, as the definition has it."""
    rows = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    flat = ((activations - sae.b_dec) @ rows.T).flatten()
    return flat.sort(descending=True).values[torch.arange(len(rows)) * len(activations)]


def s(sae, x):
    return torch.from_numpy(evaluate(sae, x).projections)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_worked_example():
    # Rows of norm 2 and 5 count as unit rows; b_dec is taken off first.
    sae = make_sae(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), b_dec=torch.tensor([1.0, 0.0]))
    x = torch.tensor([[4.0, -1.0], [1.0, 7.0], [2.0, 0.5]])
    # Z = [[3, -1], [0, 7], [1, 0.5]], from the top 7, 3, 1, 0.5, 0, -1; B = 3.
    assert s(sae, x).tolist() == [7.0, 0.5]
    # A row of zeros projects to 0: Z = [[0, -1], [0, -2]].
    sae = make_sae(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    assert s(sae, torch.tensor([[9.0, -1.0], [9.0, -2.0]])).tolist() == [0.0, -1.0]


@pytest.mark.parametrize("samples", [1, 7, 8192, 8193, 20_000])
def test_equals_a_full_sort(samples):
    sae = make_sae(draw(11, 6), b_dec=draw(6, seed=1))
    x = draw(samples, 6, seed=samples)
    found = s(sae, x)
    torch.testing.assert_close(found, full_sort(sae, x).detach())
    assert (found.diff() <= 0).all()


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(6, 4),
        torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]),
        -torch.arange(1.0, 13).reshape(3, 4),
    ],
    ids=["zeros", "ties", "all-negative"],
)
def test_equals_a_full_sort_on_awkward_values(x):
    # Axis-aligned rows make every product exact, so that the values agree to the last bit.
    sae = make_sae(torch.eye(4)[[0, 1, 2, 3, 1]])
    assert s(sae, x).tolist() == full_sort(sae, x).tolist()


def test_finite_values_whose_sum_overflows_are_accepted():
    x = torch.full((4, 2), 3e38)
    assert not torch.isfinite(x.sum())
    assert s(make_sae(torch.eye(2)), x)[0] == pytest.approx(3e38)


def test_half_precision_weights_are_measured_in_float32():
    W_dec, x = draw(6, 5).bfloat16(), draw(300, 5, seed=1)
    torch.testing.assert_close(
        s(make_sae(W_dec), x), full_sort(make_sae(W_dec.float()), x).detach()
    )


def test_a_large_bias_does_not_cost_digits():
    # The samples lie 1e4 from the origin and 1e-2 apart, as those of a language model may.
    W_dec, b_dec = draw(4, 8), torch.full((8,), 1e4)
    x = b_dec + 0.01 * draw(100, 8, seed=1)
    exact = s(make_sae(W_dec.double(), b_dec=b_dec.double()), x.double())
    assert exact.dtype == torch.float64
    found = s(make_sae(W_dec, b_dec=b_dec), x)
    np.testing.assert_allclose(found, exact, rtol=1e-5)


D, H, B = 7, 23, 300
X, ROWS, BIAS = (
    draw(B, D),
    torch.nn.functional.normalize(draw(H, D, seed=1), dim=1),
    draw(D, seed=2),
)
NOTHING = torch.zeros(D)


def projected(x, directions, b_dec):
    return ((x - b_dec) @ directions.T).flatten().sort(descending=True).values


def assert_within_the_bound(counts, sorted_values):
    found, exact = sorted_entries(counts, torch.arange(B * H)), sorted_values.double()
    # A ulp more: products of another shape may be added up in another order.
    bound = (RELATIVE_ERROR + 1e-6) * exact.abs() + torch.finfo(torch.float32).tiny
    assert ((found - exact).abs() <= bound).all()


@pytest.mark.parametrize(
    ("x", "rows", "b_dec"),
    [
        (X, ROWS, BIAS),
        (X * 10 ** torch.linspace(-30, 30, B)[:, None], ROWS, NOTHING),  # of a huge spread
        (-X.abs(), ROWS.abs(), NOTHING),  # all negative
        (X + 1e4, ROWS.abs(), BIAS),  # far from zero
        (X + 1e4, ROWS, torch.full((D,), 1e4)),  # off the products, the bias would leave 1e-3
        (X * 1e-36, ROWS, NOTHING),
        (torch.cat([X[1:], 1e12 * X[:1]]), ROWS, BIAS),  # one outlier
    ],
)
def test_every_rank_is_within_the_bound_of_a_full_sort(x, rows, b_dec):
    assert_within_the_bound(count_projections(x, rows, b_dec), projected(x, rows, b_dec))


def test_zeros_and_ties_come_out_exactly():
    # Axis-aligned rows make every product exact; powers of two with few bits lie on bin edges,
    # and the middle of their bin is half a bin above them.
    x = torch.tensor([[0.0, 2.0], [0.0, 2.0], [0.0, -4.0], [0.0, 0.0]])
    found = sorted_entries(count_projections(x, torch.eye(2), torch.zeros(2)), torch.arange(8))
    half = RELATIVE_ERROR
    expected = [2 * (1 + half)] * 2 + [0.0] * 5 + [-4 * (1 + half)]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-6, atol=0)
    assert found[2:7].tolist() == [0.0] * 5


def test_counts_add_up_over_chunks_and_tiles(monkeypatch):
    by_chunk = [count_projections(part, ROWS, BIAS) for part in X.split(64)]
    monkeypatch.setattr("sparse_but_wrong.metrics.projections._TILE_ELEMENTS", {"cpu": 5 * B})
    # Products of other shapes may round otherwise, and what lies at an edge change bins; what is
    # found stays within the bound.
    for counts in (torch.stack(by_chunk).sum(0), count_projections(X, ROWS, BIAS)):
        assert int(counts.sum()) == B * H
        assert_within_the_bound(counts, projected(X, ROWS, BIAS))


def test_histogram_counts_what_lies_between_edges():
    x = torch.tensor([[-3.0], [-0.5], [0.25], [0.26], [2.0], [50.0]])
    for kept in (CountedProjections(torch.ones(1, 1)), SortedProjections(torch.ones(1, 1), 6)):
        kept.add(x, torch.zeros(1))
        kept.end_batch()
        bars = kept.histogram(torch.tensor([-1.0, 0.0, 1.0, 3.0]))
        # −3 and 50 lie beyond the edges and are in the outermost bars.
        assert bars.tolist() == [2, 2, 2]
