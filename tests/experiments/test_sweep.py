"""Sweeps: the published grids, where s_n^dec is smallest, and verdicts on tables made by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.experiments.registry import BATCHTOPK, JUMPRELU
from sparse_but_wrong.experiments.sweep import (
    Minimum,
    find_minima,
    judge_over_seeds,
    judge_projections,
    spread_out,
)
from sparse_but_wrong.experiments.verdict import Check, Verdict, in_lines
from sparse_but_wrong.runs.spec import ONLY_WORLD
from tests.experiments.tiny import assert_run_is_whole, few, finished, found, holds

TRUE_L0 = 10.95
Tables = tuple[pd.DataFrame, pd.DataFrame]


def test_the_published_grids() -> None:
    published = [sae for sae in JUMPRELU.saes if not sae.added]
    assert [sae.config["l0_coefficient"] for sae in published] == [
        *(0.05, 0.07, 0.09, 0.1, 0.3, 0.5, 0.75, 1.0, 1.2, 1.3, 1.4, 1.5)
    ]
    for sae in JUMPRELU.saes:
        assert {**sae.config, "l0_coefficient": None} == {
            "d_sae": 50,
            "l0_coefficient": None,
            "jumprelu_bandwidth": 2.0,
            "jumprelu_init_threshold": 0.1,
            "jumprelu_sparsity_loss_mode": "tanh",
            "l0_warm_up_steps": 10_000,
            "normalize_activations": "expected_average_only_in",
        }
    added = [sae.config["l0_coefficient"] for sae in JUMPRELU.saes if sae.added]
    assert sum(coefficient > 1.5 for coefficient in added) >= 5  # the side below the truth
    assert [(sae.sae_id, sae.config["k"], sae.factors) for sae in BATCHTOPK.saes] == [
        (f"k_{k}_seed_{seed}", k, {"k": k, "seed": seed}) for k in range(1, 26) for seed in range(5)
    ]
    for spec in (JUMPRELU, BATCHTOPK):
        probabilities = spec.toy_world(ONLY_WORLD).firing_probabilities
        assert (probabilities[0], probabilities[-1]) == pytest.approx((0.3881, 0.05))
        assert sum(probabilities) == pytest.approx(10.9525)
        assert spec.training.total_training_samples == 15_000_000
        assert spec.training.train_batch_size_samples == 1024
        assert spec.training.n_steps == 14_649
        assert spec.projection_n == tuple(range(12, 26))


L0 = [22.0, 5.0, 10.9, 15.0, 8.0, 11.2]


def sweep_of(values: Sequence[float], l0: Sequence[float], n: int) -> Tables:
    """A sweep of SAEs with 30 latents, whose s_n is given."""
    projections = {i: values if i == n else [1.0] * len(l0) for i in range(30)}
    return pd.DataFrame({"l0": l0}), pd.DataFrame(projections)


def minimum(values: Sequence[float], l0: Sequence[float] = L0) -> Minimum:
    (of_12,) = find_minima(*sweep_of(values, l0, 12), [12])
    return of_12


def test_where_the_smallest_is_and_how_wide_the_bottom() -> None:
    sharp = minimum([0.3, 0.5, 0.002, 0.33, 0.4, 0.0015])
    assert (sharp.l0, sharp.swept) == (11.2, (5.0, 22.0))
    assert sharp.bottom == (10.9, 11.2)  # within 1e-3 of the smallest
    assert (sharp.shape(11.0), sharp.shape(14.0)) == ("sharp", "away")
    flat = minimum([0.11, 0.3, 0.0007, 0.0003, 0.2, 0.05])
    assert (flat.l0, flat.bottom, flat.shape(11.0)) == (15.0, (10.9, 15.0), "flat")
    assert flat.n_higher_within == 1  # the SAE at 11.2
    # At a far too low L0 s_n is small again: the truth is bracketed, but no SAE at it is low.
    assert minimum([0.02, 0.3, 0.0205], [1.0, 11.0, 20.0]).shape(11.0) == "away"
    # SAEs that diverged are left out, and n from half of the latents on.
    assert minimum([0.0, math.nan, 0.5], [math.nan, 11.0, 12.0]).l0 == 12.0
    assert find_minima(*sweep_of([0.0], [math.nan], 12), [12]) == []
    of_n = find_minima(*sweep_of([0.1] * 6, L0, 12), range(10, 20))
    assert [f.n for f in of_n] == [10, 11, 12, 13, 14]


@pytest.mark.parametrize(
    ("l0", "s_5", "outcome", "words"),
    [
        ([2.0, 4.0, 8.0], [0.3, 0.001, 0.2], "holds", "1 of 1 n; .* at L0 4.00 for n = 5$"),
        ([2.0, 4.0, 8.0], [0.3, 0.0015, 0.001], "holds", "L0 8.00"),  # the two are alike
        ([2.0, 4.0, 8.0], [0.3, 0.1, 0.001], "fails", "0 of 1 n; .* at L0 8.00"),
        ([0.5, 4.0, 8.0], [0.001, 0.1, 0.001], "fails", "0 of 1"),
        ([4.0], [0.1], "not judged", "below or above"),
        ([4.0, 8.0], [0.001, 0.1], "not judged", "below"),
        ([2.0, 4.0], [0.1, 0.001], "not judged", "above"),
    ],
)
def test_the_smallest_has_to_be_at_the_truth(
    l0: list[float], s_5: list[float], outcome: str, words: str
) -> None:
    tables = sweep_of(s_5, l0, 5)
    verdict = judge_projections(*tables, [5], true_l0=4.0)
    assert verdict.outcome == outcome
    assert re.search(words, verdict.checks[0].measured)
    # From half of the latents on there is nothing to judge.
    assert judge_projections(*tables, [15], true_l0=4.0).outcome == "not judged"


def test_a_flat_bottom_is_called_noise_with_what_sticks_out_of_it() -> None:
    tables = sweep_of([0.11, 0.3, 0.0007, 0.0003, 0.2, 0.05], L0, 12)
    (remark,) = judge_projections(*tables, [12], 11.0).remarks
    assert "noise" in remark
    assert "from L0 10.90 to 15.00, 1 between" in remark
    assert (
        judge_projections(*sweep_of([0.3, 0.5, 0.002, 0.33, 0.4, 1], L0, 12), [12], 11).remarks
        == ()
    )


def test_some_n_stand_for_all() -> None:
    assert spread_out(range(12, 26)) == (12, 16, 20, 24)
    assert spread_out([3]) == (3,)


@pytest.mark.parametrize(
    ("each", "outcome"),
    [
        ([True, True], "holds"),
        ([True, False], "fails"),
        ([None, False], "fails"),
        ([True, None], "not judged"),
        ([], "not judged"),
    ],
)
def test_the_outcome_follows_from_the_checks(each: list[bool | None], outcome: str) -> None:
    verdict = Verdict(tuple(Check("c", "m", h) for h in each))
    assert verdict.outcome == verdict.to_dict()["outcome"] == outcome


def test_unjudged_keeps_the_numbers() -> None:
    verdict = Verdict((Check("big", "3.2", True),), ("remark",)).unjudged("quick")
    assert verdict.outcome == "not judged"
    assert in_lines(verdict) == ["[not judged] big: 3.2", "quick", "remark"]


def over_seeds(best_k: int = 11, *, odd_seed: bool = False) -> Tables:
    """Every metric grows with the distance from `best_k`; thresholded L0 is 0.1 below k."""
    k, seed = pd.Series(np.repeat(range(1, 26), 5)), pd.Series(list(range(5)) * 25)
    away = (k - best_k).abs() / 10
    if odd_seed:  # one seed of every k is best at 20
        away = away.where(seed != 3, (k - 20).abs() / 10)
    metrics = {"l0": k - 0.1, "c_dec": 0.02 + away, "c_enc": 0.03 + away, "mcc": 1 - away / 3}
    sae_ids = "k_" + k.astype(str) + "_seed_" + seed.astype(str)
    table = pd.DataFrame({"sae_id": sae_ids, "k": k, "seed": seed, **metrics})
    return table, pd.DataFrame(dict.fromkeys(range(50), 0.001 + away))


def judge(tables: Tables, ns: Sequence[int] = (12, 14)) -> Verdict:
    return judge_over_seeds(found(replace(BATCHTOPK, projection_n=tuple(ns)), TRUE_L0, *tables))


def test_means_that_are_all_smallest_at_the_truth() -> None:
    verdict = judge(over_seeds(), BATCHTOPK.projection_n)
    assert holds(verdict) == [True, True, True]
    # n = 25 is half of d_sae, and the median says nothing.
    assert "n = 12–24 " in verdict.checks[0].claim
    assert verdict.checks[1].measured == (
        "0.0200 at k = 11 (L0 10.90); away from the true L0 at least 0.1200, at k = 10"
    )
    said = " ".join(verdict.remarks)
    assert "up to 0.10" in said
    assert "0 of 5 at k = 10, 5 of 5 at k = 11" in said
    # It is the mean over seeds that counts.
    assert holds(judge(over_seeds(odd_seed=True))) == [True, True, True]


def test_means_that_are_smallest_elsewhere() -> None:
    verdict = judge(over_seeds(14))
    assert holds(verdict) == [False, False, False]
    assert "0.0200 at k = 14" in verdict.checks[1].measured


@pytest.mark.parametrize(("column", "at"), [("c_dec", 1), ("c_enc", 2)])
def test_each_metric_is_judged_by_itself(column: str, at: int) -> None:
    table, projections = over_seeds()
    wrong = table.assign(**{column: table[column].where(table["k"] != 7, 0.001)})
    assert holds(judge((wrong, projections))) == [index != at for index in range(3)]
    table.loc[3, column] = np.inf
    assert holds(judge((table, projections))) == [None if i == at else True for i in range(3)]


@pytest.mark.parametrize(
    ("ks", "side"), [([11], "below or above"), (range(11, 20), "below"), (range(3, 12), "above")]
)
def test_without_a_side_nothing_is_judged(ks: Sequence[int], side: str) -> None:
    table, projections = over_seeds()
    rows = table["k"].isin(list(ks))
    verdict = judge((table.loc[rows], projections.loc[rows]))
    assert holds(verdict) == [None, None, None]
    assert all(side in check.measured for check in verdict.checks)


@pytest.mark.parametrize("seeds", [[2], [0, 1, 2, 3, 4]])
def test_an_sae_that_diverged_is_told_and_not_averaged_away(seeds: list[int]) -> None:
    table, projections = over_seeds()
    gone = (table["k"] == 7) & table["seed"].isin(seeds)
    table.loc[gone, ["l0", "c_dec", "c_enc", "mcc"]] = np.nan
    projections.loc[gone] = np.nan
    verdict = judge((table, projections))
    assert holds(verdict) == [None, None, None]
    assert f"{len(seeds)} of the SAEs diverged" in verdict.checks[1].measured
    assert ", ".join(f"k_7_seed_{seed}" for seed in seeds) in verdict.remarks[-1]


def test_a_run_over_seeds(tmp_path: Path) -> None:
    ids = [f"k_{k}_seed_{seed}" for k in (1, 11, 25) for seed in (0, 1)]
    run = finished(replace(few(BATCHTOPK, *ids), projection_n=(12, 13)), tmp_path / "run")
    assert run.table["k"].tolist() == [1, 1, 11, 11, 25, 25]
    assert None not in holds(run.verdict)
    assert_run_is_whole(run)
    assert (run.folder.plots_path / "similarity" / "c_enc.png").is_file()
