"""SAEs that normalise each sample themselves, against the same functions written without that."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.metrics.projections import RELATIVE_ERROR, nth_decoder_projection
from sparse_but_wrong.metrics.reconstruction import reconstruction_at_k

D, H, B = 16, 32, 600


def jumprelu(normalize: Any = "none", **weights: torch.Tensor) -> Any:
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=H, normalize_activations=normalize))
    for name, value in weights.items():
        getattr(sae, name).data.copy_(value)
    return sae


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
    inside = jumprelu("constant_norm_rescale", **w)
    folded = jumprelu(
        **{
            **w,
            "W_enc": w["W_enc"] * factor,
            "W_dec": w["W_dec"] / factor,
            "b_dec": w["b_dec"] / factor,
        }
    )
    x = torch.nn.functional.normalize(torch.randn(B, D, generator=generator) + 0.3, dim=1)
    return inside, folded, x * math.sqrt(D) / factor


def layer_norm_and_folded():
    """One function twice on samples of one mean (5) and one standard deviation (2)."""
    generator = torch.Generator().manual_seed(1)
    w = weights(generator)
    mean, std, eps = 5.0, 2.0, 1e-5
    inside = jumprelu("layer_norm", **w)
    bias = w["b_dec"] * std + mean
    # With the same pre-activations: ((x − mean)/(std + eps) − b_dec)·W_enc + b_enc.
    encoder = w["W_enc"] / (std + eps)
    b_enc = w["b_enc"] + (bias - mean) @ encoder - w["b_dec"] @ w["W_enc"]
    folded = jumprelu(
        **{**w, "W_enc": encoder, "W_dec": w["W_dec"] * std, "b_dec": bias, "b_enc": b_enc}
    )
    x = torch.randn(B, D, generator=generator)
    x = x - x.mean(1, keepdim=True)
    return inside, folded, x / x.std(1, keepdim=True) * std + mean


def of_any_norm():
    """One function twice on all samples: without biases, what is scaled comes back scaled."""
    generator = torch.Generator().manual_seed(2)
    w = {name: value for name, value in weights(generator).items() if name.startswith("W_")}
    norms = torch.rand(B, 1, generator=generator).add(0.1) * 50
    x = torch.randn(B, D, generator=generator) * norms
    return jumprelu("constant_norm_rescale", **w), jumprelu(**w), x


@pytest.mark.parametrize("as_stream", [True, False])
@pytest.mark.parametrize(
    "written", [rescaled_and_folded, layer_norm_and_folded, of_any_norm], ids=lambda f: f.__name__
)
def test_one_function_written_twice_has_one_evaluation(written, as_stream):
    inside, folded, x = written()
    a, b = evaluate([inside, folded], x.split(100) if as_stream else x, exact_below=2**30)
    assert a.l0 == pytest.approx(b.l0, abs=0.01)
    assert a.mse == pytest.approx(b.mse, rel=1e-3)
    assert a.variance_explained == pytest.approx(b.variance_explained, rel=1e-3)
    assert (a.c_dec, a.c_enc) == pytest.approx((b.c_dec, b.c_enc), rel=1e-4)
    rel = 2 * RELATIVE_ERROR if as_stream else 1e-4
    exact = evaluate(folded, x).projections
    assert a.projections.tolist() == pytest.approx(exact.tolist(), rel=rel, abs=1e-4)
    if as_stream:
        assert a.projection_standard_errors.tolist() == pytest.approx(
            b.projection_standard_errors.tolist(), rel=0.05, abs=1e-3
        )
    assert abs(a.histogram_counts - b.histogram_counts).sum() < 0.02 * B * H


# `of_any_norm` has other latents inside than outside, by a factor for each sample: what depends on
# that factor, the norms of rows and the order of latents over samples, differs as it should.
@pytest.mark.parametrize(
    "written", [rescaled_and_folded, layer_norm_and_folded], ids=lambda f: f.__name__
)
class TestWithTheSameLatents:
    def test_has_one_nth_projection_with_the_norms_that_rows_have(self, written):
        inside, folded, x = written()
        for n in (0, 3, 8, 16, 31):
            assert float(nth_decoder_projection(x, inside, n)) == pytest.approx(
                float(nth_decoder_projection(x, folded, n)), rel=1e-4, abs=1e-3
            )

    def test_reconstructs_one_way_at_another_k(self, written):
        inside, folded, x = written()
        assert reconstruction_at_k(inside, x, 4).mse == pytest.approx(
            reconstruction_at_k(folded, x, 4).mse, rel=2e-3
        )


MEASURES = [
    evaluate,
    lambda sae, x: evaluate([sae], [x]),
    lambda sae, x: reconstruction_at_k(sae, x, 3),
    lambda sae, x: nth_decoder_projection(x, sae, 3),
]


@pytest.mark.parametrize("measure", MEASURES)
def test_a_sample_that_cannot_be_brought_to_a_norm_is_named(measure):
    inside, _, x = rescaled_and_folded()
    x[37] = 0
    with pytest.raises(ValueError, match=r"sample 37 .*constant_norm_rescale"):
        measure(inside, x)


def test_a_sample_of_zeros_has_a_layer_norm():
    inside, _, x = layer_norm_and_folded()
    x[37] = 0
    assert math.isfinite(evaluate(inside, x).mse)


@pytest.mark.parametrize("scale", [1e20, 1e-30])
def test_what_overflows_in_the_normalisation_is_refused(scale):
    inside, _, x = rescaled_and_folded()
    with pytest.raises(ValueError, match="constant_norm_rescale"):
        evaluate(inside, x * scale)


@pytest.mark.parametrize("measure", MEASURES)
def test_an_sae_that_reads_head_by_head_is_refused_by_name(measure):
    sae = jumprelu()
    sae.turn_on_forward_pass_hook_z_reshaping()
    with pytest.raises(ValueError, match="turn_off_forward_pass_hook_z_reshaping"):
        measure(sae, torch.randn(8, D))


def test_the_sae_is_left_as_it_is():
    inside, _, x = rescaled_and_folded()
    before = set(vars(inside))
    evaluate(inside, x)
    evaluate([inside], [x])
    assert set(vars(inside)) == before
