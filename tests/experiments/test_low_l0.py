"""SAEs below, at and above the true L0, against the true features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.experiments.low_l0 import judge_low_l0, summarise
from sparse_but_wrong.experiments.registry import LOW_L0
from sparse_but_wrong.experiments.verdict import Verdict
from tests.experiments.tiny import assert_run_is_whole, few, finished, found, holds

TRUE_L0 = 10.95
GOOD = {5: 10, 9: 30, 11: 50, 14: 40, 18: 20}
CORRELATION = np.linspace(-0.3, 0.3, 62)
MIXED = {
    "mixed": CORRELATION**3,
    "against": -CORRELATION,
    "positive": CORRELATION + 1,  # in order, but all positive
    "noise": np.random.default_rng(0).permutation(CORRELATION),
}


def test_the_published_grid() -> None:
    assert [(sae.config["k"], sae.factors) for sae in LOW_L0.saes] == [
        (k, {"k": k}) for k in (5, 9, 11, 14, 18)
    ]
    assert LOW_L0.training.n_steps == 14_649


def recovery(**changes: int) -> pd.DataFrame:
    """Of 50 features so many are recovered at each k; feature 49 the worst."""
    recovered = GOOD | {int(k[1:]): count for k, count in changes.items()}
    return pd.DataFrame(
        {"k": k, "feature": i, "cosine": 0.999 if i < count else 0.8, "firing_probability": 0.05}
        for k, count in recovered.items()
        for i in range(50)
    )


def mixing(**changes: str) -> pd.DataFrame:
    """Pairs of correlations from −0.3 to 0.3 and what each k makes of them."""
    kinds = {"k5": "mixed", "k9": "mixed", "k11": "noise", "k14": "noise", "k18": "noise"}
    pairs = {"feature": np.arange(62) % 50, "other": np.arange(62)}
    return pd.concat(
        pd.DataFrame(
            {"k": int(k[1:]), **pairs, "firing_correlation": CORRELATION, "cosine": MIXED[kind]}
        )
        for k, kind in {**kinds, **changes}.items()
    )


def judge(recovered: pd.DataFrame, pairs: pd.DataFrame) -> Verdict:
    by_k = summarise(recovered, pairs)
    run = found(LOW_L0, TRUE_L0, by_k=by_k, recovery=recovered, mixing=pairs)
    return judge_low_l0(run)


def test_it_holds() -> None:
    verdict = judge(recovery(), mixing())
    assert holds(verdict) == [True] * 7
    right, order, sign = verdict.checks[:3]
    assert right.measured == "50 of 50; the smallest is 0.9990 (feature 0)"
    assert order.measured.startswith("1.00 (Spearman; Pearson 0.9")
    assert sign.measured == "100% of 42"
    assert verdict.checks[6].measured == (
        "20 of 50 against 50; the mean cosine is 0.880 against 0.999"
    )


@pytest.mark.parametrize(
    ("recovered", "mixed", "expected"),
    [
        # Mixing that is not by correlation.
        ({}, {"k9": "against"}, [True, True, True, False, False, True, True]),
        ({}, {"k9": "positive"}, [True, True, True, True, False, True, True]),
        ({}, {"k9": "noise"}, [True, True, True, False, False, True, True]),
        # A k that is too high and no worse.
        ({"k18": 50}, {}, [True] * 6 + [False]),
        # A feature that is missed at the right k.
        ({"k11": 49, "k14": 49}, {}, [False, True, True, True, True, False, True]),
    ],
)
def test_each_part_may_fail(recovered: dict, mixed: dict, expected: list[bool]) -> None:
    verdict = judge(recovery(**recovered), mixing(**mixed))
    assert holds(verdict) == expected
    if "k11" in recovered:
        assert verdict.checks[0].measured == "49 of 50; the smallest is 0.8000 (feature 49)"
        assert verdict.remarks[0].startswith("Feature 49, which fires with probability 0.05")


def test_signs_where_something_was_mixed_in() -> None:
    pairs = mixing(k9="against")
    pairs.loc[pairs["k"] == 5, "cosine"] *= 3
    by_k = summarise(recovery(), pairs).set_index("k")
    assert by_k["mixed_with_sign"][[5, 9]].tolist() == [1, 0]
    assert by_k["recovered"].to_dict() == GOOD


def test_pairs_that_cannot_be_judged() -> None:
    pairs = mixing()
    pairs["firing_correlation"] *= 0.1
    pairs.loc[pairs["k"] == 9, "cosine"] = np.nan
    assert holds(judge(recovery(), pairs)) == [True, True, None, None, None, True, True]


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (5, [True, None, None, True, True, True, True]),
        (14, [True, True, True, True, True, None, True]),
        (11, [None, True, True, True, True, None, None]),
    ],
)
def test_an_sae_that_diverged_is_no_evidence(k: int, expected: list) -> None:
    recovered, pairs = recovery(), mixing()
    for frame in (recovered, pairs):
        frame.loc[frame["k"] == k, "cosine"] = np.nan
    verdict = judge(recovered, pairs)
    assert holds(verdict) == expected
    assert all("diverged" in check.measured for check in verdict.checks if check.holds is None)


@pytest.mark.parametrize(
    ("ks", "expected"),
    [
        ((11, 14), [True, True, None]),
        ((9, 11), [True, True, True, None]),
        ((9, 14), [None, True, True, None]),  # nothing at the true L0 to compare with
    ],
)
def test_a_side_without_an_sae_is_not_judged(ks: tuple[int, ...], expected: list) -> None:
    recovered, pairs = (frame.loc[frame["k"].isin(ks)] for frame in (recovery(), mixing()))
    assert holds(judge(recovered, pairs)) == expected


def test_a_run(tmp_path: Path) -> None:
    run = finished(few(LOW_L0, "k_5", "k_11", "k_18"), tmp_path / "run")
    assert len(run.verdict.checks) == 4
    assert_run_is_whole(run, ["by_k", "recovery", "mixing"])
    pairs = run.tables["mixing"].frame
    assert len(pairs) == 3 * 50 * 49
    # The same pair is correlated the same way round.
    between = pairs.groupby(["feature", "other"])["firing_correlation"].first().to_dict()
    assert between[1, 4] == between[4, 1]
    assert 0.001 < abs(between[1, 4]) < 1
    means = run.tables["by_k"].frame["mean_cosine"].tolist()
    assert means == pytest.approx(run.table["mcc"].tolist(), abs=1e-6)
