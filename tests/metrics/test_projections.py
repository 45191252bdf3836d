from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sparse_but_wrong.metrics.projections import decoder_projection_curve


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
    curve = decoder_projection_curve(sae, x)
    assert curve.n == (0, 1)
    assert curve.values.tolist() == [7.0, 0.5]
    assert (curve.n_samples, curve.d_sae) == (3, 2)
    assert curve.at(1) == 0.5
    assert sae.W_dec.norm(dim=1).tolist() == [2.0, 5.0]


@pytest.mark.parametrize("samples", [1, 7, 8192, 8193, 20_000])
def test_equals_a_full_sort(make_sae, samples):
    generator = torch.Generator().manual_seed(samples)
    sae = make_sae(
        torch.randn(11, 6, generator=generator), b_dec=torch.randn(6, generator=generator)
    )
    x = torch.randn(samples, 6, generator=generator)
    curve = decoder_projection_curve(sae, x)
    torch.testing.assert_close(curve.values, full_sort(sae, x))
    assert (curve.values.diff() <= 0).all()


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
    assert torch.equal(decoder_projection_curve(sae, x).values, full_sort(sae, x))


def test_a_decoder_row_of_zeros_projects_to_zero(make_sae):
    sae = make_sae(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    curve = decoder_projection_curve(sae, torch.tensor([[9.0, -1.0], [9.0, -2.0]]))
    # Z = [[0, -1], [0, -2]].
    assert curve.values.tolist() == [0.0, -1.0]


def test_only_the_wanted_n_in_the_order_asked(make_sae):
    sae = make_sae(torch.eye(5))
    x = torch.arange(10.0).reshape(2, 5)
    curve = decoder_projection_curve(sae, x, n=[3, 0])
    assert curve.n == (3, 0)
    assert curve.values.tolist() == [3.0, 9.0]
    assert curve.at(0) == 9.0
    with pytest.raises(ValueError, match="n = 1 is not among them"):
        curve.at(1)


def test_decoder_norms_do_not_matter(make_sae):
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(5, 4, generator=generator)
    x = torch.randn(50, 4, generator=generator)
    scaled = W_dec * torch.tensor([0.1, 1, 3, 10, 100]).unsqueeze(1)
    torch.testing.assert_close(
        decoder_projection_curve(make_sae(W_dec), x).values,
        decoder_projection_curve(make_sae(scaled), x).values,
    )


def test_the_right_sae_falls_off_at_the_true_l0(make_sae):
    # With orthogonal features the projections are the features, so exactly the share that fires
    # is above zero: on average L0 of them per sample.
    generator = torch.Generator().manual_seed(1)
    fires = (torch.rand(2000, 10, generator=generator) < 0.35).float()
    l0 = fires.sum(1).mean().item()
    curve = decoder_projection_curve(make_sae(torch.eye(10)), fires)
    assert curve.values.tolist() == [1.0 if n < l0 else 0.0 for n in range(10)]
    assert 3 < l0 < 4


@pytest.mark.parametrize("n", [-1, 5, 6])
def test_n_out_of_range(make_sae, n):
    with pytest.raises(ValueError, match=rf"n = {n} is outside \[0, 5\)"):
        decoder_projection_curve(make_sae(torch.eye(5)), torch.ones(3, 5), n=[0, n])


def test_no_n(make_sae):
    with pytest.raises(ValueError, match="no n was asked for"):
        decoder_projection_curve(make_sae(torch.eye(5)), torch.ones(3, 5), n=[])


def test_another_width(make_sae):
    with pytest.raises(ValueError, match=r"shape \[samples, 5\].*shape \[3, 4\]"):
        decoder_projection_curve(make_sae(torch.eye(5)), torch.ones(3, 4))


def test_no_samples(make_sae):
    with pytest.raises(ValueError, match="no samples"):
        decoder_projection_curve(make_sae(torch.eye(5)), torch.ones(0, 5))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_located(make_sae, value):
    x = torch.ones(4, 5)
    x[2, 3] = x[3, 0] = value
    with pytest.raises(ValueError, match=r"2 value\(s\), the first at sample 2, dimension 3"):
        decoder_projection_curve(make_sae(torch.eye(5)), x)


def test_finite_values_whose_sum_overflows_are_accepted(make_sae):
    x = torch.full((4, 2), 3e38)
    assert not torch.isfinite(x.sum())
    curve = decoder_projection_curve(make_sae(torch.eye(2)), x)
    assert curve.at(0) == pytest.approx(3e38)


@pytest.mark.parametrize("name", ["W_dec", "b_dec"])
def test_a_diverged_sae_is_nan_throughout(make_sae, name):
    sae = make_sae(torch.eye(3))
    getattr(sae, name).data.view(-1)[0] = math.nan
    assert decoder_projection_curve(sae, torch.ones(4, 3)).values.isnan().all()


def test_half_precision_weights_are_measured_in_float32(make_sae):
    generator = torch.Generator().manual_seed(2)
    W_dec = torch.randn(6, 5, generator=generator).bfloat16()
    x = torch.randn(300, 5, generator=generator)
    curve = decoder_projection_curve(make_sae(W_dec), x)
    assert curve.values.dtype == torch.float32
    torch.testing.assert_close(curve.values, full_sort(make_sae(W_dec.float()), x))


def test_a_large_bias_does_not_cost_digits(make_sae):
    # The samples lie 1e4 from the origin and 1e-2 apart, as those of a language model may.
    generator = torch.Generator().manual_seed(3)
    W_dec, b_dec = torch.randn(4, 8, generator=generator), torch.full((8,), 1e4)
    x = b_dec + 0.01 * torch.randn(100, 8, generator=generator)
    measured = decoder_projection_curve(make_sae(W_dec, b_dec=b_dec), x)
    exact = decoder_projection_curve(make_sae(W_dec.double(), b_dec=b_dec.double()), x.double())
    assert exact.values.dtype == torch.float64
    np.testing.assert_allclose(measured.values, exact.values, rtol=1e-5)
