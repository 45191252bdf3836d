"""SAEs that normalise each sample themselves, against the same functions written without that."""

from __future__ import annotations

import math

import pytest
import torch

from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.metrics.projections import RELATIVE_ERROR, nth_decoder_projection
from sparse_but_wrong.metrics.reconstruction import reconstruction_at_k
from tests.metrics.evaluated import make_sae

D, H, B = 16, 32, 600


def weights(generator):
    rows = torch.randn(H, D, generator=generator)
    return {
        "W_dec": rows * torch.rand(H, 1, generator=generator).add(0.5),
        "W_enc": rows.T / 4,
        "b_enc": 0.2 * torch.randn(H, generator=generator),
        "b_dec": torch.randn(D, generator=generator),
        "threshold": torch.rand(H, generator=generator),
    }


def rescaled_and_folded():
    """One function twice on samples of one norm: 3.7 times that at which the SAE works."""
    generator = torch.Generator().manual_seed(0)
    w = weights(generator)
    factor = 1 / 3.7
    scaled = {"W_enc": w["W_enc"] * factor} | {k: w[k] / factor for k in ("W_dec", "b_dec")}
    x = torch.nn.functional.normalize(torch.randn(B, D, generator=generator) + 0.3, dim=1)
    inside = make_sae(normalize="constant_norm_rescale", **w)
    return inside, make_sae(**w | scaled), x * math.sqrt(D) / factor


def layer_norm_and_folded():
    """One function twice on samples of one mean (5) and one standard deviation (2)."""
    generator = torch.Generator().manual_seed(1)
    w = weights(generator)
    mean, std, eps = 5.0, 2.0, 1e-5
    bias = w["b_dec"] * std + mean
    # With the same pre-activations: ((x − mean)/(std + eps) − b_dec)·W_enc + b_enc.
    encoder = w["W_enc"] / (std + eps)
    b_enc = w["b_enc"] + (bias - mean) @ encoder - w["b_dec"] @ w["W_enc"]
    folded = {"W_enc": encoder, "W_dec": w["W_dec"] * std, "b_dec": bias, "b_enc": b_enc}
    x = torch.randn(B, D, generator=generator)
    x = x - x.mean(1, keepdim=True)
    x = x / x.std(1, keepdim=True) * std + mean
    return make_sae(normalize="layer_norm", **w), make_sae(**w | folded), x


def of_any_norm():
    """One function twice on all samples: without biases, what is scaled comes back scaled."""
    generator = torch.Generator().manual_seed(2)
    w = {name: value for name, value in weights(generator).items() if name.startswith("W_")}
    norms = torch.rand(B, 1, generator=generator).add(0.1) * 50
    x = torch.randn(B, D, generator=generator) * norms
    return make_sae(normalize="constant_norm_rescale", **w), make_sae(**w), x


WRITTEN = [rescaled_and_folded, layer_norm_and_folded, of_any_norm]


@pytest.mark.parametrize("as_stream", [True, False])
@pytest.mark.parametrize("written", WRITTEN)
def test_one_function_written_twice_has_one_evaluation(written, as_stream):
    inside, folded, x = written()
    before = set(vars(inside))
    a, b = evaluate([inside, folded], x.split(100) if as_stream else x)
    assert set(vars(inside)) == before
    assert a.l0 == pytest.approx(b.l0, abs=0.01)
    assert (a.mse, a.variance_explained) == pytest.approx((b.mse, b.variance_explained), rel=1e-3)
    assert (a.c_dec, a.c_enc) == pytest.approx((b.c_dec, b.c_enc), rel=1e-4)
    rel = 2 * RELATIVE_ERROR if as_stream else 1e-4
    exact = evaluate(folded, x).projections
    assert a.projections.tolist() == pytest.approx(exact.tolist(), rel=rel, abs=1e-4)
    assert a.projection_standard_errors.tolist() == pytest.approx(
        b.projection_standard_errors.tolist(), rel=0.05, abs=1e-3, nan_ok=not as_stream
    )
    assert abs(a.histogram_counts - b.histogram_counts).sum() < 0.02 * B * H


# `of_any_norm` has other latents inside than outside, by a factor for each sample: what depends on
# that factor, the norms of rows and the order of latents over samples, differs as it should.
@pytest.mark.parametrize("written", WRITTEN[:2])
def test_with_the_same_latents_single_projections_and_other_ks_are_the_same(written):
    inside, folded, x = written()
    for n in (0, 3, 8, 16, 31):
        assert float(nth_decoder_projection(x, inside, n)) == pytest.approx(
            float(nth_decoder_projection(x, folded, n)), rel=1e-4, abs=1e-3
        )
    a, b = (reconstruction_at_k(sae, x, 4).mse for sae in (inside, folded))
    assert a == pytest.approx(b, rel=2e-3)


@pytest.mark.parametrize(
    "measure",
    [
        evaluate,
        lambda sae, x: evaluate([sae], x.split(30)),
        lambda sae, x: reconstruction_at_k(sae, x, 3),
        lambda sae, x: nth_decoder_projection(x, sae, 3),
    ],
)
def test_what_cannot_be_normalised_is_named(measure):
    inside, folded, x = rescaled_and_folded()
    x[37] = 0
    with pytest.raises(ValueError, match=r"sample 37 .*constant_norm_rescale"):
        measure(inside, x)
    folded.turn_on_forward_pass_hook_z_reshaping()
    with pytest.raises(ValueError, match="turn_off_forward_pass_hook_z_reshaping"):
        measure(folded, x)


def test_a_sample_of_zeros_has_a_layer_norm():
    inside, _, x = layer_norm_and_folded()
    x[37] = 0
    assert math.isfinite(evaluate(inside, x).mse)


@pytest.mark.parametrize("scale", [1e20, 1e-30])
def test_what_overflows_in_the_normalisation_is_refused(scale):
    inside, _, x = rescaled_and_folded()
    with pytest.raises(ValueError, match="constant_norm_rescale"):
        evaluate(inside, x * scale)
