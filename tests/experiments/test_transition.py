"""SAEs whose k moves to where it ends."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from sparse_but_wrong.experiments.transition import (
    TRANSITION,
    Transition,
    judge_transitions,
    loss_at_end,
)
from sparse_but_wrong.runs.spec import ExperimentSpec
from sparse_but_wrong.training.controls import KTransition, why_not_controlled
from tests.experiments.small_specs import assert_run_is_whole, run, shrunk, with_k


def test_the_published_grid() -> None:
    assert [sae.sae_id for sae in TRANSITION.saes] == [
        f"{schedule}_seed_{seed}" for schedule in ("down", "up", "constant") for seed in range(5)
    ]
    assert {sae.config["k"] for sae in TRANSITION.saes} == {11}
    down, up, constant = (TRANSITION.saes[i] for i in (0, 5, 10))
    assert down.control == KTransition(20.0, 2000, 8000)
    assert up.control == KTransition(2.0, 2000, 8000)
    assert constant.control is None
    assert down.factors == {"schedule": "down", "initial_k": 20, "seed": 0}
    assert ExperimentSpec.from_dict(TRANSITION.to_dict()) == TRANSITION
    Transition().check(TRANSITION)


@pytest.mark.parametrize("spec", [TRANSITION, TRANSITION.quick()])
def test_the_transitions_end_within_the_run(spec: ExperimentSpec) -> None:
    assert all(why_not_controlled(sae.control, "k", spec.training) is None for sae in spec.saes)


def table(down: float, up: float) -> pd.DataFrame:
    """Five seeds of each schedule around a value, one of them in a poor minimum."""
    rows = [
        {"sae_id": f"{name}_{seed}", "schedule": name, "mcc": 0.5 if seed == 4 else mcc}
        for name, mcc in (("down", down), ("up", up), ("constant", 0.999))
        for seed in range(5)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("down", "up", "expected"),
    [
        (0.995, 0.9, [True, True]),
        (0.97, 0.9, [False, True]),
        (0.995, 0.995, [True, False]),
        (0.9, 0.995, [False, False]),
        (float("nan"), 0.9, [None, True]),
        (0.995, float("nan"), [True, None]),
    ],
)
def test_judged_by_the_median_seed(down: float, up: float, expected: list[bool]) -> None:
    verdict = judge_transitions(table(down, up))
    assert [check.holds for check in verdict.checks] == expected
    assert "With the right k from the start: median 0.999, 4 of 5 above" in verdict.remarks[0]


def test_the_numbers_are_told() -> None:
    verdict = judge_transitions(table(0.995, 0.9))
    assert verdict.checks[0].measured == (
        "median 0.995, 4 of 5 above 0.99 (0.995, 0.995, 0.995, 0.995, 0.500)"
    )
    assert "0.095" in verdict.remarks[1]


def test_a_run_that_diverged_is_no_evidence() -> None:
    rows = table(0.995, 0.9)
    rows.loc[(rows["schedule"] == "up") & (rows["mcc"] == 0.9), "mcc"] = float("nan")
    check = judge_transitions(rows).checks[1]
    assert check.holds is None
    assert check.measured == (
        "median 0.500, 0 of 1 above 0.99 (0.500); diverged and left out: up_0, up_1, up_2, up_3"
    )
    rows.loc[rows["schedule"] == "up", "mcc"] = float("nan")
    verdict = judge_transitions(rows)
    assert [check.holds for check in verdict.checks] == [True, None]
    assert verdict.checks[1].measured == "all diverged (up_0, up_1, up_2, up_3, up_4)"
    assert len(verdict.remarks) == 1  # no gap to a median that is not there


def test_whether_the_loss_still_fell_is_told() -> None:
    steps = [0, 850, 950, 1000]
    curves = pd.DataFrame(
        [
            {"sae_id": row["sae_id"], "step": step, "mse_loss": 2.0 if step < 900 else 0.5}
            for row in table(0.9, 0.9).to_dict("records")
            for step in steps
        ]
    )
    (words,) = loss_at_end(curves, table(0.9, 0.9))
    assert "2 → 0.5 (down), 2 → 0.5 (up), 2 → 0.5 (constant)" in words
    assert words.endswith("training had not settled, and a longer one may end elsewhere.")
    assert loss_at_end(curves.loc[curves["step"] == 0], table(0.9, 0.9)) == []


def _schedule_lost(spec: ExperimentSpec) -> ExperimentSpec:
    return replace(spec, saes=tuple(s for s in spec.saes if s.factors["schedule"] != "up"))


def _misnamed(spec: ExperimentSpec) -> ExperimentSpec:
    return replace(spec, saes=(replace(spec.saes[0], control=None), *spec.saes[1:]))


def _all_end_at(spec: ExperimentSpec, k: int) -> ExperimentSpec:
    saes = tuple(replace(sae, config={**sae.config, "k": k}) for sae in spec.saes)
    return replace(spec, saes=saes)


def _another_end(spec: ExperimentSpec) -> ExperimentSpec:
    first = replace(spec.saes[0], config={**spec.saes[0].config, "k": 12})
    return replace(spec, saes=(first, *spec.saes[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_schedule_lost, "needs an SAE whose factor schedule is 'up'"),
        (_misnamed, "SAE 'down_seed_0' has the factor schedule = 'down', but by its control"),
        (_another_end, "end at 11, 12"),
        (lambda spec: _all_end_at(spec, 5), "the true L0 (10.95), but those of the spec"),
    ],
)
def test_what_lacks_something_is_refused(change, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Transition().check(change(TRANSITION))


def test_a_run(tmp_path: Path) -> None:
    def smaller(sae):
        starts = {"down": 5.0, "up": 1.0}
        control = KTransition(starts[sae.factors["schedule"]], 20, 40) if sae.control else None
        return replace(with_k(sae, 3), control=control)

    spec = shrunk(TRANSITION, lambda sae: sae.factors["seed"] in (0, 1), smaller)
    results = run(spec, tmp_path / "run")
    assert [check.holds is not None for check in results.verdict.checks] == [True, True]
    ks = results.curves.loc[results.curves["sae_id"] == "down_seed_0", "k"].tolist()
    assert ks[0] == 5.0
    assert ks[-1] == 3.0
    assert_run_is_whole(results, [])
