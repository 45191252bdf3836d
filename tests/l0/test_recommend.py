"""The rule, on evidence made by hand: what is recommended, and each reason not to."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.l0.recommend import (
    SCORE_WEIGHT,
    SMALLEST_HALF_WIDTH,
    UNCONFIRMED,
    recommend_l0,
)
from sparse_but_wrong.l0.sweep import too_wide
from tests.l0.evidence import D_SAE, count, presence, sweep, table


def test_clear_evidence() -> None:
    found = recommend_l0(sweep())
    assert found.l0 == 10.0
    assert found.doubts == ()
    # What is wrong with the directions: 0.001 lies below the cut, 0.002 is left over; the other
    # start counts 0.2 % more; two standard errors are 0.4 %.
    half = SMALLEST_HALF_WIDTH + SCORE_WEIGHT * (0.001 + 0.002) + 0.002 + 2 * 0.02 / 10
    assert found.half_width == pytest.approx(half)
    assert found.interval == pytest.approx((10 * (1 - half), 10 * (1 + half)))
    assert [curve.verdict for curve in found.curves] == ["rises"] * 7
    assert "rises for 6 of 6 n (s_12 to s_24), c_dec rises" in found.reasons[-1]
    assert "2 starts from 2 groups of SAEs agree within 0.2%" in found.reasons[2]


def test_an_unclear_count_widens_the_interval() -> None:
    unclear = recommend_l0(sweep([count(presence(above_cut=9.5))]))
    clear = recommend_l0(sweep([count(presence())]))
    assert unclear.half_width is not None
    assert clear.half_width is not None
    assert unclear.half_width == pytest.approx(clear.half_width + SCORE_WEIGHT * 0.049, abs=1e-9)
    assert "No second start" in clear.reasons[2]


@pytest.mark.parametrize(
    "others", [[], [count(presence())], [count(presence(12.0, residual=0.05), "seed_1")]]
)
def test_a_count_that_no_other_group_bears_out_is_less_sure(others: list) -> None:
    # None at all, one of the same SAEs, and one that ended in a poor minimum.
    found = recommend_l0(sweep([count(presence()), *others]))
    half = SMALLEST_HALF_WIDTH + SCORE_WEIGHT * 0.003 + 2 * 0.02 / 10 + UNCONFIRMED
    assert found.half_width == pytest.approx(half)
    assert "agreement of different SAEs was not seen" in found.reasons[2]
    assert "wider by ± 2%" in found.reasons[2]


def test_all_clear_counts_have_to_agree() -> None:
    best = count(presence(10.0, above_cut=9.999, residual=0.0005))
    # Far worse than the best, but clear too.
    other = count(presence(15.0, above_cut=14.9, residual=0.002), "seed_1")
    found = recommend_l0(sweep([best, other]))
    assert found.l0 is None
    assert any("they count from 10.00 to 15.00" in doubt for doubt in found.doubts)
    assert "are apart by up to 50.0%" in found.reasons[2]
    # A few per cent widen the interval instead.
    near = recommend_l0(sweep([best, count(presence(10.4, residual=0.01), "seed_1")]))
    assert near.interval is not None
    assert near.interval[1] > 10.4


@pytest.mark.parametrize(
    ("given", "doubt"),
    [
        ({"counts": [count(presence(n_directions=60))]}, r"too narrow.*about 60.*Use d_sae ≥ 60"),
        (
            {"counts": [count(presence(n_directions=74))]},
            r"made of at least 74 directions.*Use d_sae ≥ 74, better 100",
        ),
        ({"counts": [count(presence(), noise_cost=1.2)]}, r"no sign of features.*cost 1\.20 times"),
        ({"counts": [count(presence(above_cut=8.0))]}, r"do not part: 20%"),
        ({"counts": [count(presence(residual=0.3))]}, r"leave 30% of the variance unexplained"),
        (
            {
                "counts": [
                    count(presence(10.0, above_cut=9.5)),
                    count(presence(12.0, above_cut=11.4), "seed_1"),
                ]
            },
            r"starts disagree: they count from 10\.00 to 12\.00",
        ),
        (
            {"curves": table([11, 14, 20])},
            r"no SAE clearly below.*4\.5 to 9\.2; extend it to lower",
        ),
        ({"curves": table([10, 10, 10, 14])}, r"no SAE clearly below"),
        ({"curves": table([1, 10, 14])}, r"no SAE clearly below.*4\.5 to 9\.2; train some there"),
        (
            {"curves": table([3, 5, 8])},
            r"no SAE clearly above.*more than 10\.8; extend it to higher",
        ),
        ({"curves": table([5, 8, 9.3])}, r"no SAE clearly above"),
        ({"curves": table([5, 14])}, r"no SAE near.*next has an L0 of 14\.00\); train some there"),
        (
            {
                "counts": [count(presence(above_cut=9.6))],
                "curves": table([5, 10, 12]).assign(
                    **{f"s_{n}": [0.4 if n < 19 else 0.1, 0.2, 0.2] for n in range(D_SAE)}
                ),
            },
            r"the n disagree:.*rises for 3 of 6 n \(s_12, s_15, s_17\) and falls for 3 \(s_19",
        ),
        ({"curves": table([5, 8, 10, 12], n_dead=30)}, r"most latents are dead.*30 of 50"),
        (
            {
                "counts": [count(presence(above_cut=9.6))],
                "curves": table([5, 10, 12], truth=10).assign(
                    c_dec=[0.1, 0.2, 0.2], **{f"s_{n}": [0.1, 0.2, 0.2] for n in range(D_SAE)}
                ),
            },
            r"the curves point lower: 7 of 7",
        ),
        ({"counts": []}, r"no SAE of the sweep has a decoder to learn from"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_is_recommended(given: dict, doubt: str) -> None:
    found = recommend_l0(sweep(**given))
    assert found.l0 is None
    assert found.interval is None
    assert found.half_width is None
    assert len(found.doubts) == 1
    pd.testing.assert_series_equal(
        pd.Series(found.doubts).str.contains(doubt), pd.Series([True]), check_names=False
    )


def test_as_many_directions_as_latents_is_not_too_narrow() -> None:
    assert recommend_l0(sweep([count(presence(n_directions=D_SAE + 2))])).l0 == 10


def test_a_clear_count_stands_against_the_curves() -> None:
    falling = table([5, 10, 12]).assign(
        c_dec=[0.1, 0.2, 0.2], **{f"s_{n}": [0.1, 0.2, 0.2] for n in range(D_SAE)}
    )
    found = recommend_l0(sweep(curves=falling))
    assert found.l0 == 10
    assert "rises for 0 of 6" in found.reasons[-1]
    assert "The count is clear and decides." in found.reasons[-1]


def test_a_count_that_is_not_clear_does_not_decide() -> None:
    falling = table([5, 10, 12]).assign(
        c_dec=[0.1, 0.2, 0.2], **{f"s_{n}": [0.1, 0.2, 0.2] for n in range(D_SAE)}
    )
    found = recommend_l0(sweep([count(presence(above_cut=9.6))], falling))
    assert "the curves point lower" in found.doubts[0]
    assert "may do that to these curves" in found.reasons[-1]
    assert "decides" not in found.reasons[-1]


def test_saes_that_stick_at_the_l0_bracket_it() -> None:
    # JumpReLU SAEs of several coefficients, none of which came down below the truth.
    stuck = table([10.01, 10.02, 10.3, 14])
    assert recommend_l0(sweep(curves=stuck)).l0 is None
    found = recommend_l0(sweep(curves=stuck.assign(coefficient=[1.0, 1.5, 2.0, 0.5])))
    assert found.l0 == 10
    assert "lower target L0 stay at this one" in found.reasons[-1]
    assert recommend_l0(sweep(curves=stuck.assign(target_l0=[6.0, 8.0, 10.0, 14.0]))).l0 == 10


@pytest.mark.parametrize(
    "settings",
    [
        {"coefficient": [1.0, 1.0, 1.0, 0.5]},
        {"coefficient": [1.0, 1.1, 1.2, 0.5]},
        {"coefficient": [math.nan] * 4},
        {"target_l0": [6.0, 6.0, 10.0, 14.0]},
        {"target_l0": [9.5, 10.0, 12.0, 14.0]},
    ],
)
def test_what_was_not_asked_to_go_lower_does_not_stick(settings: dict) -> None:
    found = recommend_l0(sweep(curves=table([10.01, 10.02, 10.3, 14]).assign(**settings)))
    assert found.l0 is None
    assert "no SAE clearly below" in found.doubts[0]


@pytest.mark.parametrize("l0s", [[7, 9, 11, 13], [8, 12], [6, 8, 10, 12], [4.6, 10.7, 11]])
def test_coarse_grids_bracket_it_too(l0s: list[float]) -> None:
    # Every second k, also where the truth lies between two.
    assert recommend_l0(sweep(curves=table(l0s))).l0 == 10


def test_too_wide_to_count() -> None:
    wide = replace(sweep([]), not_counted=too_wide(2_048, 512))
    found = recommend_l0(wide)
    assert found.l0 is None
    assert found.counted is None
    assert "2,048 latents" in found.doubts[0]
    assert "up to 512 (count_up_to)" in found.doubts[0]
    assert "Raise count_up_to" in found.doubts[0]
    # Flat from 16 down to 9.9, and risen at 8.
    assert "is smallest at an L0 of 16 (s_12 to s_24)" in found.reasons[0]
    assert "down to an L0 of 9.9" in found.reasons[1]
    assert "risen by more at an L0 of 8" in found.reasons[1]
    assert found.reasons[2] == "The n agree on where that is."
    assert [(curve.bottom.elbow, curve.bottom.risen_at) for curve in found.curves] == [
        (9.9, 8.0)
    ] * 7
    assert {curve.verdict for curve in found.curves} == {"unknown"}


def test_how_far_curves_alone_can_be_trusted_is_what_the_benchmark_says() -> None:
    rows = pd.read_csv(Path(__file__).parents[2] / "benchmarks/l0/seed_0.csv")
    n_features = rows["n_features"].to_numpy()
    wide = (n_features > 0) & (rows["d_sae"].to_numpy() >= n_features)
    s_n, c_dec = (
        float(np.median(np.abs(rows[name].to_numpy(float)[wide])))
        for name in ("error_argmin_s_n", "error_argmin_c_dec")
    )
    said = recommend_l0(replace(sweep([]), not_counted="why")).reasons[-1]
    assert f"on {wide.sum()} worlds" in said
    assert f"off by {s_n:.0%} at the median" in said
    assert f"c_dec by {c_dec:.0%}" in said


def test_saes_that_diverged_do_not_matter() -> None:
    curves = table([4, 8, 10, 12, 7])
    curves.loc[4, curves.columns[2:]] = math.nan
    found = recommend_l0(sweep(curves=curves))
    assert found.l0 == 10
    assert [curve.verdict for curve in found.curves] == ["rises"] * 7


def test_saes_that_are_mostly_dead_are_left_out_of_the_curves() -> None:
    # The lowest has the smallest s_n, because nothing trained most of its directions.
    curves = table([4, 8, 10, 12])
    for column in ("c_dec", *(f"s_{n}" for n in range(50))):
        curves.loc[0, column] = 1e-6
    curves.loc[0, "dead_latents"] = 26
    wide = replace(sweep([], curves), not_counted="they are wide")
    found = recommend_l0(wide)
    assert found.l0 is None
    assert any("more than half of the latents of sae_0 are silent" in d for d in found.doubts)
    assert {(curve.bottom.smallest_at, curve.bottom.elbow) for curve in found.curves} == {(12, 10)}
    # On so few samples the mean latent is active but four times, and silence tells nothing.
    few = recommend_l0(replace(wide, n_samples=50))
    assert all(curve.bottom.smallest_at == 4 for curve in few.curves)
    assert len(few.doubts) == 1
    curves["dead_latents"] = 0
    alive = replace(sweep([], curves), not_counted="they are wide")
    assert all(curve.bottom.smallest_at == 4 for curve in recommend_l0(alive).curves)
