"""SAEs below, at and above the true L0, against the true features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.experiments.low_l0 import LOW_L0, judge_low_l0, summarise
from sparse_but_wrong.experiments.verdict import Verdict
from tests.experiments.tiny import assert_run_is_whole, finished, shrunk, with_k

TRUE_L0 = 10.95
GOOD = {5: 10, 9: 30, 11: 50, 14: 40, 18: 20}


def test_the_published_grid() -> None:
    assert [sae.config["k"] for sae in LOW_L0.saes] == [5, 9, 11, 14, 18]
    assert [sae.factors for sae in LOW_L0.saes] == [{"k": k} for k in (5, 9, 11, 14, 18)]
    assert LOW_L0.training.n_steps == 14_649


def recovery(recovered: dict[int, int]) -> pd.DataFrame:
    """Of 50 features so many are recovered at each k; feature 49 the worst."""
    return pd.DataFrame(
        {"k": k, "feature": i, "cosine": 0.999 if i < count else 0.8, "firing_probability": 0.05}
        for k, count in recovered.items()
        for i in range(50)
    )


def mixing(**changes: str) -> pd.DataFrame:
    """Pairs of correlations from −0.3 to 0.3 and what each k makes of them."""
    correlation = np.linspace(-0.3, 0.3, 62)
    kinds = {
        "mixed": correlation**3,
        "against": -correlation,
        "positive": correlation + 1,  # in order, but all positive
        "noise": np.random.default_rng(0).permutation(correlation),
    }
    by_k = {"k5": "mixed", "k9": "mixed", "k11": "noise", "k14": "noise", "k18": "noise"}
    return pd.concat(
        pd.DataFrame(
            {
                "k": int(k[1:]),
                "feature": 49,
                "other": np.arange(len(correlation)),
                "firing_correlation": correlation,
                "cosine": kinds[kind],
            }
        )
        for k, kind in {**by_k, **changes}.items()
    )


def judge(found: pd.DataFrame, pairs: pd.DataFrame) -> Verdict:
    return judge_low_l0(summarise(found, pairs), found, pairs, TRUE_L0)


def holds(found: pd.DataFrame, pairs: pd.DataFrame) -> list[bool | None]:
    return [check.holds for check in judge(found, pairs).checks]


def test_it_holds() -> None:
    verdict = judge(recovery(GOOD), mixing())
    assert [check.holds for check in verdict.checks] == [True] * 7
    right, order, sign = verdict.checks[:3]
    assert right.measured == "50 of 50; the smallest is 0.9990 (feature 0)"
    assert order.measured.startswith("1.00 (Spearman; Pearson 0.9")
    assert sign.measured == "100% of 42"
    assert verdict.checks[6].measured == (
        "20 of 50 against 50; the mean cosine is 0.880 against 0.999"
    )


@pytest.mark.parametrize(
    ("kind", "order", "sign"),
    [("against", False, False), ("positive", True, False), ("noise", False, False)],
)
def test_mixing_that_is_not_by_correlation_fails(kind: str, order: bool, sign: bool) -> None:
    found = holds(recovery(GOOD), mixing(k9=kind))
    assert found == [True, True, True, order, sign, True, True]


def test_a_feature_that_is_missed_at_the_right_k_fails_and_is_named() -> None:
    verdict = judge(recovery({**GOOD, 11: 49, 14: 49}), mixing())
    assert verdict.checks[0].holds is False
    assert verdict.checks[0].measured == "49 of 50; the smallest is 0.8000 (feature 49)"
    assert [check.holds for check in verdict.checks[5:]] == [False, True]
    assert verdict.remarks[0].startswith("Feature 49, which fires with probability 0.05")


def test_signs_where_something_was_mixed_in() -> None:
    pairs = mixing(k9="against")
    pairs.loc[pairs["k"] == 5, "cosine"] *= 3
    found = summarise(recovery(GOOD), pairs).set_index("k")
    assert found["mixed_with_sign"][[5, 9]].tolist() == [1, 0]
    assert found["recovered"].to_dict() == GOOD


def test_too_high_that_is_no_worse_fails() -> None:
    assert holds(recovery({**GOOD, 18: 50}), mixing()) == [True] * 6 + [False]


def test_pairs_that_cannot_be_judged() -> None:
    pairs = mixing()
    pairs["firing_correlation"] *= 0.1
    pairs.loc[pairs["k"] == 9, "cosine"] = np.nan
    assert holds(recovery(GOOD), pairs) == [True, True, None, None, None, True, True]


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (5, [True, None, None, True, True, True, True]),
        (14, [True, True, True, True, True, None, True]),
        (11, [None, True, True, True, True, None, None]),
    ],
)
def test_an_sae_that_diverged_is_no_evidence(k: int, expected: list) -> None:
    found, pairs = recovery(GOOD), mixing()
    for frame in (found, pairs):
        frame.loc[frame["k"] == k, "cosine"] = np.nan
    verdict = judge(found, pairs)
    assert [check.holds for check in verdict.checks] == expected
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
    found, pairs = (frame.loc[frame["k"].isin(ks)] for frame in (recovery(GOOD), mixing()))
    assert holds(found, pairs) == expected


def test_a_run(tmp_path: Path) -> None:
    ks = {5: 1, 11: 3, 18: 5}
    spec = shrunk(
        LOW_L0,
        lambda sae: sae.factors["k"] in ks,
        lambda sae: with_k(sae, ks[int(sae.factors["k"])]),
    )
    run = finished(spec, tmp_path / "run")
    assert len(run.verdict.checks) == 4
    assert_run_is_whole(run, ["by_k", "recovery", "mixing"])
    found = run.tables["mixing"].frame
    assert len(found) == 3 * 30
    # The same pair is correlated the same way round.
    one = found.loc[(found["feature"] == 1) & (found["other"] == 4), "firing_correlation"]
    other = found.loc[(found["feature"] == 4) & (found["other"] == 1), "firing_correlation"]
    assert one.tolist() == other.tolist()
    assert 0.001 < abs(one.iloc[0]) < 1
    means = run.tables["by_k"].frame["mean_cosine"].tolist()
    assert means == pytest.approx(run.table["mcc"].tolist(), abs=1e-6)
