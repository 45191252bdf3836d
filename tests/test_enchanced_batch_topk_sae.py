"""The published BatchTopK variant as a sae_lens SAE: what it computes, trains, saves and loads."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUSAE,
    TrainingSAE,
)
from safetensors.torch import save_file
from torch import Tensor

from sparse_but_wrong import load_sae
from sparse_but_wrong.enchanced_batch_topk_sae import (
    EnchancedBatchTopKTrainingSAE,
    EnhancedBatchTopKTrainingSAEConfig,
)
from sparse_but_wrong.metrics.toy_sae import eval_sae
from sparse_but_wrong.worlds.toy_model import ToyModel
from tests.training import oracle

SIZES: dict[str, Any] = {"d_in": oracle.D_IN, "d_sae": oracle.D_SAE}


def make_sae(**config: Any) -> EnchancedBatchTopKTrainingSAE:
    cfg = EnhancedBatchTopKTrainingSAEConfig(**{**SIZES, "k": 2.5, **config})
    return oracle.seeded(EnchancedBatchTopKTrainingSAE(cfg), 0)


def activations() -> Tensor:
    return oracle.recorded_batches(1)[0]


@torch.no_grad()
def by_hand(sae: TrainingSAE[Any], x: Tensor, norms_count: bool, threshold: float | None) -> Tensor:
    """The reconstruction, with the 2.5 largest per sample active, or those above a threshold."""
    pre = (x - sae.b_dec) @ sae.W_enc + sae.get_parameter("b_enc")
    norm = sae.W_dec.norm(dim=1) if norms_count else torch.ones(oracle.D_SAE)
    ranked = pre * norm
    if threshold is None:
        threshold = float(ranked.flatten().sort(descending=True).values[int(2.5 * len(x))])
    acts = ranked * (ranked > max(threshold, 0.0))
    return (acts / norm) @ sae.W_dec + sae.b_dec


def test_the_config_has_the_published_fields_and_defaults() -> None:
    cfg = EnhancedBatchTopKTrainingSAEConfig(**SIZES)
    assert cfg.architecture() == "enhanced_batchtopk"
    assert cfg.normalize_acts_by_decoder_norm is False
    assert cfg.rescale_acts_by_decoder_norm is False
    assert cfg.initial_k is None
    assert cfg.transition_k_duration_steps is None
    assert cfg.transition_k_start_step == 0


@pytest.mark.parametrize("norms_count", [False, True])
def test_what_it_computes(norms_count: bool) -> None:
    sae = make_sae(normalize_acts_by_decoder_norm=norms_count)
    x = activations()
    torch.testing.assert_close(sae(x), by_hand(sae, x, norms_count, None))
    both = make_sae(
        normalize_acts_by_decoder_norm=norms_count, rescale_acts_by_decoder_norm=norms_count
    )
    assert torch.equal(both(x), sae(x))  # norms count once


def test_sae_lens_trainer_moves_k_as_published() -> None:
    config: dict[str, Any] = {"k": 2.2, "aux_loss_coefficient": 0.1}
    moving = make_sae(
        **config, initial_k=7.5, transition_k_duration_steps=60, transition_k_start_step=20
    )
    plain = BatchTopKTrainingSAEConfig(**SIZES, **config, rescale_acts_by_decoder_norm=False)
    reference = oracle.seeded(BatchTopKTrainingSAE(plain), 0)

    def set_k(sae: BatchTopKTrainingSAE, step: int) -> None:
        sae.activation_fn.k = 7.5 + min(max((step - 20) / 60, 0), 1) * (2.2 - 7.5)  # type: ignore[union-attr]

    run, batches = oracle.options_for(100, dead_feature_window=10), oracle.recorded_batches(100)
    found = oracle.train_with_sae_lens(moving, batches, run)
    wanted = oracle.train_with_sae_lens(reference, batches, run, before_batch=set_k)
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, atol=1e-6, rtol=1e-5)
    assert found.cfg.k == found.activation_fn.k == 2.2  # type: ignore[union-attr]


@pytest.mark.parametrize("norms_count", [False, True])
def test_saved_for_inference_it_is_the_thresholded_jumprelu(
    norms_count: bool, tmp_path: Path
) -> None:
    sae = make_sae(normalize_acts_by_decoder_norm=norms_count)
    sae.topk_threshold.fill_(0.1)
    sae.save_inference_model(tmp_path)
    used = SAE.load_from_disk(tmp_path)
    assert isinstance(used, JumpReLUSAE)
    x = activations()
    wanted = by_hand(sae, x, norms_count, 0.1)
    assert not torch.allclose(wanted, by_hand(sae, x, not norms_count, 0.1))
    torch.testing.assert_close(used(x), wanted)


@pytest.mark.parametrize("norms_count", [False, True])
def test_a_folder_as_the_published_package_saved_it_loads(
    norms_count: bool, tmp_path: Path
) -> None:
    sae = make_sae(normalize_acts_by_decoder_norm=norms_count)
    sae.topk_threshold.fill_(0.1)
    save_file({k: v.contiguous() for k, v in sae.state_dict().items()}, tmp_path / "w")
    (tmp_path / "w").rename(tmp_path / "sae_weights.safetensors")
    # Releases of sae_lens of that time knew no rescale_acts_by_decoder_norm here.
    config = json.loads(
        '{"dtype": "float32", "device": "cpu", "apply_b_dec_to_input": true, "k": 2.5,'
        '"normalize_activations": "none", "reshape_activations": "none", "initial_k": 6,'
        '"decoder_init_norm": 0.1, "topk_threshold_lr": 0.01, "aux_loss_coefficient": 1.0,'
        '"transition_k_duration_steps": 25000, "transition_k_start_step": 0,'
        '"metadata": {"sae_lens_version": "6.6.0", "sae_lens_training_version": "6.6.0"},'
        '"architecture": "enhanced_batchtopk"}'
    )
    config |= {**SIZES, "normalize_acts_by_decoder_norm": norms_count}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    x = activations()
    trained = TrainingSAE.load_from_disk(tmp_path)
    assert type(trained) is EnchancedBatchTopKTrainingSAE
    assert trained.cfg.initial_k == 6
    torch.testing.assert_close(trained(x), by_hand(sae, x, norms_count, None))
    used = load_sae(tmp_path)
    assert isinstance(used, JumpReLUSAE)
    torch.testing.assert_close(used(x), by_hand(sae, x, norms_count, 0.1))


def test_it_survives_saving_also_with_a_whitening_folded_in(tmp_path: Path) -> None:
    sae = make_sae(
        normalize_acts_by_decoder_norm=True, normalize_activations="covariance_whitening"
    )
    scales = torch.linspace(0.5, 2.0, oracle.D_IN)
    sae.fold_activation_whitening(
        mean=torch.zeros(oracle.D_IN),
        whitening_matrix=torch.diag(scales),
        unwhitening_matrix=torch.diag(1 / scales),
    )
    sae.save_model(tmp_path)
    again = TrainingSAE.load_from_disk(tmp_path)
    x = activations()
    assert torch.equal(again(x), sae(x))
    assert not again.cfg.normalize_acts_by_decoder_norm  # type: ignore[attr-defined]


def test_eval_sae_folds_norms_that_count() -> None:
    sae, world = make_sae(normalize_acts_by_decoder_norm=True), ToyModel(9, oracle.D_IN)
    x = activations()
    before = sae(x)
    eval_sae(sae, world, lambda n: torch.rand(n, 9), num_samples=50)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(oracle.D_SAE))
    torch.testing.assert_close(sae(x), before)


@pytest.mark.parametrize(
    ("initial_k", "steps", "start", "message"),
    [
        (0.0, 5, 0, "initial_k .*positive"),
        ("5", 5, 0, "initial_k must be a number"),
        (9.5, 5, 0, "initial_k .* d_sae = 9, got 9.5"),
        (5.0, 0, 0, "duration_steps must be at least 1"),
        (5.0, 5, -1, "start_step .*-1"),
    ],
)
def test_a_transition_that_cannot_be_is_refused(
    initial_k: Any, steps: int, start: int, message: str
) -> None:
    transition = {"transition_k_duration_steps": steps, "transition_k_start_step": start}
    with pytest.raises(ValueError, match=message):
        make_sae(initial_k=initial_k, **transition)


@pytest.mark.parametrize("half", [{"initial_k": 5.0}, {"transition_k_duration_steps": 9}])
def test_half_a_transition_is_spoken_of_and_none(
    half: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="sparse_but_wrong"):
        assert make_sae(**half).cfg.k_transition is None
    assert "k stays at 2.5" in caplog.messages[0]
