"""What curves say, on curves made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.l0.curves import Curve, curves_in_words, read_curves, useful_n
from tests.l0.evidence import D_SAE, sweep, table


def curves_of(measured: pd.DataFrame, l0: float | None = None) -> tuple[Curve, ...]:
    return tuple(read_curves(sweep(curves=measured), l0))


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
    c_dec = curves_of(table([6, 8, 12, 14]).assign(c_dec=[4, 3, 1, 2]), 10.0)[0]
    assert (c_dec.near, c_dec.below) == (1, 3)
    assert math.isnan(curves_of(table([6, 8, 14]), 10.0)[0].near)


def test_the_elbow() -> None:
    # Two seeds at each L0; one of the SAEs at 10 is in a poor minimum, which does not end the walk.
    l0s = [20, 20.1, 10, 10.1, 5, 5.1, 2, 2.1]
    c_dec = [0.10, 0.11, 0.12, 0.9, 0.12, 0.12, 0.2, 0.3]
    curve = curves_of(table(l0s).assign(c_dec=c_dec))[0]
    assert (curve.bottom.smallest_at, curve.bottom.elbow, curve.bottom.risen_at) == (20, 5, 2.1)
    assert curve.verdict == "unknown"
    # The sweep ends before the rise.
    ends = [curve.bottom for curve in curves_of(table([20, 14, 11]))]
    assert all(bottom.elbow == 11 and math.isnan(bottom.risen_at) for bottom in ends)


DISAGREEING = {
    f"s_{n}": [0.9, 0.5, 0.1, 0.1] if n < 19 else [0.9, 0.1, 0.1, 0.1] for n in range(D_SAE)
}


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (table([20, 14, 11]), ["the sweep ends before it rises; extend it to lower L0", " 11"]),
        (table([2, 4, 6, 8]), ["For 6 of 6 n the sweep ends there", "extend it to higher L0"]),
        (
            table([4, 8, 16, 30]).assign(**DISAGREEING),
            ["down to L0s of 8 to 16", "risen by more at L0s of 4 to 8", "The n disagree"],
        ),
    ],
)
def test_what_curves_say(measured: pd.DataFrame, said: Sequence[str]) -> None:
    words = " ".join(curves_in_words(curves_of(measured)))
    assert all(part in words for part in said)


def test_saes_that_all_diverged_say_nothing() -> None:
    measured = table([4, 8])
    measured[measured.columns[2:]] = np.nan
    assert curves_in_words(curves_of(measured)) == ()
