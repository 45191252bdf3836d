"""The same measurements at every scale that float32 holds, in the units of that scale."""

from __future__ import annotations

import math

import pytest
import torch

from sparse_but_wrong.metrics.projection_counts import RELATIVE_ERROR
from sparse_but_wrong.metrics.score import score_sae
from sparse_but_wrong.metrics.similarity import decoder_similarity, encoder_similarity
from sparse_but_wrong.metrics.stream import measure_stream

D, H, B = 6, 15, 400
SCALES = [1e20, 1e30, 1e-20, 1e-30]


def sae_and_samples(make_sae, scale):
    """An SAE and samples at a scale; latents of scale 1 in the decoder, so that L0 is the same."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(H, D, generator=g)
    sae = make_sae(
        rows * scale,
        W_enc=rows.T / scale,
        b_enc=0.3 * torch.randn(H, generator=g),
        b_dec=torch.randn(D, generator=g) * scale,
        threshold=torch.rand(H, generator=g),
    )
    return sae, (2 * torch.randn(B, D, generator=g) + 0.5) * scale


@pytest.mark.parametrize("scale", SCALES)
def test_a_score_is_the_same_at_every_scale(make_sae, scale):
    expected = score_sae(*sae_and_samples(make_sae, 1.0))
    found = score_sae(*sae_and_samples(make_sae, scale))
    assert found.sparsity.l0 == pytest.approx(expected.sparsity.l0, abs=0.02)
    assert found.reconstruction.mse / scale / scale == pytest.approx(
        expected.reconstruction.mse, rel=1e-3
    )
    assert found.reconstruction.variance_explained == pytest.approx(
        expected.reconstruction.variance_explained, abs=2e-3
    )
    assert found.reconstruction.shrinkage == pytest.approx(
        expected.reconstruction.shrinkage, rel=1e-3
    )
    assert (found.c_dec, found.c_enc) == pytest.approx((expected.c_dec, expected.c_enc), rel=1e-5)
    assert (found.projections.values.double() / scale).tolist() == pytest.approx(
        expected.projections.values.tolist(), rel=1e-3, abs=1e-5
    )


@pytest.mark.parametrize("scale", SCALES)
def test_a_stream_is_measured_the_same_at_every_scale(make_sae, scale):
    def measured(at):
        sae, x = sae_and_samples(make_sae, at)
        return measure_stream([sae], x.split(50))[0]

    expected, found = measured(1.0), measured(scale)
    assert found.l0.value == pytest.approx(expected.l0.value, abs=0.02)
    for square in ("value", "standard_error"):
        assert getattr(found.mse, square) / scale / scale == pytest.approx(
            getattr(expected.mse, square), rel=0.01
        )
        assert getattr(found.variance_explained, square) == pytest.approx(
            getattr(expected.variance_explained, square), abs=2e-3
        )
        # Both are counted, each to the bound.
    assert (found.projections.values.double() / scale).tolist() == pytest.approx(
        expected.projections.values.tolist(), rel=3 * RELATIVE_ERROR, abs=1e-5
    )
    assert (found.projections.standard_errors.double() / scale).tolist() == pytest.approx(
        expected.projections.standard_errors.tolist(), rel=0.1, abs=2e-3
    )
    assert (found.projections.edges.double() / scale).tolist() == pytest.approx(
        expected.projections.edges.tolist(), rel=0.01, abs=0.01
    )


def test_one_huge_sample_has_its_true_share_of_the_error(make_sae):
    sae, x = sae_and_samples(make_sae, 1.0)
    x[17] *= 1e25
    sae.W_enc.data.zero_()
    sae.b_enc.data.zero_()
    (streamed,) = measure_stream([sae], x.split(100))
    scored = score_sae(sae, x).reconstruction
    expected = (x - sae.b_dec).double().square().sum(1).mean().item()
    assert scored.mse == pytest.approx(expected, rel=1e-5)
    assert streamed.mse.value == pytest.approx(expected, rel=1e-5)
    assert streamed.variance_explained.value == pytest.approx(scored.variance_explained, abs=1e-3)


@pytest.mark.parametrize("weight", [math.inf, 3e38])
def test_without_a_finite_error_there_is_no_variance_explained(make_sae, weight):
    sae, x = sae_and_samples(make_sae, 1.0)
    sae.W_dec.data.fill_(weight)
    (streamed,) = measure_stream([sae], x.split(100))
    scored = score_sae(sae, x).reconstruction
    for mse, explained in (
        (scored.mse, scored.variance_explained),
        (streamed.mse.value, streamed.variance_explained.value),
    ):
        assert not math.isfinite(mse)
        assert math.isnan(explained)


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_single_rows_of_another_scale_have_their_direction(make_sae, scale):
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(H, D, generator=g)
    expected = decoder_similarity(make_sae(rows)), encoder_similarity(make_sae(rows))
    rows[3] *= scale
    sae = make_sae(rows)
    assert (decoder_similarity(sae), encoder_similarity(sae)) == pytest.approx(expected, rel=1e-5)
