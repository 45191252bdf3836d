"""The published BatchTopK variant in the engine: stepped like a BatchTopK whose k moves."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE
from sae_lens.registry import get_sae_training_class

from sparse_but_wrong import KTransition, Snapshot, make_saes
from sparse_but_wrong.enchanced_batch_topk_sae import (
    EnchancedBatchTopKTrainingSAE,
)
from sparse_but_wrong.training.loop import Training, train_saes
from tests.training import oracle, saes

N_STEPS = 300
MOVES: dict[str, Any] = {
    "initial_k": 7.5,
    "transition_k_duration_steps": 90,
    "transition_k_start_step": 20,
}
NORMS: dict[str, Any] = {"normalize_acts_by_decoder_norm": True}
RUN = oracle.options_for(N_STEPS, dead_feature_window=20, feature_sampling_window=70, log_every=20)
BATCHES = oracle.recorded_batches(N_STEPS + 10)


def make_sae(seed: int = 0, **config: Any) -> EnchancedBatchTopKTrainingSAE:
    return saes.make_sae("enhanced_batchtopk", seed, **{"k": 2.3, **config})


def test_without_its_options_it_is_a_batchtopk_that_leaves_decoder_norms_out() -> None:
    mine = make_sae(k=2.3)
    plain = saes.make_sae("batchtopk", k=2.3, rescale_acts_by_decoder_norm=False)
    assert isinstance(plain, BatchTopKTrainingSAE)
    train_saes([mine, plain], iter(BATCHES), RUN)
    for name, value in plain.state_dict().items():
        assert torch.equal(mine.state_dict()[name], value), name


def test_a_snapshot_keeps_the_k_of_its_step_and_says_where_it_leads() -> None:
    kept: list[Snapshot] = []
    options = oracle.options_for(N_STEPS, snapshot_steps=(66,))
    train_saes([make_sae(**MOVES)], iter(BATCHES), options, on_snapshot=kept.append)
    sae: Any = kept[0].sae
    assert sae.activation_fn.k == pytest.approx(7.5 + (65 - 20) / 90 * (2.3 - 7.5))
    assert sae.cfg.k == 2.3


def test_trained_twice_its_k_moves_twice() -> None:
    sae = make_sae(**{**MOVES, "transition_k_duration_steps": 700})
    for _ in range(2):
        log = train_saes([sae], iter(BATCHES), RUN)
        assert log.saes[0].columns["k"][0] == 7.5
        assert log.saes[0].columns["k"][-1] == pytest.approx(7.5 + 279 / 700 * (2.3 - 7.5))


def test_where_the_engine_cannot_step_it_sae_lens_trainer_logs_the_k_that_moves() -> None:
    sae = make_sae(**MOVES, dtype="bfloat16")
    log = train_saes([sae], iter(BATCHES[:30]), oracle.options_for(30, log_every=1))
    assert log.saes[0].trained_by == "sae_lens"
    assert log.saes[0].columns["k"][-1] == pytest.approx(7.5 + 9 / 90 * (2.3 - 7.5))


def test_a_transition_that_outlasts_the_run_is_spoken_of_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = [make_sae(seed, **{**MOVES, "transition_k_duration_steps": 25_000}) for seed in (0, 1)]
    with caplog.at_level(logging.WARNING, logger="sparse_but_wrong"):
        Training(made, iter(()), RUN)
    (line,) = caplog.messages
    for part in ("2 SAEs", "25020", "299", "7.442"):
        assert part in line


def test_what_would_move_its_k_a_second_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"saes\[0\].*moves its k by itself"):
        train_saes([make_sae(**MOVES)], iter(()), RUN, [KTransition(6.0, 5, 10)])


def test_a_control_may_move_its_k_where_its_config_does_not() -> None:
    log = train_saes([make_sae()], iter(BATCHES), RUN, [KTransition(6.0, 0, 100)])
    assert log.saes[0].columns["k"][0] == 6.0
    assert log.saes[0].columns["k"][-1] == 2.3


def test_make_saes_knows_it() -> None:
    assert get_sae_training_class("enhanced_batchtopk")[0] is EnchancedBatchTopKTrainingSAE
    (sae,) = make_saes([make_sae(**MOVES).cfg], [3])
    assert type(sae) is EnchancedBatchTopKTrainingSAE
    assert sae.cfg.initial_k == 7.5
