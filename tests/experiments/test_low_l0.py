"""SAEs below, at and above the true L0, against the true features."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.experiments.low_l0 import LOW_L0, LowL0, judge_low_l0
from sparse_but_wrong.runs.spec import ExperimentSpec, WorldSpec
from tests.experiments.small_specs import assert_run_is_whole, run, shrunk, with_k

TRUE_L0 = 10.95


def test_the_published_grid() -> None:
    assert [sae.config["k"] for sae in LOW_L0.saes] == [5, 9, 11, 14, 18]
    assert [sae.factors for sae in LOW_L0.saes] == [{"k": k} for k in (5, 9, 11, 14, 18)]
    assert LOW_L0.training.n_steps == 14_649
    assert ExperimentSpec.from_dict(LOW_L0.to_dict()) == LOW_L0
    LowL0().check(LOW_L0)
    LowL0().check(LOW_L0.quick())


def recovery(recovered: dict[int, int]) -> pd.DataFrame:
    """Of 50 features so many are recovered at each k; feature 49 the worst."""
    return pd.DataFrame(
        [
            {"sae_id": f"k_{k}", "k": k, "feature": i, "cosine": 0.999 if i < count else 0.8}
            | {"firing_probability": 0.05}
            for k, count in recovered.items()
            for i in range(50)
        ]
    )


def mixing(**by_k: str) -> pd.DataFrame:
    """Pairs of correlations from −0.3 to 0.3 and what each k makes of them."""
    correlation = np.linspace(-0.3, 0.3, 62)
    noise = np.random.default_rng(0).permutation(correlation)
    kinds = {
        "mixed": correlation**3,
        "against": -correlation,
        # In order, but all positive.
        "positive": correlation + 1,
        "noise": noise,
    }
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "k": int(k[1:]),
                    "feature": 49,
                    "other": np.arange(len(correlation)),
                    "firing_correlation": correlation,
                    "cosine": kinds[kind],
                }
            )
            for k, kind in by_k.items()
        ]
    )


GOOD = {5: 10, 9: 30, 11: 50, 14: 40, 18: 20}


def judged(mixed: pd.DataFrame, recovered: dict[int, int]) -> list[bool | None]:
    return [check.holds for check in judge_low_l0(recovery(recovered), mixed, TRUE_L0).checks]


def test_it_holds() -> None:
    mixed = mixing(k5="mixed", k9="mixed", k11="noise", k14="noise", k18="noise")
    verdict = judge_low_l0(recovery(GOOD), mixed, TRUE_L0)
    assert [check.holds for check in verdict.checks] == [True] * 7
    right, order, sign = verdict.checks[:3]
    assert right.measured == "50 of 50; the smallest is 0.9990 (feature 0)"
    assert order.measured.startswith("1.00 (Spearman; Pearson 0.9")
    assert sign.claim.startswith("at k = 5 of pairs with |firing correlation| > 0.1 more than 90%")
    assert sign.measured == "100% of 42"
    assert verdict.checks[6].measured == (
        "20 of 50 against 50; the mean cosine is 0.880 against 0.999"
    )


@pytest.mark.parametrize(
    ("kind", "order", "sign"),
    [
        ("against", False, False),
        ("positive", True, False),
        ("noise", False, False),
    ],
)
def test_mixing_that_is_not_by_correlation_fails(kind: str, order: bool, sign: bool) -> None:
    mixed = mixing(k5="mixed", k9=kind, k11="noise", k14="noise", k18="noise")
    assert judged(mixed, GOOD) == [True, True, True, order, sign, True, True]


def test_a_feature_that_is_missed_at_the_right_k_fails_and_is_named() -> None:
    mixed = mixing(k5="mixed", k9="mixed", k11="noise", k14="noise", k18="noise")
    verdict = judge_low_l0(recovery({**GOOD, 11: 49, 14: 49}), mixed, TRUE_L0)
    assert verdict.checks[0].holds is False
    assert verdict.checks[0].measured == "49 of 50; the smallest is 0.8000 (feature 49)"
    assert [check.holds for check in verdict.checks[5:]] == [False, True]
    assert verdict.remarks[1].startswith(
        "Feature 49, which fires with probability 0.05, has no latent of its own at k = 11: the "
        "one left for it has a cosine of "
    )


def test_signs_where_something_was_mixed_in() -> None:
    mixed = mixing(k5="mixed", k9="against", k11="noise", k14="noise", k18="noise")
    mixed.loc[mixed["k"] == 5, "cosine"] *= 3
    remarks = judge_low_l0(recovery(GOOD), mixed, TRUE_L0).remarks
    assert "100% have the sign of their correlation" in remarks[1]
    assert "0% have the sign of their correlation" in remarks[2]
    assert remarks[2].endswith("among the others the |cosine| is at most 0.05.")


def test_too_high_that_is_no_worse_fails() -> None:
    mixed = mixing(k5="mixed", k9="mixed", k11="noise", k14="noise", k18="noise")
    assert judged(mixed, {**GOOD, 18: 50}) == [True] * 6 + [False]


def test_pairs_that_cannot_be_judged() -> None:
    mixed = mixing(k5="mixed", k9="mixed", k11="noise", k14="noise", k18="noise")
    mixed["firing_correlation"] *= 0.1
    mixed.loc[mixed["k"] == 9, "cosine"] = np.nan
    assert judged(mixed, GOOD) == [True, True, None, None, None, True, True]


def test_an_sae_that_diverged_is_no_evidence() -> None:
    mixed = mixing(k5="mixed", k9="mixed", k11="noise", k14="noise", k18="noise")
    found = recovery(GOOD)

    def without(k: int) -> list[bool | None]:
        gone, others = found.copy(), mixed.copy()
        for frame in (gone, others):
            frame.loc[frame["k"] == k, "cosine"] = np.nan
        verdict = judge_low_l0(gone, others, TRUE_L0)
        unjudged = [check for check in verdict.checks if check.holds is None]
        assert all("diverged" in check.measured for check in unjudged)
        assert not any("nan" in words for words in verdict.remarks)
        return [check.holds for check in verdict.checks]

    assert without(5) == [True, None, None, True, True, True, True]
    assert without(14) == [True, True, True, True, True, None, True]
    assert without(11) == [None, True, True, True, True, None, None]


def test_a_side_without_an_sae_is_not_judged() -> None:
    mixed = mixing(k5="mixed", k9="mixed", k11="noise", k14="noise", k18="noise")
    found = recovery(GOOD)

    def of(*ks: int) -> list[bool | None]:
        rows, pairs = (frame.loc[frame["k"].isin(ks)] for frame in (found, mixed))
        return [check.holds for check in judge_low_l0(rows, pairs, TRUE_L0).checks]

    assert of(11, 14) == [True, None, True]
    assert of(9, 11) == [True, True, True, None]
    assert of(9, 14) == [None, True, True, None]  # nothing at the true L0 to compare with


def _world(spec: ExperimentSpec, **changes: object) -> ExperimentSpec:
    world: WorldSpec = replace(spec.worlds["world"], **changes)  # type: ignore[arg-type]
    return replace(spec, worlds={"world": world})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: _world(spec, correlation=None), "has no correlation"),
        (
            lambda spec: _world(spec, firing_probabilities=(1.0,) + (0.2,) * 49),
            "firing_probabilities[0] is 1.0",
        ),
        (lambda spec: replace(spec, saes=spec.saes[2:]), "no SAE with a k below it"),
        (lambda spec: replace(spec, saes=spec.saes[:3]), "no SAE with a k above it"),
        (
            lambda spec: replace(spec, saes=tuple(with_k(sae, 5) for sae in spec.saes[:1])),
            "SAE 'k_5' needs d_sae = 50; it has 6",
        ),
    ],
)
def test_what_lacks_something_is_refused(change, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LowL0().check(change(LOW_L0))


def test_a_run(tmp_path: Path) -> None:
    ks = {5: 1, 11: 3, 18: 5}
    spec = shrunk(
        LOW_L0,
        lambda sae: sae.factors["k"] in ks,
        lambda sae: with_k(sae, ks[int(sae.factors["k"])]),
    )
    results = run(spec, tmp_path / "run")
    assert len(results.verdict.checks) == 4
    assert_run_is_whole(results, ["recovery", "mixing"])
    found = results.tables["mixing"].frame
    assert len(found) == 3 * 30
    # The same pair is correlated the same way round.
    one = found.loc[(found["feature"] == 1) & (found["other"] == 4), "firing_correlation"]
    other = found.loc[(found["feature"] == 4) & (found["other"] == 1), "firing_correlation"]
    assert one.tolist() == other.tolist()
    assert 0.001 < abs(one.iloc[0]) < 1
    cosines = results.tables["recovery"].frame
    means = [cosines.loc[cosines["k"] == k, "cosine"].mean() for k in (1, 3, 5)]
    assert means == pytest.approx(results.table["mcc"].tolist(), abs=1e-6)
