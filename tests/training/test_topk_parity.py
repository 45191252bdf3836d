"""TopK, BatchTopK and Matryoshka against sae_lens' own trainer: same batches, same end.

What is active hangs on an order, so a pair of pre-activations that rounding swaps would part two
runs for good. At these sizes, 64 samples of 9 latents for 300 steps, no pair is that close.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, TopKTrainingSAE
from safetensors.torch import load_file

from sparse_but_wrong.training.loop import train_saes
from tests.training import oracle, topk_family

pytestmark = pytest.mark.usefixtures("kernels")

N_STEPS = 300
NORMALISED = {"normalize_activations": "expected_average_only_in"}
FOR_ALL: dict[str, dict[str, Any]] = {
    "as they come": {},
    "decoder norms left out": {"rescale_acts_by_decoder_norm": False},
    "no auxiliary loss": {"aux_loss_coefficient": 0.0},
    "little auxiliary loss": {"aux_loss_coefficient": 1 / 32},
    "b_dec not applied to input": {"apply_b_dec_to_input": False},
    "normalised": NORMALISED,
    "normalised, norms left out": {**NORMALISED, "rescale_acts_by_decoder_norm": False},
    "k beyond what is positive": {"k": 8},
}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name}: {option}": (name, changes)
    for name in topk_family.ARCHITECTURES
    for option, changes in FOR_ALL.items()
} | {
    "topk: sparse": (
        "topk",
        {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False},
    ),
    "batchtopk: fast threshold": ("batchtopk", {"topk_threshold_lr": 0.5}),
    "matryoshka: auxiliary loss by level": ("matryoshka", {"use_matryoshka_aux_loss": True}),
    "matryoshka: auxiliary loss by level, norms left out": (
        "matryoshka",
        {"use_matryoshka_aux_loss": True, "rescale_acts_by_decoder_norm": False},
    ),
    "matryoshka: auxiliary loss by level, normalised": (
        "matryoshka",
        {"use_matryoshka_aux_loss": True, **NORMALISED},
    ),
}
# A short dead-latent window, so that the auxiliary loss has latents to revive.
RUN = oracle.options_for(N_STEPS, dead_feature_window=20, feature_sampling_window=70, log_every=20)
BATCHES = oracle.recorded_batches(N_STEPS + 10)


def unlike_saes(option: str) -> list[TopKTrainingSAE]:
    """Two SAEs that differ in k, and in how many of their latents are dead at first."""
    name, changes = OPTIONS[option]
    k, fraction = changes.get("k", 3), 0 if name == "topk" else 0.3
    saes = [
        topk_family.make_sae(name, seed=i, **{**changes, "k": k - i + fraction}) for i in range(2)
    ]
    with torch.no_grad():
        saes[0].b_enc[2:4] = -4.0
        saes[1].b_enc[:7] = -4.0  # more than the d_in // 2 = 6 that the auxiliary loss takes
    return saes


@functools.cache
def as_sae_lens_trains_them(option: str) -> list[TopKTrainingSAE]:
    """Once for all sets of kernels."""
    return [oracle.train_with_sae_lens(sae, BATCHES, RUN) for sae in unlike_saes(option)]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("option", OPTIONS)
def test_a_stack_ends_where_sae_lens_would_bring_each(option: str, tmp_path: Path) -> None:
    saes = unlike_saes(option)
    starts = [oracle.parameters(sae) for sae in saes]
    log = train_saes(saes, iter(BATCHES), RUN)

    expected = as_sae_lens_trains_them(option)
    for i, (sae, start, want) in enumerate(zip(saes, starts, expected, strict=True)):
        assert log.saes[i].trained_by == "engine"
        wanted = oracle.parameters(want)
        for name, value in oracle.parameters(sae).items():
            moved = (wanted[name] - start[name]).abs().max()
            assert moved > 1e-2, f"{name} did not train, so this compares nothing"
            # A tenth of one step of Adam, as in test_parity.
            torch.testing.assert_close(value, wanted[name], atol=1e-4, rtol=1e-4)
        assert sae.cfg.normalize_activations == want.cfg.normalize_activations == "none"
        assert sae.cfg.metadata.l0 == pytest.approx(want.cfg.metadata.l0, rel=1e-3)
        assert sae.cfg.metadata.num_dead_features == want.cfg.metadata.num_dead_features
        assert_same_for_inference(sae, want, tmp_path)
        columns = log.saes[i].columns
        assert max(columns["dead_latents"]) > 0, "there was nothing to revive"
        has_auxiliary = sae.cfg.aux_loss_coefficient > 0
        assert (max(columns["auxiliary_reconstruction_loss"]) > 0) == has_auxiliary


def assert_same_for_inference(sae: TopKTrainingSAE, want: TopKTrainingSAE, folder: Path) -> None:
    """What is saved for inference: BatchTopK and Matryoshka as JumpReLU with the threshold."""
    if isinstance(sae, BatchTopKTrainingSAE):
        assert isinstance(want, BatchTopKTrainingSAE)
        assert sae.topk_threshold.dtype == torch.float64
        assert want.topk_threshold > 1e-3, "the threshold did not move, so this compares nothing"
        torch.testing.assert_close(sae.topk_threshold, want.topk_threshold, atol=1e-6, rtol=1e-4)
    found, expected = (
        load_file(one.save_inference_model(folder / place)[0])
        for one, place in ((sae, "ours"), (want, "theirs"))
    )
    assert ("threshold" in expected) == isinstance(sae, BatchTopKTrainingSAE)
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=2e-4, rtol=2e-4)


def test_k_beyond_what_is_positive_is_what_it_says() -> None:
    saes = unlike_saes("batchtopk: k beyond what is positive")
    log = train_saes(saes, iter(BATCHES), RUN)
    for sae, sae_log in zip(saes, log.saes, strict=True):
        assert max(sae_log.columns["l0"]) < sae.cfg.k - 0.5
        assert sae_log.columns["k"] == [sae.cfg.k] * len(sae_log.steps)
