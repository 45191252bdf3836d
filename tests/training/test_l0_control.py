"""A target L0 is reached, and how does not depend on company, blocks or interruptions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE

from sparse_but_wrong.training.controls import TargetL0
from sparse_but_wrong.training.log import SAELog
from sparse_but_wrong.training.loop import Training, train_saes
from tests.training import oracle
from tests.training.oracle import assert_identical, make


def sae_of(kind: str, seed: int = 0) -> TrainingSAE[Any]:
    warm_up = {"l0_warm_up_steps": 100} if kind == "jumprelu" else {}
    return make(kind, seed, **{oracle.sparsity_field(kind): 1.0}, **warm_up)


def trained(
    saes: list[TrainingSAE[Any]], controls: list[TargetL0 | None], n_steps: int, **options: Any
) -> list[SAELog]:
    run = oracle.options_for(n_steps, **options)
    return train_saes(saes, oracle.Batches(200), run, controls).saes


@pytest.mark.parametrize("kind", ["jumprelu", "standard"])
def test_targets_are_reached_with_one_starting_coefficient(kind: str) -> None:
    targets = [2.0, 2.5, 3.0, 4.0]
    saes = [sae_of(kind, seed) for seed in range(4)]
    logs = trained(saes, [TargetL0(target) for target in targets], 3000)
    x = torch.cat(oracle.recorded_batches(240)[200:])  # they have not been trained on it
    for sae, target, log in zip(saes, targets, logs, strict=True):
        with torch.no_grad():
            l0 = float((sae.encode(x) > 0).float().sum(1).mean())
        # The band of the real task: 3 % or 0.25, whichever is larger.
        assert l0 == pytest.approx(target, abs=0.25)
        assert log.note is None
        coefficient = log.columns["coefficient"]
        assert len(set(coefficient)) > 10
        # It was not moved in the last fiftieth, and the config says what it ended as.
        assert coefficient[-1] == getattr(sae.cfg, oracle.sparsity_field(kind))


def test_a_target_that_was_not_reached_is_named() -> None:
    (log,) = trained([sae_of("jumprelu")], [TargetL0(1.0)], 150)
    assert log.note is not None
    assert log.note.startswith("did not reach its target: L0 ended at ")
    assert ", not at 1, with the coefficient at " in log.note


@pytest.mark.usefixtures("step")
def test_company_and_threads_make_no_difference() -> None:
    saes = [sae_of("jumprelu", seed) for seed in range(3)]
    controls: list[TargetL0 | None] = [TargetL0(3.0), None, TargetL0(2.0)]
    ends = []
    for threads in (1, 2):
        copies = copy.deepcopy(saes)
        logs = trained(copies, controls, 300, threads=threads, log_every=30)
        ends.append((copies, [log.columns for log in logs]))
    alone = copy.deepcopy(saes[2])
    trained([alone], [TargetL0(2.0)], 300, log_every=7)
    assert ends[0][1] == ends[1][1]
    for mine, wanted in zip(ends[1][0], ends[0][0], strict=True):
        assert_identical(mine, wanted)
    assert_identical(alone, ends[0][0][2])


def test_a_resumed_run_moves_the_coefficients_as_if_nothing_had_been() -> None:
    options = oracle.options_for(400)
    controls = [TargetL0(3.0), TargetL0(2.0)]
    straight = [sae_of("jumprelu", seed) for seed in range(2)]
    resumed = copy.deepcopy(straight)
    states = []
    run = Training(straight, oracle.Batches(), options, controls)
    run.run(lambda training: states.append(training.state()))

    middle = next(state for state in states if state.n_steps[0] > 170 and state.n_steps[0] % 50)
    again = Training(resumed, oracle.Batches(), options, controls)
    again.load_state(middle)
    again.run()

    for mine, wanted in zip(resumed, straight, strict=True):
        assert mine.cfg.l0_coefficient == wanted.cfg.l0_coefficient
        assert_identical(mine, wanted)
