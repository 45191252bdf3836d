"""The sweep of k over several seeds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.experiments.batchtopk import BATCHTOPK, BatchTopK, judge_over_seeds
from sparse_but_wrong.experiments.worlds import FIFTY_FEATURES
from sparse_but_wrong.runs.spec import ExperimentSpec
from tests.experiments.small_specs import assert_run_is_whole, run, shrunk, with_k

TRUE_L0 = 10.95


def test_the_published_grid() -> None:
    assert [(sae.factors["k"], sae.factors["seed"]) for sae in BATCHTOPK.saes] == [
        (k, seed) for k in range(1, 26) for seed in range(5)
    ]
    assert BATCHTOPK.saes[7].sae_id == "k_2_seed_2"
    assert all(sae.config["k"] == sae.factors["k"] for sae in BATCHTOPK.saes)
    assert all(sae.architecture == "batchtopk" for sae in BATCHTOPK.saes)
    assert BATCHTOPK.training.n_steps == 14_649
    assert BATCHTOPK.projection_n == tuple(range(12, 26))
    assert BATCHTOPK.worlds == {"world": FIFTY_FEATURES}
    assert ExperimentSpec.from_dict(BATCHTOPK.to_dict()) == BATCHTOPK
    BatchTopK().check(BATCHTOPK)
    BatchTopK().check(BATCHTOPK.quick())


def table(best_k: int, *, odd_seed: bool = False, d_sae: int = 50) -> pd.DataFrame:
    """Every figure grows with the distance from `best_k`; thresholded L0 is 0.1 below k."""
    rows = []
    for k in range(1, 26):
        for seed in range(5):
            away = abs(k - best_k) / 10
            if odd_seed and seed == 3:  # one seed of every k is best at 20
                away = abs(k - 20) / 10
            rows.append(
                {
                    "sae_id": f"k_{k}_seed_{seed}",
                    "added": False,
                    "k": k,
                    "seed": seed,
                    "l0": k - 0.1,
                    "c_dec": 0.02 + away,
                    "c_enc": 0.03 + away,
                    "mcc": 1 - away / 3,
                    **{f"s_{n}": 0.001 + away for n in range(d_sae)},
                }
            )
    return pd.DataFrame(rows)


def test_it_holds_where_all_are_smallest_at_the_truth() -> None:
    verdict = judge_over_seeds(table(11), BATCHTOPK.projection_n, TRUE_L0)
    assert [check.holds for check in verdict.checks] == [True, True, True]
    # n = 25 is half of d_sae, and the median says nothing.
    assert verdict.checks[0].claim.startswith("for n = 12–24 s_n^dec")
    assert verdict.checks[1].measured == (
        "0.0200 at k = 11 (L0 10.90); away from the true L0 at least 0.1200, at k = 10"
    )
    assert any("differs from k by up to 0.10" in remark for remark in verdict.remarks)
    assert any(
        "above 0.99 in 0 of 5 at k = 10, 5 of 5 at k = 11" in remark for remark in verdict.remarks
    )


def test_it_fails_where_they_are_smallest_elsewhere() -> None:
    verdict = judge_over_seeds(table(14), BATCHTOPK.projection_n, TRUE_L0)
    assert [check.holds for check in verdict.checks] == [False, False, False]
    assert "0.0200 at k = 14" in verdict.checks[1].measured


@pytest.mark.parametrize(("column", "at"), [("c_dec", 1), ("c_enc", 2)])
def test_each_figure_is_judged_by_itself(column: str, at: int) -> None:
    rows = table(11)
    rows.loc[rows["k"] == 7, column] = 0.001
    holds = [check.holds for check in judge_over_seeds(rows, (12, 14), TRUE_L0).checks]
    assert holds == [index != at for index in range(3)]


def test_it_is_the_mean_over_seeds_that_counts() -> None:
    verdict = judge_over_seeds(table(11, odd_seed=True), BATCHTOPK.projection_n, TRUE_L0)
    assert [check.holds for check in verdict.checks] == [True, True, True]


@pytest.mark.parametrize(
    ("ks", "side"), [((11,), "below or above"), (range(11, 20), "below"), (range(3, 12), "above")]
)
def test_without_a_side_nothing_is_judged(ks, side: str) -> None:
    rows = table(11)
    verdict = judge_over_seeds(rows.loc[rows["k"].isin(list(ks))], (12, 14), TRUE_L0)
    assert [check.holds for check in verdict.checks] == [None, None, None]
    for check in verdict.checks[1:]:
        assert check.measured.endswith(f"the sweep has no SAE more than 1 {side} it")


@pytest.mark.parametrize("seeds", [[2], [0, 1, 2, 3, 4]])
def test_an_sae_that_diverged_is_told_and_not_averaged_away(seeds: list[int]) -> None:
    rows = table(11)
    gone = (rows["k"] == 7) & rows["seed"].isin(seeds)
    rows.loc[gone, [c for c in rows if c not in ("sae_id", "added", "k", "seed")]] = np.nan
    verdict = judge_over_seeds(rows, (12, 14), TRUE_L0)
    assert [check.holds for check in verdict.checks] == [None, None, None]
    assert f"; not judged, as {len(seeds)} of the SAEs diverged" in verdict.checks[1].measured
    ids = ", ".join(f"k_7_seed_{seed}" for seed in seeds)
    assert verdict.remarks[-1] == f"SAEs that diverged: {ids}."
    assert any("what is said of s_n^dec is not judged" in remark for remark in verdict.remarks)


def test_a_figure_that_is_missing_counts_where_it_is_looked_at() -> None:
    rows = table(11)
    rows.loc[3, "c_enc"] = np.inf
    holds = [check.holds for check in judge_over_seeds(rows, (12, 14), TRUE_L0).checks]
    assert holds == [True, True, None]


def _without_n(spec: ExperimentSpec) -> ExperimentSpec:
    return replace(spec, projection_n=(25, 30))


def _without_seed(spec: ExperimentSpec) -> ExperimentSpec:
    first = replace(spec.saes[0], factors={"k": 1})
    return replace(spec, saes=(first, *spec.saes[1:]))


def _other_architecture(spec: ExperimentSpec) -> ExperimentSpec:
    return replace(spec, saes=(replace(spec.saes[0], architecture="topk"), *spec.saes[1:]))


def _other_k(spec: ExperimentSpec) -> ExperimentSpec:
    first = replace(spec.saes[0], factors={"k": 3, "seed": 0})
    return replace(spec, saes=(first, *spec.saes[1:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_n, "needs a projection_n below half of d_sae; the spec 'batchtopk' has 25, 30"),
        (_without_seed, "a number as the factor 'seed' of every SAE; of SAE 'k_1_seed_0' it has"),
        (_other_architecture, "SAE 'k_1_seed_0' has the architecture 'topk'"),
        (_other_k, "'k_1_seed_0' has the factor k = 3, but its config k = 1"),
        (lambda spec: replace(spec, saes=()), "has no SAEs"),
    ],
)
def test_what_lacks_something_is_refused(change, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        BatchTopK().check(change(BATCHTOPK))


def test_a_run(tmp_path: Path) -> None:
    ks = {1: 2, 11: 3, 25: 4}
    spec = shrunk(
        BATCHTOPK,
        lambda sae: sae.factors["k"] in ks and sae.factors["seed"] in (0, 1),
        lambda sae: with_k(sae, ks[int(sae.factors["k"])]),
        projection_n=(1, 2),
    )
    results = run(spec, tmp_path / "run")
    assert results.table["k"].tolist() == [2, 2, 3, 3, 4, 4]
    # After so short a training every thresholded L0 is above k, and none below the truth.
    assert min(results.table["l0"].tolist()) > 3
    assert [check.holds for check in results.verdict.checks] == [None, None, None]
    assert_run_is_whole(results, [])
    assert (results.folder.plots_path / "similarity" / "c_enc.png").is_file()
