"""SAEs that start at the true features."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from sparse_but_wrong.experiments.ground_truth_init import (
    GROUND_TRUTH_INIT,
    GroundTruthInit,
    judge_start_and_end,
)
from sparse_but_wrong.runs.spec import ExperimentSpec
from tests.experiments.small_specs import WORLD, assert_run_is_whole, run, shrunk, with_k


def test_the_published_setting() -> None:
    assert [(sae.world, sae.config["k"]) for sae in GROUND_TRUTH_INIT.saes] == [
        (world, k) for world in ("first", "second", "third") for k in (5, 11)
    ]
    assert all(sae.init == "true_features" for sae in GROUND_TRUTH_INIT.saes)
    assert GROUND_TRUTH_INIT.training.n_steps == 14_649
    assert ExperimentSpec.from_dict(GROUND_TRUTH_INIT.to_dict()) == GROUND_TRUTH_INIT
    GroundTruthInit().check(GROUND_TRUTH_INIT)


def table(**changes: float) -> pd.DataFrame:
    """Two worlds; `changes` are of the second, by column and k."""
    rows = []
    for world in ("first", "second"):
        for k, mcc, start, end in ((5, 0.77, 4.8, 2.6), (11, 0.999, 0.1, 0.1)):
            row = {
                "world": world,
                "k": k,
                "true_l0": 10.96,
                "mcc_start": 1.0,
                "mcc_end": mcc,
                "mse_start": start,
                "mse_end": end,
            }
            if world == "second":
                row |= {name: changes[f"{name}_{k}"] for name in row if f"{name}_{k}" in changes}
            rows.append(row)
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [True, True, True]),
        ({"mcc_end_5": 0.995}, [False, True, True]),
        ({"mcc_end_5": float("nan")}, [False, True, True]),
        ({"mse_end_5": 4.9}, [True, False, True]),
        ({"mcc_end_11": 0.97}, [True, True, False]),
    ],
)
def test_every_world_counts(changes: dict[str, float], expected: list[bool]) -> None:
    verdict = judge_start_and_end(table(**changes))
    assert [check.holds for check in verdict.checks] == expected


def test_the_numbers_are_told() -> None:
    verdict = judge_start_and_end(table())
    assert verdict.checks[0].measured == "1.000 → 0.770 (k = 5), 1.000 → 0.770 (k = 5)"
    assert verdict.checks[1].measured.startswith("4.8 → 2.6 (k = 5), ")


def test_without_a_low_k_nothing_is_said_of_it() -> None:
    rows = table()
    verdict = judge_start_and_end(rows.loc[rows["k"] == 11])
    assert [check.holds for check in verdict.checks] == [None, None, True]
    assert verdict.checks[0].measured == "there is no such SAE"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda spec: replace(spec, saes=(replace(spec.saes[0], init="random"), *spec.saes[1:])),
            "give SAE 'k_5_first_world' init: true_features",
        ),
        (lambda spec: replace(spec, saes=spec.saes[1::2]), "a k more than 1 below the true L0"),
        (lambda spec: replace(spec, saes=spec.saes[::2]), "a k within 1 of the true L0"),
    ],
)
def test_what_lacks_something_is_refused(change, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        GroundTruthInit().check(change(GROUND_TRUTH_INIT))


def test_a_run(tmp_path: Path) -> None:
    ks = {5: 1, 11: 3}
    spec = shrunk(
        GROUND_TRUTH_INIT,
        lambda sae: sae.world != "third",
        lambda sae: with_k(sae, ks[int(sae.factors["k"])]),
    )
    # The first world has no SAEs: what is drawn is of the first that has some.
    spec = replace(spec, worlds=dict.fromkeys(("third", "first", "second"), WORLD))
    results = run(spec, tmp_path / "run")
    assert_run_is_whole(results, ["start_and_end"])
    frame = results.tables["start_and_end"].frame
    assert frame["mcc_start"].tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert max(frame["mcc_end"].tolist()) < min(frame["mcc_start"].tolist())
    low = frame.loc[frame["k"] == 1]
    assert max(low["mse_end"].tolist()) < min(low["mse_start"].tolist())
