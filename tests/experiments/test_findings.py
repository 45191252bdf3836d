"""Whether L0s were still moving when training ended, and what sets sparsity and fails to."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from sparse_but_wrong.experiments.findings import (
    l0_change_at_end,
    log_every_that_tells,
    training_remarks,
)
from sparse_but_wrong.runs.spec import SAESpec
from sparse_but_wrong.training.controls import TargetL0
from tests.experiments import tiny


def remarks(saes: list[SAESpec], *l0s: float, change: tuple[float, ...] = ()) -> list[str]:
    """On SAEs of these L0s, and the change of each at the end."""
    table = {"sae_id": [sae.sae_id for sae in saes], "l0": l0s}
    return training_remarks(saes, pd.DataFrame({**table, "l0_change_at_end": change or 0.0}))


def test_an_l0_that_was_still_moving_is_named() -> None:
    steps = list(range(0, 1001, 10))
    assert l0_change_at_end(steps, [5.0] * 101) == 0.0
    falling = [10.0 if step <= 900 else 10.0 - (step - 900) / 20 for step in steps]
    # 960 … 1000 are the last twentieth: 7, 6.5, 6, 5.5, 5; before 900 it was 10
    assert l0_change_at_end(steps, falling) == pytest.approx(-4.0)
    assert math.isnan(l0_change_at_end([0], [3.0]))
    assert math.isnan(l0_change_at_end([], []))
    saes = [SAESpec(sae_id, "topk") for sae_id in "abc"]
    (line,) = remarks(saes, 9.0, 5.0, math.nan, change=(0.0, -2.0, math.nan))
    assert "L0 of 1 SAEs" in line
    assert "tenth b 7.0 → 5.0." in line


@pytest.mark.parametrize(
    ("log_every", "n_steps", "expected"),
    [
        (100, 14_649, 100),  # the published budget
        (100, 2000, 100),
        (50, 400, 50),  # 350 lies between 85 % and 90 %
        (100, 1000, 50),
        (2, 293, 2),
        (100, 30, 1),
        (100, 1, 1),
        (5, 1_000_000, 5),
    ],
)
def test_logs_are_close_enough_to_tell_whether_l0_moved(
    log_every: int, n_steps: int, expected: int
) -> None:
    assert log_every_that_tells(log_every, n_steps) == expected


def test_it_can_be_told_of_every_short_run() -> None:
    for n_steps in range(20, 2200):
        every = log_every_that_tells(100, n_steps)
        steps = [*range(0, n_steps - 1, every), n_steps - 1]
        assert l0_change_at_end(steps, [1.0] * len(steps)) == 0.0, n_steps


def test_coefficients_that_give_one_l0_are_named_by_kind() -> None:
    def sae(i: int, coefficient: float, **changes: object) -> SAESpec:
        config = {"d_sae": 4, "l0_coefficient": coefficient, **changes}
        return SAESpec(f"sae_{i}", "jumprelu", config, factors={"seed": i})

    one_kind = [sae(0, 1.0), sae(1, 10.0), sae(2, 100.0)]
    (line,) = remarks(one_kind, 3.0, 2.0, 2.0)
    assert "coefficient 10 on: 2 there (sae_1) and 2 at 100 (sae_2)" in line
    assert remarks(one_kind, 3.0, 2.0, 1.0) == []
    assert remarks([sae(0, 10.0), sae(1, 100.0, jumprelu_bandwidth=2.0)], 2.0, 2.0) == []
    assert remarks([replace(s, control=TargetL0(2.0)) for s in one_kind], 2.0, 2.0, 2.0) == []


def test_a_threshold_that_has_not_settled_is_said_of_a_run() -> None:
    """At k = 12 the L0 as used is 140 after 50 steps, while the log of training says 12."""
    saes = [SAESpec(f"sae_{i}", "batchtopk", {"d_sae": 400, "k": 12}) for i in range(2)]
    (line,) = remarks(saes, 140.0, 12.3)
    assert "140 at k = 12 (sae_0)" in line
    assert "sae_1" not in line


def test_a_short_run_says_what_moved_and_what_is_saturated(tmp_path: Path) -> None:
    spec, sae = tiny.TINY, tiny.TINY.saes[0]
    spec = replace(
        spec,
        analysis="sweep",
        training=replace(spec.training, total_training_samples=70 * 64, log_every=100, lr=0.03),
        saes=tuple(
            replace(sae, sae_id=f"c_{c:g}", config={**sae.config, "l0_coefficient": c}, factors={})
            for c in (0.05, 300.0, 3000.0)
        ),
    )
    run = tiny.finished(spec, tmp_path / "run")
    assert bool(run.table["l0_change_at_end"].notna().all())
    assert any("still moving" in remark for remark in run.verdict.remarks)
    assert any("coefficient 300 on" in remark for remark in run.verdict.remarks)
