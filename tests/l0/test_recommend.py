"""The rule, on evidence made by hand: what is recommended, and each reason not to."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.l0.recommend import (
    SCORE_WEIGHT,
    SMALLEST_HALF_WIDTH,
    UNCONFIRMED,
    L0Recommendation,
    recommend_l0,
)
from sparse_but_wrong.l0.sweep import Count, EvaluatedSweep
from tests.l0.evidence import D_SAE, S_N, count, presence, sweep, table

FALLING = table([5, 10, 12]).assign(**{name: [0.1, 0.2, 0.2] for name in ("c_dec", *S_N)})
DISAGREEING = table([5, 10, 12]).assign(
    **{name: [0.4 if n < 19 else 0.1, 0.2, 0.2] for n, name in enumerate(S_N)}
)


def counted(l0: float = 10.0, group: str = "seed_0", **changes: Any) -> Count:
    return count(presence(l0, **changes), group)


def judged(*counts: Count, curves: pd.DataFrame | None = None) -> L0Recommendation:
    """The recommendation from some counts, or from two clear ones, and from some curves."""
    return recommend_l0(sweep(counts or None, curves))


def test_clear_evidence() -> None:
    found = judged()
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


@pytest.mark.parametrize(
    ("above_cut", "others"),
    [
        (9.99, []),
        (9.5, []),
        # Of the same SAEs, and one that ended in a poor minimum.
        (9.99, [counted()]),
        (9.99, [counted(12.0, "seed_1", residual=0.05)]),
    ],
    ids=["alone", "unclear", "one group", "poor"],
)
def test_a_count_that_is_unclear_or_not_borne_out_by_another_group_is_less_sure(
    above_cut: float, others: list[Count]
) -> None:
    found = judged(counted(above_cut=above_cut), *others)
    score = (10 - above_cut) / 10 + 0.002
    half = SMALLEST_HALF_WIDTH + SCORE_WEIGHT * score + 2 * 0.02 / 10 + UNCONFIRMED
    assert found.half_width == pytest.approx(half)
    assert "agreement of different SAEs was not seen" in found.reasons[2]
    assert "wider by ± 2%" in found.reasons[2]


def test_all_clear_counts_have_to_agree() -> None:
    best = counted(above_cut=9.999, residual=0.0005)
    # Far worse than the best, but clear too.
    found = judged(best, counted(15.0, "seed_1", above_cut=14.9))
    assert found.l0 is None
    assert any("they count from 10.00 to 15.00" in doubt for doubt in found.doubts)
    assert "are apart by up to 50.0%" in found.reasons[2]
    # A few per cent widen the interval instead.
    near = judged(best, counted(10.4, "seed_1", residual=0.01))
    assert near.interval is not None
    assert near.interval[1] > 10.4


UNCLEAR = counted(above_cut=9.6)
ELSEWHERE = counted(12.0, "seed_1", above_cut=11.4)


@pytest.mark.parametrize(
    ("counts", "curves", "doubt"),
    [
        ([counted(n_directions=60)], None, r"too narrow.*of 60 directions.*d_sae ≥ 60"),
        ([count(presence(), noise_cost=1.2)], None, r"no sign of features.*cost 1\.20 times"),
        ([counted(above_cut=8.0)], None, r"do not part: 20%"),
        ([counted(residual=0.3)], None, r"leave 30% of the variance unexplained"),
        ([counted(above_cut=9.5), ELSEWHERE], None, r"starts disagree.* from 10\.00 to 12\.00"),
        ([], None, r"no SAE of the sweep has a decoder to learn from"),
        (None, table([11, 14, 20]), r"no SAE clearly below.*4\.5 to 9\.2; extend it to lower"),
        (None, table([10, 10, 10, 14]), r"no SAE clearly below"),
        (None, table([1, 10, 14]), r"no SAE clearly below.*4\.5 to 9\.2; train some there"),
        (None, table([3, 5, 8]), r"no SAE clearly above.*more than 10\.8; extend it to higher"),
        (None, table([5, 8, 9.3]), r"no SAE clearly above"),
        (None, table([5, 14]), r"no SAE near.*next has an L0 of 14\.00\); train some there"),
        (None, table([5, 8, 10, 12], n_dead=30), r"most latents are dead.*30 of 50"),
        (
            [UNCLEAR],
            DISAGREEING,
            r"the n disagree:.*rises for 3 of 6 n \(s_12, s_15, s_17\) and falls for 3 \(s_19",
        ),
        ([UNCLEAR], FALLING, r"the curves point lower: 7 of 7"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_is_recommended(
    counts: list[Count] | None, curves: pd.DataFrame | None, doubt: str
) -> None:
    found = recommend_l0(sweep(counts, curves))
    assert (found.l0, found.interval, found.half_width) == (None, None, None)
    (said,) = found.doubts
    assert re.search(doubt, said)


def test_only_a_clear_count_stands_against_the_curves() -> None:
    clear, unclear = judged(curves=FALLING), judged(UNCLEAR, curves=FALLING)
    assert clear.l0 == 10
    assert "rises for 0 of 6" in clear.reasons[-1]
    assert "The count is clear and decides." in clear.reasons[-1]
    assert "may do that to these curves" in unclear.reasons[-1]
    assert "decides" not in unclear.reasons[-1]


@pytest.mark.parametrize(
    ("settings", "sticks"),
    [
        # JumpReLU SAEs of several coefficients, none of which came down below the truth.
        ({"coefficient": [1.0, 1.5, 2.0, 0.5]}, True),
        ({"target_l0": [6.0, 8.0, 10.0, 14.0]}, True),
        # What was not asked to go lower does not stick.
        ({}, False),
        ({"coefficient": [1.0, 1.0, 1.0, 0.5]}, False),
        ({"coefficient": [1.0, 1.1, 1.2, 0.5]}, False),
        ({"coefficient": [math.nan] * 4}, False),
        ({"target_l0": [6.0, 6.0, 10.0, 14.0]}, False),
        ({"target_l0": [9.5, 10.0, 12.0, 14.0]}, False),
    ],
)
def test_saes_that_stick_at_the_l0_bracket_it(settings: dict[str, Any], sticks: bool) -> None:
    found = judged(curves=table([10.01, 10.02, 10.3, 14]).assign(**settings))
    if sticks:
        assert found.l0 == 10
        assert "lower target L0 stay at this one" in found.reasons[-1]
    else:
        assert found.l0 is None
        assert "no SAE clearly below" in found.doubts[0]


@pytest.mark.parametrize("l0s", [[7, 9, 11, 13], [8, 12], [6, 8, 10, 12], [4.6, 10.7, 11]])
def test_coarse_grids_and_as_many_directions_as_latents_do(l0s: Sequence[float]) -> None:
    # Every second k, also where the truth lies between two.
    assert judged(counted(n_directions=D_SAE + 2), curves=table(l0s)).l0 == 10


def test_curves_alone_recommend_nothing() -> None:
    found = recommend_l0(sweep([]))
    assert found.l0 is None
    assert found.counted is None
    # Flat from 16 down to 9.9, and risen at 8.
    assert "is smallest at an L0 of 16 (s_12 to s_24)" in found.reasons[0]
    assert "down to an L0 of 9.9" in found.reasons[1]
    assert "risen by more at an L0 of 8" in found.reasons[1]
    assert found.reasons[2] == "The n agree on where that is."
    assert {(c.bottom.elbow, c.bottom.risen_at, c.verdict) for c in found.curves} == {
        (9.9, 8.0, "unknown")
    }
    # How far curves alone can be trusted is what the benchmark says.
    rows = pd.read_csv(Path(__file__).parents[2] / "benchmarks/l0/seed_0.csv")
    wide = rows.query("0 < n_features <= d_sae")
    assert f"on {len(wide)} worlds" in found.reasons[-1]
    for text, name in (("off by {:.0%} at the median", "s_n"), ("c_dec by {:.0%}", "c_dec")):
        error = np.median(np.abs(wide[f"error_argmin_{name}"].to_numpy(float)))
        assert text.format(error) in found.reasons[-1]


def with_shared(shared: Sequence[float], *counts: Count, **columns: Any) -> EvaluatedSweep:
    """Two seeds of every L0 from 4 to 16, that share so many latents, and are as much alike."""
    l0s = np.repeat([4.0, 5.0, 6.5, 8.0, 10.0, 12.5, 16.0], 2)
    alike = {"shared_latents": np.repeat(shared, 2), "pw_mcc": np.repeat(shared, 2) / 40}
    return sweep(list(counts), table(l0s.tolist(), n_dead=10).assign(**alike, **columns))


NARROW = counted(10.0, n_directions=60)
PEAK = [30 - 40 * math.log(l0 / 6.5) ** 2 for l0 in (4.0, 5.0, 6.5, 8.0, 10.0, 12.5, 16.0)]
"""A parabola in log L0 around 6.5, of at most 30 of the 40 latents that fire."""


def test_agreement_decides_where_saes_are_too_narrow() -> None:
    found = recommend_l0(with_shared(PEAK, NARROW))
    assert (found.basis, found.doubts) == ("agreement", ())
    # Where it is 4 % lower: of the parabola, and nearly so of the mean with the neighbours.
    assert found.l0 == pytest.approx(6.5, rel=0.03)
    width = math.exp((0.04 * 30 / 40) ** 0.5)
    assert found.interval == pytest.approx((6.5 / width, 6.5 * width), rel=0.06)
    assert "PW-MCC of 0.71" in found.reasons[0]
    assert "29 latents there, 71% of those that fire" in found.reasons[0]
    assert "too narrow" in found.reasons[1]
    # How many features are active is another question, and answered too.
    assert found.active.l0 == 10.0
    assert "for SAEs of 50 latents" in repr(found)
    assert "Features active per sample: 10," in repr(found)
    # A clear count that SAEs have room for stands.
    assert recommend_l0(with_shared(PEAK, counted())).basis == "count"
    assert recommend_l0(with_shared(PEAK)).l0 == found.l0


@pytest.mark.parametrize(
    ("on_noise", "doubt"),
    [
        (None, "may share latents on noise"),
        ({"l0": [6.0, 7.0], "shared_latents": [13.0, 15.0]}, ""),
        ({"l0": [6.0, 7.0], "shared_latents": [15.0, 17.0]}, "share 29 latents, and 16 if"),
        ({"l0": [14.0, math.nan], "shared_latents": [1.0, 1.0]}, "may share latents on noise"),
    ],
)
def test_shared_latents_are_held_against_those_on_noise(
    on_noise: dict[str, list[float]] | None, doubt: str
) -> None:
    given = with_shared(PEAK, replace(NARROW, noise_cost=1.2))
    found = recommend_l0(replace(given, on_noise=on_noise and pd.DataFrame(on_noise)))
    assert "no sign of features" in found.active.doubts[0]
    assert (found.l0 is None) == bool(doubt)
    assert doubt in (found.doubts or ("",))[-1]
    if not doubt:
        assert "noise of the same mean and covariance they share 14" in found.reasons[0]


def test_few_shared_latents_may_be_chance_though_they_are_twice_as_many() -> None:
    few = [n / 3 for n in PEAK]
    control = pd.DataFrame({"l0": [6.0, 7.0], "shared_latents": [4.0, 5.0]})
    found = recommend_l0(replace(with_shared(few, NARROW), on_noise=control))
    assert found.l0 is None
    assert "share 10 latents, and 4 if" in found.doubts[-1]
    # Two standard deviations of the difference, 2 √14 = 7.5.
    assert "and 7 more" in found.doubts[-1]


@pytest.mark.parametrize(
    ("shared", "doubt"),
    [
        ([30, 28, 25, 20, 15, 10, 5], "extend it to lower L0"),
        ([5, 10, 15, 20, 25, 28, 30], "extend it to higher L0"),
        ([1, 2, 3, 4, 3, 2, 1], "share 9% of those that fire"),
    ],
)
def test_agreement_does_not_decide(shared: list[float], doubt: str) -> None:
    found = recommend_l0(with_shared(shared, NARROW))
    assert (found.l0, found.interval) == (None, None)
    assert "too narrow" in found.doubts[0]
    assert doubt in found.doubts[1]


def test_saes_of_less_training_have_no_say_in_agreement() -> None:
    steps = [3_000] * 2 + [2_000] * 2 + [3_000] * 10
    found = recommend_l0(with_shared([20, 40, 25, 30, 28, 20, 10], NARROW, steps=steps))
    assert found.l0 == pytest.approx(8, rel=0.1)
    with_few = recommend_l0(
        with_shared([20, 40, 25, 30, 28, 20, 10], NARROW, steps=[3_000] * 6 + [2_000] * 8)
    )
    assert with_few.agreement is None
    assert with_few.l0 is None


def test_as_many_directions_as_can_be_learned_are_no_count() -> None:
    found = judged(counted(n_directions=74))
    assert found.active.l0 is None
    assert "at least 74 directions" in found.doubts[0]


def test_saes_that_diverged_do_not_matter() -> None:
    curves = table([4, 8, 10, 12, 7])
    curves.loc[4, curves.columns[2:]] = math.nan
    found = judged(curves=curves)
    assert found.l0 == 10
    assert [curve.verdict for curve in found.curves] == ["rises"] * 7


def test_saes_that_are_mostly_dead_are_left_out_of_the_curves() -> None:
    # The lowest has the smallest s_n, because nothing trained most of its directions.
    curves = table([4, 8, 10, 12])
    curves.loc[0, ["c_dec", *S_N]] = 1e-6
    alive = replace(sweep([], curves))
    assert all(curve.bottom.smallest_at == 4 for curve in recommend_l0(alive).curves)
    curves.loc[0, "dead_latents"] = 26
    wide = replace(sweep([], curves))
    found = recommend_l0(wide)
    assert found.l0 is None
    assert any("more than half of the latents of sae_0 are silent" in d for d in found.doubts)
    assert {(curve.bottom.smallest_at, curve.bottom.elbow) for curve in found.curves} == {(12, 10)}
    # On so few samples the mean latent is active but four times, and silence tells nothing.
    few = recommend_l0(replace(wide, n_samples=50))
    assert all(curve.bottom.smallest_at == 4 for curve in few.curves)
    assert len(few.doubts) == 1
