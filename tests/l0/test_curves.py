"""What curves say, on curves made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparse_but_wrong.l0.curves import Curve, curves_in_words, read_curves, useful_n
from tests.l0.evidence import D_SAE, sweep, table


@pytest.mark.parametrize(
    ("near", "below", "verdict"),
    [(0.1, 0.2, "rises"), (0.2, 0.1, "falls"), (0.1, 0.12, "flat"), (0.1, math.nan, "unknown")],
)
def test_verdicts_of_a_curve(near: float, below: float, verdict: str) -> None:
    assert Curve(None, near, below).verdict == verdict


@pytest.mark.parametrize(
    ("l0", "d_sae", "ns"),
    [
        (10, 50, (12, 15, 17, 19, 22, 24)),
        (2, 50, (12, 15, 17, 19, 22, 24)),
        (15, 50, (19, 20, 21, 22, 23, 24)),
        (30, 50, ()),
        (1, 4, (1,)),
    ],
)
def test_useful_n(l0: float, d_sae: int, ns: tuple[int, ...]) -> None:
    assert useful_n(l0, d_sae) == ns


def test_near_is_the_next_above_where_nothing_is_nearer() -> None:
    c_dec = read_curves(sweep(curves=table([6, 8, 12, 14]).assign(c_dec=[4, 3, 1, 2])), 10.0)[0]
    assert (c_dec.near, c_dec.below) == (1, 3)
    assert math.isnan(read_curves(sweep(curves=table([6, 8, 14])), 10.0)[0].near)


def test_the_elbow() -> None:
    # Two seeds at each L0; one of the SAEs at 10 is in a poor minimum, which does not end the walk.
    l0s = [20, 20.1, 10, 10.1, 5, 5.1, 2, 2.1]
    c_dec = [0.10, 0.11, 0.12, 0.9, 0.12, 0.12, 0.2, 0.3]
    curve = read_curves(sweep(curves=table(l0s).assign(c_dec=c_dec)), None)[0]
    assert (curve.bottom.smallest_at, curve.bottom.elbow, curve.bottom.risen_at) == (20, 5, 2.1)
    assert curve.verdict == "unknown"


def test_a_sweep_that_ends_before_the_rise() -> None:
    curves = read_curves(sweep(curves=table([20, 14, 11])), None)
    assert all(curve.bottom.elbow == 11 and math.isnan(curve.bottom.risen_at) for curve in curves)
    words = curves_in_words(curves)
    assert "the sweep ends before it rises; extend it to lower L0" in words[1]


def test_a_sweep_that_ends_where_s_n_is_still_falling() -> None:
    curves = read_curves(sweep(curves=table([2, 4, 6, 8])), None)
    words = curves_in_words(curves)
    assert "For 6 of 6 n the sweep ends there" in words[1]
    assert "extend it to higher L0" in words[1]


def test_n_that_disagree() -> None:
    curves = table([4, 8, 16, 30])
    for n in range(D_SAE):
        curves[f"s_{n}"] = [0.9, 0.5, 0.1, 0.1] if n < 19 else [0.9, 0.1, 0.1, 0.1]
    words = curves_in_words(read_curves(sweep(curves=curves), None))
    assert "down to L0s of 8 to 16" in words[1]
    assert "risen by more at L0s of 4 to 8" in words[1]
    assert "The n disagree" in words[2]


@pytest.mark.filterwarnings("error")
def test_saes_that_all_diverged_say_nothing() -> None:
    curves = table([4, 8])
    curves[curves.columns[2:]] = np.nan
    assert curves_in_words(read_curves(sweep(curves=curves), None)) == ()
