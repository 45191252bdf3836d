"""The sweep of k over several seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.experiments.batchtopk import BATCHTOPK, judge_over_seeds
from sparse_but_wrong.experiments.verdict import Verdict
from tests.experiments.tiny import assert_run_is_whole, finished, shrunk, with_k

TRUE_L0 = 10.95
Tables = tuple[pd.DataFrame, pd.DataFrame]


def test_the_published_grid() -> None:
    assert [(sae.factors["k"], sae.factors["seed"]) for sae in BATCHTOPK.saes] == [
        (k, seed) for k in range(1, 26) for seed in range(5)
    ]
    assert BATCHTOPK.saes[7].sae_id == "k_2_seed_2"
    assert all(sae.config["k"] == sae.factors["k"] for sae in BATCHTOPK.saes)
    assert BATCHTOPK.training.n_steps == 14_649
    assert BATCHTOPK.projection_n == tuple(range(12, 26))


def tables(best_k: int, *, odd_seed: bool = False, d_sae: int = 50) -> Tables:
    """Every metric grows with the distance from `best_k`; thresholded L0 is 0.1 below k."""
    settings = pd.DataFrame([(k, seed) for k in range(1, 26) for seed in range(5)])
    k, seed = settings[0], settings[1]
    away = (k - best_k).abs() / 10
    if odd_seed:  # one seed of every k is best at 20
        away = away.where(seed != 3, (k - 20).abs() / 10)
    table = pd.DataFrame(
        {
            "sae_id": [f"k_{a}_seed_{b}" for a, b in zip(k, seed, strict=True)],
            "k": k,
            "seed": seed,
            "l0": k - 0.1,
            "c_dec": 0.02 + away,
            "c_enc": 0.03 + away,
            "mcc": 1 - away / 3,
        }
    )
    return table, pd.DataFrame(dict.fromkeys(range(d_sae), 0.001 + away))


def judge(of: Tables, ns: tuple[int, ...] = (12, 14)) -> Verdict:
    return judge_over_seeds(*of, ns, TRUE_L0)


def holds(of: Tables) -> list[bool | None]:
    return [check.holds for check in judge(of).checks]


def test_it_holds_where_all_are_smallest_at_the_truth() -> None:
    verdict = judge(tables(11), BATCHTOPK.projection_n)
    assert [check.holds for check in verdict.checks] == [True, True, True]
    # n = 25 is half of d_sae, and the median says nothing.
    assert "n = 12–24 " in verdict.checks[0].claim
    assert verdict.checks[1].measured == (
        "0.0200 at k = 11 (L0 10.90); away from the true L0 at least 0.1200, at k = 10"
    )
    said = " ".join(verdict.remarks)
    assert "up to 0.10" in said
    assert "0 of 5 at k = 10, 5 of 5 at k = 11" in said


def test_it_fails_where_they_are_smallest_elsewhere() -> None:
    assert holds(tables(14)) == [False, False, False]
    assert "0.0200 at k = 14" in judge(tables(14)).checks[1].measured


@pytest.mark.parametrize(("column", "at"), [("c_dec", 1), ("c_enc", 2)])
def test_each_metric_is_judged_by_itself(column: str, at: int) -> None:
    table, projections = tables(11)
    table.loc[table["k"] == 7, column] = 0.001
    assert holds((table, projections)) == [index != at for index in range(3)]


def test_it_is_the_mean_over_seeds_that_counts() -> None:
    assert holds(tables(11, odd_seed=True)) == [True, True, True]


@pytest.mark.parametrize(
    ("ks", "side"), [([11], "below or above"), (range(11, 20), "below"), (range(3, 12), "above")]
)
def test_without_a_side_nothing_is_judged(ks, side: str) -> None:
    table, projections = tables(11)
    rows = table["k"].isin(list(ks))
    verdict = judge((table.loc[rows], projections.loc[rows]))
    assert [check.holds for check in verdict.checks] == [None, None, None]
    assert all(side in check.measured for check in verdict.checks[1:])


@pytest.mark.parametrize("seeds", [[2], [0, 1, 2, 3, 4]])
def test_an_sae_that_diverged_is_told_and_not_averaged_away(seeds: list[int]) -> None:
    table, projections = tables(11)
    gone = (table["k"] == 7) & table["seed"].isin(seeds)
    table.loc[gone, ["l0", "c_dec", "c_enc", "mcc"]] = np.nan
    projections.loc[gone] = np.nan
    verdict = judge((table, projections))
    assert [check.holds for check in verdict.checks] == [None, None, None]
    assert f"{len(seeds)} of the SAEs diverged" in verdict.checks[1].measured
    assert ", ".join(f"k_7_seed_{seed}" for seed in seeds) in verdict.remarks[-1]


def test_a_metric_that_is_missing_counts_where_it_is_looked_at() -> None:
    table, projections = tables(11)
    table.loc[3, "c_enc"] = np.inf
    assert holds((table, projections)) == [True, True, None]


def test_a_run(tmp_path: Path) -> None:
    ks = {1: 2, 11: 3, 25: 4}
    spec = shrunk(
        BATCHTOPK,
        lambda sae: sae.factors["k"] in ks and sae.factors["seed"] in (0, 1),
        lambda sae: with_k(sae, ks[int(sae.factors["k"])]),
        projection_n=(1, 2),
    )
    run = finished(spec, tmp_path / "run")
    assert run.table["k"].tolist() == [2, 2, 3, 3, 4, 4]
    # After so short a training every thresholded L0 is above k, and none below the truth.
    assert min(run.table["l0"].tolist()) > 3
    assert [check.holds for check in run.verdict.checks] == [None, None, None]
    assert_run_is_whole(run)
    assert (run.folder.plots_path / "similarity" / "c_enc.png").is_file()
