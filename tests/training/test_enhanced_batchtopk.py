"""The published BatchTopK variant in the engine: stepped like a BatchTopK whose k moves."""

from __future__ import annotations

import functools
import logging
from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, TrainingSAE
from sae_lens.registry import get_sae_training_class

from sparse_but_wrong import KTransition, Snapshot, make_saes
from sparse_but_wrong.enchanced_batch_topk_sae import (
    EnchancedBatchTopKTrainingSAE,
    EnhancedBatchTopKTrainingSAEConfig,
)
from sparse_but_wrong.training.loop import Training, TrainingState, train_saes
from tests.training import oracle, topk_family
from tests.training.test_loop import RandomSource

N_STEPS = 300
MOVES: dict[str, Any] = {
    "initial_k": 7.5,
    "transition_k_duration_steps": 90,
    "transition_k_start_step": 20,
}
NORMS: dict[str, Any] = {"normalize_acts_by_decoder_norm": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "k moves": MOVES,
    "norms count": NORMS,
    "norms count, k moves, normalised": {
        **NORMS,
        **MOVES,
        "normalize_activations": "expected_average_only_in",
    },
    "k moves beyond the end": {**MOVES, "transition_k_duration_steps": 700},
}
RUN = oracle.options_for(N_STEPS, dead_feature_window=20, feature_sampling_window=70, log_every=20)
BATCHES = oracle.recorded_batches(N_STEPS + 10)


def make_sae(seed: int = 0, **config: Any) -> EnchancedBatchTopKTrainingSAE:
    cfg = EnhancedBatchTopKTrainingSAEConfig(
        **{"d_in": oracle.D_IN, "d_sae": oracle.D_SAE, "k": 2.3, **config}
    )
    return oracle.seeded(EnchancedBatchTopKTrainingSAE(cfg), seed)


def two_saes(option: str) -> list[EnchancedBatchTopKTrainingSAE]:
    saes = [make_sae(seed, **OPTIONS[option], k=2.3 + seed) for seed in range(2)]
    with torch.no_grad():
        saes[0].b_enc[2:4] = -4.0  # dead at first
    return saes


@functools.cache
def as_sae_lens_trains_them(option: str) -> list[EnchancedBatchTopKTrainingSAE]:
    """Once for all sets of kernels."""
    return [oracle.train_with_sae_lens(sae, BATCHES, RUN) for sae in two_saes(option)]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("option", OPTIONS)
def test_the_engine_ends_where_sae_lens_own_trainer_does(option: str) -> None:
    saes, expected = two_saes(option), as_sae_lens_trains_them(option)
    log = train_saes(saes, iter(BATCHES), RUN)
    for sae, sae_log, start, want in zip(saes, log.saes, two_saes(option), expected, strict=True):
        assert sae_log.trained_by == "engine"
        for name, value in want.state_dict().items():
            moved = (value - start.state_dict()[name]).abs().max()
            assert moved > 1e-3, f"{name} did not train, so this compares nothing"
            # A tenth of one step of Adam, as in test_parity.
            torch.testing.assert_close(sae.state_dict()[name], value, atol=1e-4, rtol=1e-4)
        assert sae_log.columns["k"][0] == (7.5 if "k moves" in option else sae.cfg.k)
        assert sae.cfg.k == want.cfg.k
        assert sae.activation_fn.k == pytest.approx(want.activation_fn.k, rel=1e-12)  # type: ignore[union-attr]
        assert sae.cfg.metadata.l0 == pytest.approx(want.cfg.metadata.l0, rel=1e-3)


def test_without_its_options_it_is_a_batchtopk_that_leaves_decoder_norms_out() -> None:
    mine = make_sae(k=2.3)
    plain = topk_family.make_sae("batchtopk", k=2.3, rescale_acts_by_decoder_norm=False)
    assert isinstance(plain, BatchTopKTrainingSAE)
    train_saes([mine, plain], iter(BATCHES), RUN)
    for name, value in plain.state_dict().items():
        assert torch.equal(mine.state_dict()[name], value), name


def test_a_run_taken_up_again_moves_k_on_from_where_it_was() -> None:
    def saes() -> list[TrainingSAE[Any]]:
        return [make_sae(**MOVES), make_sae(1, **MOVES, **NORMS), make_sae(2)]

    options = oracle.options_for(120, dead_feature_window=10, log_every=10)
    straight, resumed = saes(), saes()
    full_log = train_saes(straight, RandomSource(), options)
    kept: list[TrainingState] = []

    def keep(training: Training) -> None:
        if training.can_checkpoint and 40 < training.n_samples / oracle.BATCH < 100:
            kept.append(training.state())

    Training(saes(), RandomSource(), options).run(on_rest=keep)
    second = Training(resumed, RandomSource(seed=99), options)
    second.load_state(kept[0])
    second.run()
    assert second.log.to_frame().equals(full_log.to_frame())
    for mine, wanted in zip(resumed, straight, strict=True):
        for name, value in wanted.state_dict().items():
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
    saes = [make_sae(seed, **{**MOVES, "transition_k_duration_steps": 25_000}) for seed in (0, 1)]
    with caplog.at_level(logging.WARNING, logger="sparse_but_wrong"):
        Training(saes, iter(()), RUN)
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
