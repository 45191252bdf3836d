"""Reconstruction at each k, of SAEs trained there and of right ones held to it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from sparse_but_wrong.experiments.cheating import (
    CHEATING,
    RIGHT,
    TRAINED,
    TRUE,
    Cheating,
    judge_tradeoff,
)
from sparse_but_wrong.experiments.requirements import true_l0_of
from sparse_but_wrong.figures.heatmaps import decoder_cosines
from sparse_but_wrong.runs.spec import ExperimentSpec
from tests.experiments.small_specs import assert_run_is_whole, run, shrunk, with_k

TRUE_L0 = 10.95


def test_the_published_grid() -> None:
    assert [sae.config["k"] for sae in CHEATING.saes] == list(range(1, 26))
    assert CHEATING.training.n_steps == 14_649
    assert ExperimentSpec.from_dict(CHEATING.to_dict()) == CHEATING
    Cheating().check(CHEATING)


def test_features_whose_magnitude_is_clipped_do_not_count() -> None:
    world = replace(
        CHEATING.worlds["world"],
        firing_probabilities=(0.5, 0.4, 0.5, 0.4),
        mean_firing_magnitudes=(1.0, 0.0, 0.0, 1.0),
        std_firing_magnitudes=(0.0, 1.0, 0.0, 1.0),
    )
    spec = replace(CHEATING, worlds={"world": world}, saes=(), projection_n=())
    # 0.5 + 0.4 · ½ + 0 + 0.4 · Φ(1)
    assert true_l0_of(spec, "world") == pytest.approx(0.5 + 0.2 + 0.4 * 0.8413447, abs=1e-7)
    assert true_l0_of(CHEATING, "world") == pytest.approx(10.955, abs=0.01)


def tradeoff(trained: float = 0.5, right: float = 1.0, true: float = 1.1) -> pd.DataFrame:
    """Errors that fall with k, each kind by its own factor."""
    return pd.DataFrame(
        [
            {"k": k, "sae": kind, "mse": factor * (26 - k)}
            for k in range(1, 26)
            for kind, factor in ((TRAINED, trained), (RIGHT, right), (TRUE, true))
        ]
    )


def trained(mcc_below: float = 0.8) -> pd.DataFrame:
    return pd.DataFrame([{"k": k, "mcc": mcc_below if k < 10 else 0.999} for k in range(1, 26)])


def holds(errors: pd.DataFrame, table: pd.DataFrame) -> list[bool | None]:
    return [check.holds for check in judge_tradeoff(errors, table, TRUE_L0).checks]


def test_it_holds_where_wrong_saes_reconstruct_better() -> None:
    verdict = judge_tradeoff(tradeoff(), trained(), TRUE_L0)
    assert [check.holds for check in verdict.checks] == [True, True, True]
    assert "(k = 1–9)" in verdict.checks[0].claim
    assert verdict.checks[0].measured == (
        "9 of 9; MSE 10.50 against 21.00 at k = 5; MSE 8.50 against 17.00 at k = 9"
    )
    assert "the lowest MSE is that with k = 25" in verdict.remarks[1]


def test_it_fails_where_they_do_not() -> None:
    assert holds(tradeoff(right=0.4), trained()) == [False, True, True]
    assert holds(tradeoff(true=0.5), trained()) == [True, False, True]  # equal is not better
    assert holds(tradeoff(), trained(0.995)) == [True, True, False]


def test_one_k_where_they_do_not_is_enough() -> None:
    errors = tradeoff()
    errors.loc[(errors["k"] == 3) & (errors["sae"] == TRAINED), "mse"] = 30.0
    verdict = judge_tradeoff(errors, trained(), TRUE_L0)
    assert verdict.checks[0].holds is False
    assert verdict.checks[0].measured.startswith("8 of 9;")


def test_without_an_sae_on_a_side_nothing_is_judged_of_it() -> None:
    verdict = judge_tradeoff(tradeoff(), trained(), 1.5)
    assert [check.holds for check in verdict.checks] == [None, None, None]
    assert {check.measured for check in verdict.checks} == {
        "there is no SAE with a k more than 1 below the true L0 1.50"
    }
    verdict = judge_tradeoff(tradeoff(), trained(), 27.0)
    assert [check.holds for check in verdict.checks] == [None, True, False]
    assert verdict.checks[0].measured.endswith("; k = 25 is not at the true L0")


def test_the_third_check_is_of_every_sae_below_the_truth() -> None:
    claim = judge_tradeoff(tradeoff(trained=2), trained(), TRUE_L0).checks[2].claim
    assert claim.startswith(
        "none of the SAEs trained more than 1 below the true L0 has the true features"
    )


def test_a_k_near_the_truth_is_not_too_low() -> None:
    errors = tradeoff()
    errors.loc[(errors["k"] == 10) & (errors["sae"] == TRAINED), "mse"] = 30.0
    assert holds(errors, trained()) == [True, True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda spec: replace(spec, saes=spec.saes[9:]), "no SAE with a k below it"),
        (lambda spec: replace(spec, saes=spec.saes[:9]), "no SAE with a k at it"),
        (
            lambda spec: replace(spec, saes=(*spec.saes, replace(spec.saes[0], sae_id="again"))),
            "has several of one k",
        ),
        (
            lambda spec: replace(
                spec,
                saes=(
                    replace(
                        spec.saes[0],
                        config={**spec.saes[0].config, "k": 1.5},
                        factors={"k": 1.5},
                    ),
                    *spec.saes[1:],
                ),
            ),
            "that of SAE 'k_1' is 1.5",
        ),
    ],
)
def test_what_lacks_something_is_refused(change, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Cheating().check(change(CHEATING))


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = shrunk(
        CHEATING, lambda sae: float(sae.factors["k"]) <= 5, lambda s: with_k(s, s.config["k"])
    )
    # A k that is shown is also the right one.
    monkeypatch.setattr("sparse_but_wrong.experiments.cheating.SHOWN", (1, 3))
    panels = []

    def drawn(of: list) -> Figure:
        panels.extend(title for title, _ in of)
        return decoder_cosines(of)

    monkeypatch.setattr("sparse_but_wrong.figures.heatmaps.decoder_cosines", drawn)
    results = run(spec, tmp_path / "run")
    assert panels == ["Trained at $k = 1$", "Trained at $k = 3$"]
    assert_run_is_whole(results, ["tradeoff"])
    frame = results.tables["tradeoff"].frame
    assert frame["k"].tolist() == [k for k in range(1, 6) for _ in range(3)]
    # The true features, held to fewer and fewer.
    true = frame.loc[frame["sae"] == TRUE, "mse"].tolist()
    assert true[0] > true[1] > 0.1 > true[2]  # hardly anything is left to lose from k = 3 on
    # Held to its own k, the right SAE is the one trained there.
    at_3 = frame.loc[frame["k"] == 3].set_index("sae")["mse"]
    assert at_3[TRAINED] == at_3[RIGHT]
