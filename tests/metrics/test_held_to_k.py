"""An SAE held to a k: by hand, and against sae_lens' own BatchTopK in training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

from sparse_but_wrong.metrics import samples as samples_module
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.metrics.reconstruction import _Largest, reconstruction_at_k

MakeSAE = Callable[..., Any]

# Three latents along the axes: pre-activations are the samples themselves.
IDENTITY = torch.eye(3)
SAMPLES = torch.tensor([[5.0, 4.0, 0.0], [1.0, 0.0, 0.0], [3.0, 2.0, -6.0]])


@pytest.mark.parametrize(
    ("k", "lost"),
    [
        # int(k · 3) of 5, 4, 3, 2, 1 are kept; −6 is never active.
        (1 / 3, [16, 1, 9 + 4 + 36]),
        (1.0, [0, 1, 4 + 36]),
        (1.5, [0, 1, 36]),  # int(4.5) = 4
        (5 / 3, [0, 0, 36]),
        (3.0, [0, 0, 36]),  # more places than positive values
    ],
)
def test_the_largest_over_all_samples_are_kept(
    make_sae: MakeSAE, k: float, lost: list[float]
) -> None:
    measured = reconstruction_at_k(make_sae(IDENTITY), SAMPLES, k)
    assert measured.mse == pytest.approx(sum(lost) / 3)


def test_of_equal_values_exactly_as_many_are_kept_as_there_are_places(make_sae: MakeSAE) -> None:
    ones = torch.ones(4, 3)
    for n_places in range(1, 13):
        measured = reconstruction_at_k(make_sae(IDENTITY), ones, n_places / 4)
        assert measured.mse == pytest.approx((12 - n_places) / 4)


def test_neither_thresholds_nor_chunks_play_a_part(
    make_sae: MakeSAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    samples = torch.randn(200, 3).round(decimals=1)  # rounded, so that there are ties
    plain = reconstruction_at_k(make_sae(IDENTITY), samples, 0.7)
    sae = make_sae(IDENTITY, threshold=torch.tensor([0.5, 1.0, 9.0]))
    assert reconstruction_at_k(sae, samples, 0.7) == plain
    monkeypatch.setattr(samples_module, "_MAX_CHUNK_SAMPLES", 7)
    in_chunks = reconstruction_at_k(make_sae(IDENTITY), samples, 0.7)
    assert in_chunks.mse == pytest.approx(plain.mse, rel=1e-6)
    assert in_chunks.shrinkage == pytest.approx(plain.shrinkage, rel=1e-6)


def batchtopk(rescale: bool, k: float = 2.5) -> BatchTopKTrainingSAE:
    torch.manual_seed(1)
    cfg = BatchTopKTrainingSAEConfig(d_in=6, d_sae=8, k=k, rescale_acts_by_decoder_norm=rescale)
    sae = BatchTopKTrainingSAE(cfg)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.3, 3, 8)[:, None])
        sae.b_enc.normal_(std=0.1)
        sae.b_dec.normal_()
    return sae


@pytest.mark.parametrize("rescale", [True, False])
def test_it_is_what_sae_lens_does_in_training(rescale: bool) -> None:
    sae = batchtopk(rescale)
    samples = torch.randn(64, 6, generator=torch.Generator().manual_seed(2))
    own = evaluate(
        sae, samples, as_trained=True
    )  # one chunk, so one batch, of which k · 64 are kept
    held = reconstruction_at_k(sae, samples, 2.5)
    assert held.mse == pytest.approx(own.mse, rel=1e-5)
    assert held.variance_explained == pytest.approx(own.variance_explained, rel=1e-5)
    assert held.shrinkage == pytest.approx(own.shrinkage, rel=1e-5)
    assert reconstruction_at_k(sae, samples, 1).mse != pytest.approx(own.mse, rel=1e-3)
    # The k of the SAE itself does not matter.
    assert reconstruction_at_k(batchtopk(rescale, k=1), samples, 2.5) == held


def test_ranking_with_decoder_norms_is_another_ranking() -> None:
    samples = torch.randn(64, 6, generator=torch.Generator().manual_seed(2))
    with_norms, without = (
        reconstruction_at_k(batchtopk(rescale), samples, 2).mse for rescale in (True, False)
    )
    assert with_norms != pytest.approx(without, rel=1e-3)


def test_double_precision_is_kept(make_sae: MakeSAE) -> None:
    samples = torch.tensor([[1.0, 1.0 + 1e-12, 0.0]], dtype=torch.float64)
    measured = reconstruction_at_k(make_sae(IDENTITY.double()), samples, 1)
    assert measured.mse == pytest.approx(1.0, abs=1e-13)  # the smaller one is lost


def test_an_sae_that_diverged_is_nan(make_sae: MakeSAE) -> None:
    broken = torch.eye(3)
    broken[1, 1] = torch.nan
    for weights in ({"W_enc": broken}, {"b_dec": torch.full((3,), torch.nan)}):
        measured = reconstruction_at_k(make_sae(IDENTITY, **weights), SAMPLES, 1)
        assert math.isnan(measured.mse)
        assert math.isnan(measured.variance_explained)


@pytest.mark.parametrize("k", [0, -1, 3.5, math.nan, math.inf])
def test_a_k_out_of_range_is_refused(make_sae: MakeSAE, k: float) -> None:
    with pytest.raises(ValueError, match=f"k is {k}: an SAE with 3 latents"):
        reconstruction_at_k(make_sae(IDENTITY), SAMPLES, k)


def test_a_k_that_keeps_nothing_is_refused(make_sae: MakeSAE) -> None:
    with pytest.raises(ValueError, match=r"at k = 0\.3 not one latent is kept over 3 sample"):
        reconstruction_at_k(make_sae(IDENTITY), SAMPLES, 0.3)


def test_what_it_cannot_measure_is_refused(make_sae: MakeSAE) -> None:
    from sae_lens import GatedTrainingSAE, GatedTrainingSAEConfig

    with pytest.raises(ValueError, match=r"shape \[samples, 3\]"):
        reconstruction_at_k(make_sae(IDENTITY), torch.ones(2, 4), 1)
    gated = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=3, d_sae=3))
    with pytest.raises(ValueError, match="GatedTrainingSAE has no b_enc"):
        reconstruction_at_k(gated, SAMPLES, 1)


def test_the_cut_is_that_of_a_sort_however_the_values_come() -> None:
    values = torch.randn(999, generator=torch.Generator().manual_seed(3)).round(decimals=1)
    positive = sorted((v for v in values.tolist() if v > 0), reverse=True)
    for count in (1, 10, len(positive) - 1, len(positive), len(positive) + 1):
        for size in (5, 100, 999):
            largest = _Largest(count)
            for part in values.split(size):
                largest.add(part)
            cut, n_at_cut = largest.cut()
            if count >= len(positive):
                assert (cut, n_at_cut) == (0.0, 0)
            else:
                assert cut == positive[count - 1]
                assert n_at_cut == positive[:count].count(cut)
