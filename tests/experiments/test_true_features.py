"""Cheating, ground-truth-init and transition: their grids, their verdicts and a small run each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sparse_but_wrong.experiments.analysis import Run
from sparse_but_wrong.experiments.registry import CHEATING, GROUND_TRUTH_INIT, TRANSITION
from sparse_but_wrong.experiments.true_features import (
    ANALYSES,
    RIGHT,
    TRAINED,
    TRUE,
    judge_start_and_end,
    judge_tradeoff,
)
from sparse_but_wrong.experiments.verdict import Verdict
from sparse_but_wrong.runs.spec import ExperimentSpec
from sparse_but_wrong.training.controls import KTransition, why_not_controlled
from tests.experiments.tiny import assert_run_is_whole, few, finished, found, holds

TRUE_L0 = 10.95


def test_the_published_grids() -> None:
    assert [sae.config["k"] for sae in CHEATING.saes] == list(range(1, 26))
    assert [(sae.world, sae.config["k"]) for sae in GROUND_TRUTH_INIT.saes] == [
        (world, k) for world in ("first", "second", "third") for k in (5, 11)
    ]
    assert all(sae.init == "true_features" for sae in GROUND_TRUTH_INIT.saes)
    assert [sae.sae_id for sae in TRANSITION.saes] == [
        f"{schedule}_seed_{seed}" for schedule in ("down", "up", "constant") for seed in range(5)
    ]
    assert {sae.config["k"] for sae in TRANSITION.saes} == {11}
    down, up, constant = (TRANSITION.saes[i].control for i in (0, 5, 10))
    assert (down, up) == (KTransition(20.0, 2000, 8000), KTransition(2.0, 2000, 8000))
    assert constant is None
    assert TRANSITION.saes[0].factors == {"schedule": "down", "initial_k": 20, "seed": 0}
    for spec in (CHEATING, GROUND_TRUTH_INIT, TRANSITION):
        assert spec.training.n_steps == 14_649


@pytest.mark.parametrize("spec", [TRANSITION, TRANSITION.quick()])
def test_the_transitions_end_within_the_run(spec: ExperimentSpec) -> None:
    assert all(why_not_controlled(sae.control, "k", spec.training) is None for sae in spec.saes)


def tradeoff(
    trained: float = 0.5, right: float = 1.0, true: float = 1.1, mcc: float = 0.8, ks=range(1, 26)
) -> Verdict:
    """Errors that fall with k, each kind by its own factor, and recovery from k = 11 on."""
    scale = {TRAINED: trained, RIGHT: right, TRUE: true}
    kinds = [(k, kind) for k in ks for kind in scale]
    errors = pd.DataFrame({"k": k, "sae": s, "mse": scale[s] * (30 - k)} for k, s in kinds)
    table = pd.DataFrame({"k": k, "mcc": 0.999 if k >= 11 else mcc} for k in ks)
    return judge_tradeoff(found(CHEATING, TRUE_L0, table, tradeoff=errors))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [True, True, True]),
        ({"right": 0.4}, [False, True, True]),
        ({"true": 0.5}, [True, False, True]),
        ({"mcc": 0.995}, [True, True, False]),
        ({"trained": math.nan}, [False, False, True]),
        # Without SAEs below or at the truth nothing is said.
        ({"ks": range(11, 26)}, [None, None, None]),
        ({"ks": range(1, 9)}, [None, True, True]),
    ],
)
def test_each_part_of_cheating(changes: dict[str, Any], expected: list[bool | None]) -> None:
    verdict = tradeoff(**changes)
    assert holds(verdict) == expected
    if not changes:
        assert verdict.checks[0].measured == (
            "9 of 9; MSE 12.50 against 25.00 at k = 5; MSE 10.50 against 21.00 at k = 9"
        )
        assert "k = 25" in verdict.remarks[1]


def start_and_end(*ks: int, **changes: float) -> Verdict:
    """Two worlds with some k; `changes` are of the second, by column and k."""
    rows = []
    for world in ("first", "second"):
        for k, mcc, start, end in ((5, 0.77, 4.8, 2.6), (11, 0.999, 0.1, 0.1)):
            row = {"world": world, "k": k, "true_l0": 10.96, "mcc_start": 1.0, "mcc_end": mcc}
            row |= {"mse_start": start, "mse_end": end}
            if world == "second":
                row |= {name: changes[f"{name}_{k}"] for name in row if f"{name}_{k}" in changes}
            rows += [row] if k in ks else []
    table = pd.DataFrame(rows)
    return judge_start_and_end(found(GROUND_TRUTH_INIT, TRUE_L0, start_and_end=table))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [True, True, True]),
        ({"mcc_end_5": 0.995}, [False, True, True]),
        ({"mcc_end_5": math.nan}, [False, True, True]),
        ({"mse_end_5": 4.9}, [True, False, True]),
        ({"mcc_end_11": 0.97}, [True, True, False]),
    ],
)
def test_every_world_counts(changes: dict[str, float], expected: list[bool]) -> None:
    verdict = start_and_end(5, 11, **changes)
    assert holds(verdict) == expected
    if not changes:
        assert verdict.checks[0].measured == "1.000 → 0.770 (k = 5), 1.000 → 0.770 (k = 5)"
        assert verdict.checks[1].measured.startswith("4.8 → 2.6 (k = 5), ")


def test_without_a_low_k_nothing_is_said_of_it() -> None:
    assert holds(start_and_end(11)) == [None, None, True]


def transitions(down: float, up: float) -> pd.DataFrame:
    """Five seeds of each schedule around a value, one of them in a poor minimum."""
    return pd.DataFrame(
        {"sae_id": f"{name}_{seed}", "schedule": name, "mcc": 0.5 if seed == 4 else mcc}
        for name, mcc in (("down", down), ("up", up), ("constant", 0.999))
        for seed in range(5)
    )


def judged(table: pd.DataFrame) -> Run:
    """Of a loss that falls over the last tenth of training."""
    analysis, run = ANALYSES["transition"], found(TRANSITION, TRUE_L0, table)
    run.curves = pd.DataFrame(
        {"sae_id": sae_id, "step": step, "mse_loss": 2.0 if step < 900 else 0.5}
        for sae_id in table["sae_id"]
        for step in (0, 850, 950, 1000)
    )
    run.tables |= analysis.measure(run)
    run.verdict = analysis.judge(run)
    return run


@pytest.mark.parametrize(
    ("down", "up", "expected"),
    [
        (0.995, 0.9, [True, True]),
        (0.97, 0.9, [False, True]),
        (0.995, 0.995, [True, False]),
        (math.nan, 0.9, [None, True]),
        (0.995, math.nan, [True, None]),
    ],
)
def test_judged_by_the_median_seed(down: float, up: float, expected: list[bool]) -> None:
    verdict = judged(transitions(down, up)).verdict
    assert holds(verdict) == expected
    assert "median 0.999, 4 of 5 above" in verdict.remarks[0]
    if down == 0.995:
        assert verdict.checks[0].measured == (
            "median 0.995, 4 of 5 above 0.99 (0.995, 0.995, 0.995, 0.995, 0.500)"
        )


def test_a_run_that_diverged_is_no_evidence() -> None:
    rows = transitions(0.995, 0.9)
    rows.loc[(rows["schedule"] == "up") & (rows["mcc"] == 0.9), "mcc"] = math.nan
    check = judged(rows).verdict.checks[1]
    assert check.holds is None
    assert check.measured.startswith("median 0.500, 0 of 1 above 0.99 (0.500); diverged")
    assert check.measured.endswith("up_0, up_1, up_2, up_3")
    rows.loc[rows["schedule"] == "up", "mcc"] = math.nan
    assert holds(judged(rows).verdict) == [True, None]


def test_how_the_loss_moved_at_the_end_is_in_the_table() -> None:
    table = judged(transitions(0.9, 0.9)).tables["by_schedule"].frame
    assert table["mse_loss_tenth_before"].tolist() == [2.0] * 3
    assert table["mse_loss_last_tenth"].tolist() == [0.5] * 3
    assert table["median_mcc"].tolist() == [0.9, 0.9, 0.999]


def test_a_run_of_cheating(tmp_path: Path) -> None:
    run = finished(few(CHEATING, "k_5", "k_9", "k_11"), tmp_path / "run")
    assert_run_is_whole(run, ["tradeoff"])
    frame = run.tables["tradeoff"].frame
    assert frame["k"].tolist() == [k for k in (5, 9, 11) for _ in range(3)]
    # At the right k the two are one SAE.
    at_right = frame.loc[frame["k"] == 11].set_index("sae")["mse"]
    assert at_right[TRAINED] == at_right[RIGHT]


def test_a_run_of_ground_truth_init(tmp_path: Path) -> None:
    ids = [f"k_{k}_{world}_world" for k in (5, 11) for world in ("first", "second")]
    run = finished(few(GROUND_TRUTH_INIT, *ids), tmp_path / "run")
    assert_run_is_whole(run, ["start_and_end"])
    frame = run.tables["start_and_end"].frame
    assert frame["mcc_start"].tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    low = frame.loc[frame["k"] == 5]
    assert max(low["mcc_end"].tolist()) < 0.99
    assert max(low["mse_end"].tolist()) < min(low["mse_start"].tolist())


def test_a_run_of_transition(tmp_path: Path) -> None:
    ids = [f"{way}_seed_{seed}" for way in ("down", "up", "constant") for seed in (0, 1)]
    run = finished(few(TRANSITION, *ids), tmp_path / "run")
    assert None not in holds(run.verdict)
    ks = run.curves.loc[run.curves["sae_id"] == "down_seed_0", "k"].tolist()
    assert (ks[0], ks[-1]) == (20.0, 11.0)
    assert_run_is_whole(run, ["by_schedule"])
