"""The rule, on evidence made by hand: what is recommended, and each reason not to."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from sparse_but_wrong.l0.recommend import (
    SCORE_WEIGHT,
    SMALLEST_HALF_WIDTH,
    Curve,
    recommend_l0,
    useful_n,
)
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
    ("given", "doubt"),
    [
        ({"counts": [count(presence(n_directions=60))]}, r"too narrow.*about 60.*Use d_sae ≥ 60"),
        ({"counts": [count(presence(above_cut=8.0))]}, r"do not part: 20%"),
        ({"counts": [count(presence(residual=0.3))]}, r"leave 30% of the variance over"),
        (
            {
                "counts": [
                    count(presence(10.0, above_cut=9.5)),
                    count(presence(12.0, above_cut=11.4), "seed_1"),
                ]
            },
            r"starts disagree: they count from 10\.00 to 12\.00",
        ),
        ({"curves": table([11, 14, 20])}, r"does not reach below.*extend it to lower L0"),
        ({"curves": table([3, 5, 8])}, r"does not reach up to.*extend it to\s+higher L0"),
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
    assert "the count decides" in found.reasons[-1]


def test_saes_that_stick_at_the_l0_bracket_it() -> None:
    # JumpReLU SAEs of several coefficients, none of which came down below the truth.
    assert recommend_l0(sweep(curves=table([10.01, 10.02, 10.3, 14]))).l0 == 10
    assert recommend_l0(sweep(curves=table([10.01, 10.02, 14]))).l0 is None


def test_saes_that_diverged_do_not_matter() -> None:
    curves = table([4, 8, 10, 12, 7])
    curves.loc[4, curves.columns[2:]] = math.nan
    found = recommend_l0(sweep(curves=curves))
    assert found.l0 == 10
    assert [curve.verdict for curve in found.curves] == ["rises"] * 7


def test_verdicts_of_a_curve() -> None:
    assert Curve("c_dec", near=0.1, below=0.2).verdict == "rises"
    assert Curve("c_dec", near=0.2, below=0.1).verdict == "falls"
    assert Curve("c_dec", near=0.1, below=0.12).verdict == "flat"
    assert Curve("c_dec", near=0.1, below=math.nan).verdict == "unknown"


def test_useful_n() -> None:
    assert useful_n(10, 50) == (12, 15, 17, 19, 22, 24)
    assert useful_n(2, 50) == (12, 15, 17, 19, 22, 24)
    assert useful_n(15, 50)[0] == 19
    assert useful_n(30, 50) == ()
    assert all(n < 4 / 2 for n in useful_n(1, 4))
