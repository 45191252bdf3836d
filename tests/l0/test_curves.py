"""What curves say, on curves made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparse_but_wrong.l0.curves import Curve, read_curves, useful_n, words_of_curves_alone
from tests.l0.evidence import D_SAE, sweep, table


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


def test_near_is_the_next_above_where_nothing_is_nearer() -> None:
    c_dec = read_curves(sweep(curves=table([6, 8, 12, 14]).assign(c_dec=[4, 3, 1, 2])), 10.0)[0]
    assert (c_dec.near, c_dec.below) == (1, 3)
    assert math.isnan(read_curves(sweep(curves=table([6, 8, 14])), 10.0)[0].near)


def test_the_elbow() -> None:
    # Two seeds at each L0; one of the SAEs at 10 is in a poor minimum, which does not end the walk.
    l0s = [20, 20.1, 10, 10.1, 5, 5.1, 2, 2.1]
    c_dec = [0.10, 0.11, 0.12, 0.9, 0.12, 0.12, 0.2, 0.3]
    curve = read_curves(sweep(curves=table(l0s).assign(c_dec=c_dec)), None)[0]
    assert (curve.smallest_at, curve.elbow, curve.risen_at) == (20, 5, 2.1)
    assert curve.verdict == "unknown"


def test_a_sweep_that_ends_before_the_rise() -> None:
    curves = read_curves(sweep(curves=table([20, 14, 11])), None)
    assert all(curve.elbow == 11 and math.isnan(curve.risen_at) for curve in curves)
    words = words_of_curves_alone(curves)
    assert "the sweep ends before it rises; extend it to lower L0" in words[1]


def test_a_sweep_that_ends_where_s_n_is_still_falling() -> None:
    curves = read_curves(sweep(curves=table([2, 4, 6, 8])), None)
    words = words_of_curves_alone(curves)
    assert "For 6 of 6 n it is smaller there, where the sweep ends" in words[1]
    assert "extend it to higher L0" in words[1]


def test_n_that_disagree() -> None:
    curves = table([4, 8, 16, 30])
    for n in range(D_SAE):
        curves[f"s_{n}"] = [0.9, 0.5, 0.1, 0.1] if n < 19 else [0.9, 0.1, 0.1, 0.1]
    words = words_of_curves_alone(read_curves(sweep(curves=curves), None))
    assert "down to L0s of 8 to 16" in words[1]
    assert "risen by more at L0s of 4 to 8" in words[1]
    assert "The n disagree" in words[2]


@pytest.mark.filterwarnings("error")
def test_saes_that_all_diverged_say_nothing() -> None:
    curves = table([4, 8])
    curves[curves.columns[2:]] = np.nan
    assert words_of_curves_alone(read_curves(sweep(curves=curves), None)) == ()
