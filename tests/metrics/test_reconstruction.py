"""Reconstructions and active latents by hand, and SAEs held to a k against sae_lens' BatchTopK."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sae_lens
import torch
from sae_lens.saes.abstopk_sae import AbsTopKSAEConfig
from sae_lens.saes.sae import TrainStepInput

from sparse_but_wrong.metrics import samples as samples_module
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.metrics.reconstruction import reconstruction_at_k
from sparse_but_wrong.metrics.samples import BatchMoments
from tests.metrics.evaluated import make_sae

EYE2, EYE3 = torch.eye(2), torch.eye(3)
NAN = math.nan


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("sae", "x", "expected"),
    [
        # The SAE sees x_0 only, and halves it: (2, 0), (0, 0), (4, 0), of squared errors 4, 9, 52.
        # The mean is (4, 3), squared distances from it 9, 16, 25.
        (
            make_sae(torch.tensor([[0.5, 0.0]]), W_enc=torch.tensor([[1.0], [0.0]])),
            [[4.0, 0.0], [0.0, 3.0], [8.0, 6.0]],
            (65 / 3, 1 - 65 / 50, (2 / 4 + 0 / 3 + 4 / 10) / 3),
        ),
        # The bias makes something of nothing, whose norm ratio would be infinite, and is left out.
        # x − b_dec = (4, 0), so the reconstruction is (2, 1).
        (
            make_sae(0.5 * EYE2, W_enc=EYE2, b_dec=torch.tensor([0.0, 1.0])),
            [[0.0, 0.0], [4.0, 1.0], [0.0, 0.0]],
            (6 / 3, 1 - 6 / (2 * 16 / 3 + 2 / 3), math.sqrt(5 / 17)),
        ),
        (make_sae(EYE2), [[0.0, 0.0]] * 5, (0.0, 1.0, NAN)),
        (make_sae(EYE2), [[1.0, 2.0]], (0.0, 1.0, 1.0)),
        # Thirds and sevenths are not exact in binary, so the computed mean is off by rounding.
        (make_sae(EYE2), [[1 / 3, 100 / 7]] * 10_001, (0.0, 1.0, 1.0)),
        (make_sae(0.5 * EYE2, W_enc=EYE2), [[3.0, 4.0]] * 10_001, (25 / 4, 0.0, 0.5)),
        (make_sae(EYE2, b_dec=torch.tensor([NAN, 0.0])), [[1.0, 2.0], [3.0, 1.0]], (NAN,) * 3),
        (make_sae(EYE2, b_dec=torch.tensor([NAN, 0.0])), [[1.0, 1.0]] * 2, (NAN,) * 3),
        (make_sae(torch.tensor([[1.0, NAN], [0.0, 1.0]]), W_enc=EYE2), [[1.0, 2.0]], (NAN,) * 3),
    ],
)
def test_worked_examples(sae, x, expected):
    found = evaluate(sae, torch.tensor(x))
    scores = (found.mse, found.variance_explained, found.shrinkage)
    assert scores == pytest.approx(expected, nan_ok=True)
    assert np.isnan(found.projections).all() == math.isnan(found.mse)


def test_without_variance_there_is_no_standard_error_of_what_is_explained():
    found = evaluate(make_sae(EYE3), [torch.ones(4, 3), torch.ones(4, 3)])
    assert (found.mse_standard_error, found.variance_explained) == (0, 1)
    assert math.isnan(found.variance_explained_standard_error)


X = draw(20_000, 3)
TENTHS = torch.full((3,), 0.1)


@pytest.mark.parametrize("as_stream", [True, False])
@pytest.mark.parametrize(
    ("x", "b_dec"),
    [
        # Spread 1 around 1000: a one-pass sum of squares in float32 would lose most of it.
        (X + 1000, torch.full((3,), 1000.0)),
        # The first chunk, whose mean serves as origin, is far from the mean of all.
        (X[X.norm(dim=1).argsort()], TENTHS),
        (X[X[:, 0].argsort()], TENTHS),
        # One sample is huge.
        (torch.cat([X[:400], 1e25 * X[400:401]]), TENTHS),
    ],
)
def test_numbers_are_those_of_double_precision(x, b_dec, as_stream):
    found = evaluate(make_sae(torch.zeros(1, 3), b_dec=b_dec), x.split(5000) if as_stream else x)
    error = (x - b_dec).double().square().sum(1).mean().item()
    explained = 1 - error / x.double().var(0, correction=0).sum().item()
    assert found.mse == pytest.approx(error, rel=1e-6)
    assert found.variance_explained == pytest.approx(explained, abs=1e-6)
    ratios = b_dec.norm().item() / x.double().norm(dim=1)
    assert found.shrinkage == pytest.approx(ratios.mean().item(), rel=1e-5)


@pytest.mark.parametrize("weight", [math.inf, 3e38])
def test_without_a_finite_error_there_is_no_variance_explained(weight):
    sae = make_sae(torch.full((3, 3), weight), W_enc=EYE3)
    for x in (10 * X.abs(), [10 * X.abs(), X.abs()]):
        found = evaluate(sae, x)
        assert not math.isfinite(found.mse)
        assert math.isnan(found.variance_explained)


def test_mse_is_the_loss_sae_lens_trains():
    sae = sae_lens.JumpReLUTrainingSAE(sae_lens.JumpReLUTrainingSAEConfig(d_in=6, d_sae=4))
    for i, weights in enumerate((sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec)):
        weights.data.copy_(draw(*weights.shape, seed=i))
    x = draw(128, 6, seed=9)
    step = sae.training_forward_pass(TrainStepInput(x, {"l0": 0.0}, None, 0, False))
    assert evaluate(sae, x).mse == pytest.approx(step.losses["mse_loss"].item(), rel=1e-5)


def test_a_transcoder_is_refused():
    transcoder = sae_lens.Transcoder(
        sae_lens.TranscoderConfig(d_in=3, d_sae=4, d_out=2, apply_b_dec_to_input=False)
    )
    with pytest.raises(ValueError, match="a transcoder is not"):
        evaluate(transcoder, torch.ones(2, 3))


def abs_topk():
    """Its latents are active when negative, too."""
    sae = sae_lens.AbsTopKSAE(AbsTopKSAEConfig(d_in=3, d_sae=3, k=1))
    sae.W_enc.data.copy_(EYE3)
    return sae


def sparse_topk():
    """Its latents come as a sparse tensor."""
    sae = sae_lens.TopKTrainingSAE(
        sae_lens.TopKTrainingSAEConfig(d_in=3, d_sae=3, k=2, use_sparse_activations=True)
    )
    sae.W_enc.data.copy_(EYE3)
    assert sae.encode(torch.ones(1, 3)).is_sparse
    return sae


# torch says so once, when sae_lens makes the first sparse tensor.
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize(
    ("make", "x", "l0", "densities", "n_dead"),
    [
        # Active: {0, 1}, {1} (a value at its threshold is off), {}, {0, 1}; nothing reaches 99.
        (
            lambda: make_sae(EYE3, threshold=torch.tensor([1.0, 1.0, 99.0])),
            [[2.0, 2.0, 5.0], [1.0, 3.0, 5.0], [0.0, -9.0, 5.0], [1.5, 1.5, 5.0]],
            *(5 / 4, [0.5, 0.75, 0.0], 1),
        ),
        (abs_topk, [[-5.0, 1.0, 2.0], [0.0, 4.0, 1.0]], 1, [0.5, 0.5, 0.0], 1),
        (sparse_topk, [[3.0, 2.0, 1.0], [3.0, 1.0, 2.0]], 2, [1.0, 0.5, 0.5], 0),
        # A latent that diverged is neither dead nor measurable.
        (
            lambda: make_sae(EYE3, b_enc=torch.tensor([NAN, 0.0, 0.0])),
            *([[1.0, 1.0, -1.0]], NAN, [NAN, 1.0, 0.0], 1),
        ),
    ],
)
def test_active_latents_of_worked_examples(make, x, l0, densities, n_dead):
    found = evaluate(make(), torch.tensor(x), as_trained=True)
    assert found.l0 == pytest.approx(l0, nan_ok=True)
    assert np.array_equal(found.densities, np.array(densities, "f4"), equal_nan=True)
    assert found.dead_latents == n_dead


# Held to a k. Latents along the axes: pre-activations are the samples themselves.
SAMPLES = torch.tensor([[5.0, 4.0, 0.0], [1.0, 0.0, 0.0], [3.0, 2.0, -6.0]])


@pytest.mark.parametrize(
    ("samples", "k", "lost"),
    [
        # int(k · 3) of 5, 4, 3, 2, 1 are kept; −6 is never active.
        (SAMPLES, 1 / 3, [16, 1, 9 + 4 + 36]),
        (SAMPLES, 1.0, [0, 1, 4 + 36]),
        (SAMPLES, 1.5, [0, 1, 36]),  # int(4.5) = 4
        (SAMPLES, 5 / 3, [0, 0, 36]),
        (SAMPLES, 3.0, [0, 0, 36]),  # more places than positive values
        (-SAMPLES.abs(), 1, SAMPLES.square().sum(1).tolist()),
        # The smaller one is lost, in double precision.
        (torch.tensor([[1.0, 1.0 + 1e-12, 0.0]]).double(), 1, [1.0]),
        # Of equal values exactly as many as there are places.
        *((torch.ones(4, 3), n / 4, [12 - n, 0, 0, 0]) for n in range(1, 13)),
    ],
)
@pytest.mark.parametrize("chunk", [1, 8192])
def test_the_largest_over_all_samples_are_kept(samples, k, lost, chunk, monkeypatch):
    monkeypatch.setattr(samples_module, "_MAX_CHUNK_SAMPLES", chunk)
    # Its own thresholds play no part.
    sae = make_sae(EYE3.to(samples), threshold=torch.tensor([0.5, 4.5, 9.0]))
    found = reconstruction_at_k(sae, samples, k)
    assert found.mse == pytest.approx(sum(lost) / len(lost), rel=1e-13)


def batchtopk(rescale, k=2.5):
    cfg = sae_lens.BatchTopKTrainingSAEConfig(
        d_in=6, d_sae=8, k=k, rescale_acts_by_decoder_norm=rescale
    )
    sae = sae_lens.BatchTopKTrainingSAE(cfg)
    sae.W_enc.data.copy_(draw(6, 8, seed=1) / 2)
    sae.W_dec.data.copy_(sae.W_enc.T * torch.linspace(0.3, 3, 8)[:, None])
    sae.b_enc.data.copy_(draw(8, seed=2) / 10)
    sae.b_dec.data.copy_(draw(6, seed=3))
    return sae


def test_it_is_what_sae_lens_does_in_training():
    samples = draw(64, 6)
    by_rescale = []
    for rescale in (True, False):
        sae = batchtopk(rescale)
        # One chunk, so one batch, of which k · 64 are kept.
        own = evaluate(sae, samples, as_trained=True)
        held = reconstruction_at_k(sae, samples, 2.5)
        assert (held.mse, held.variance_explained, held.shrinkage) == pytest.approx(
            (own.mse, own.variance_explained, own.shrinkage), rel=1e-5
        )
        assert reconstruction_at_k(sae, samples, 1).mse != pytest.approx(own.mse, rel=1e-3)
        # The k of the SAE itself does not matter.
        assert reconstruction_at_k(batchtopk(rescale, k=1), samples, 2.5).mse == held.mse
        by_rescale.append(held.mse)
    assert by_rescale[0] != pytest.approx(by_rescale[1], rel=1e-3)


def test_an_sae_that_diverged_is_nan_at_a_k():
    broken = torch.eye(3)
    broken[1, 1] = NAN
    for weights in ({"W_enc": broken}, {"b_dec": torch.full((3,), NAN)}):
        found = reconstruction_at_k(make_sae(EYE3, **weights), SAMPLES, 1)
        assert math.isnan(found.mse)
        assert math.isnan(found.variance_explained)


@pytest.mark.parametrize(
    ("k", "samples", "message"),
    [
        *((k, SAMPLES, rf"k is {k}: an SAE with 3 lat") for k in (0, -1, 3.5, NAN, math.inf)),
        (0.3, SAMPLES, r"k is 0\.3.* of 3 sample"),
        (1, torch.ones(2, 4), r"\[samples, 3\]"),
    ],
)
def test_what_cannot_be_held_to_a_k_is_refused(k, samples, message):
    with pytest.raises(ValueError, match=message):
        reconstruction_at_k(make_sae(EYE3), samples, k)


def test_an_sae_with_two_encoders_is_not_held_to_a_k():
    gated = sae_lens.GatedTrainingSAE(sae_lens.GatedTrainingSAEConfig(d_in=3, d_sae=3))
    with pytest.raises(ValueError, match="GatedTrainingSAE has no b_enc"):
        reconstruction_at_k(gated, SAMPLES, 1)


@pytest.mark.parametrize(
    ("values", "weights", "expected"),
    [
        # Squares off the mean 5: 4 + 1 + 9 + 0 = 14; variance 14/3; standard error √(14/3/4).
        ([3.0, 4.0, 8.0, 5.0], [32] * 4, math.sqrt(14 / 3 / 4)),
        # Large numbers keep their digits.
        ([1e9 + 1, 1e9 + 2, 1e9 + 3], [1] * 3, 1 / math.sqrt(3)),
        # Vectors are taken entry by entry.
        ([[1.0, 10.0], [3.0, 10.0]], [5, 5], [1.0, 0.0]),
        # √(3/2 · (1 · 2.25² + 1 · 0.25² + 4 · 1.25²)) / 4 around the mean 3.25.
        ([1.0, 3.0, 4.5], [1, 1, 2], math.sqrt(1.5 * (2.25**2 + 0.25**2 + 4 * 1.25**2)) / 4),
        ([2.0], [5], NAN),
    ],
)
def test_standard_errors_over_batches(values, weights, expected):
    moments = BatchMoments()
    for value, weight in zip(values, weights, strict=True):
        moments.add(torch.tensor(value, dtype=torch.float64), weight)
    assert moments.n_batches == len(values)
    assert moments.standard_error.tolist() == pytest.approx(expected, rel=1e-9, nan_ok=True)
