"""The curves of a sweep, c_dec and s_n^dec over L0: what they say of an L0, and what alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparse_but_wrong.l0.sweep import EvaluatedSweep

NEAR = 0.08
"""SAEs whose L0 differs by less than this share stand for the recommended L0."""

CLOSE = 0.25
"""How far off, as a share of it, the SAEs next to an L0 may be: sweeps over every second k have
none that is nearer."""

BELOW = (0.45, 0.87)
"""SAEs in this range, in units of the recommended L0, stand for too low an L0. Further below s_n is
small again in some worlds."""

RISE = 1.25
"""Factor between two values of a curve that counts as a rise."""

_FLAT_BELOW = 1e-3
"""Values of s_n, as a share of the largest, between which no factor means anything."""


@dataclass(frozen=True)
class Curve:
    """What one curve over the sweep says of an L0, and what it says alone."""

    metric: str
    """``c_dec`` or ``s_n`` for a number n."""

    near: float
    """Its smallest value among SAEs near that L0 (`NEAR`; where there are none, in the next one
    above, up to `CLOSE`); NaN where there are none."""

    below: float
    """Its smallest value among SAEs clearly below (`BELOW`); NaN where there are none."""

    smallest_at: float = math.nan
    """The L0 of the SAE in which it is smallest."""

    highest: float = math.nan
    """The highest L0 of the sweep at which it is known."""

    elbow: float = math.nan
    """The lowest L0 that can be reached from there before it has risen by the factor `RISE`."""

    risen_at: float = math.nan
    """The next lower L0 of the sweep, at which it has; NaN where the sweep ends before."""

    @property
    def verdict(self) -> str:
        """``rises`` towards low L0, ``falls`` or is ``flat``; ``unknown`` without SAEs there."""
        if not (math.isfinite(self.near) and math.isfinite(self.below)):
            return "unknown"
        if self.below > RISE * self.near:
            return "rises"
        return "falls" if self.near > RISE * self.below else "flat"


def read_curves(sweep: EvaluatedSweep, l0: float | None) -> tuple[Curve, ...]:
    """c_dec, and s_n^dec for several n.

    Args:
        sweep: that is measured.
        l0: that the curves are to bear out; None to read them alone.
    """
    reached = sweep.table["l0"].to_numpy(float)
    relative = reached / (math.nan if l0 is None else l0)
    near = np.abs(relative - 1) < NEAR
    if not near.any():
        above = (relative >= 1) & (relative <= 1 + CLOSE)
        near = above & (relative == relative[above].min(initial=math.inf))
    below = (relative >= BELOW[0]) & (relative <= BELOW[1])
    curves = []
    metrics = {"c_dec": sweep.table["c_dec"]}
    metrics |= {f"s_{n}": sweep.projections[n] for n in useful_n(l0 or 0.0, sweep.d_sae)}
    for metric, column in metrics.items():
        values = column.to_numpy(float)
        values = np.where(np.isfinite(values), values, np.nan)
        floor = _FLAT_BELOW * float(np.nanmax(np.abs(values), initial=0.0))
        curves.append(
            Curve(
                metric,
                _smallest(values[near], floor),
                _smallest(values[below], floor),
                *_elbow(reached, values, floor),
            )
        )
    return tuple(curves)


def _smallest(values: np.ndarray, floor: float) -> float:
    finite = values[np.isfinite(values)]
    return max(floor, float(finite.min())) if len(finite) else math.nan


def _elbow(
    reached: np.ndarray, values: np.ndarray, floor: float
) -> tuple[float, float, float, float]:
    """Where a curve is smallest, where it ends, the elbow, and where it has risen."""
    known = np.isfinite(reached) & (reached > 0) & np.isfinite(values)
    if not known.any():
        return math.nan, math.nan, math.nan, math.nan
    downwards = np.argsort(-reached[known], kind="stable")
    l0s, heights = reached[known][downwards], values[known][downwards]
    start = int(heights.argmin())
    low = RISE * max(floor, float(heights[start]))
    smallest_at, highest = float(l0s[start]), float(l0s[0])
    elbow = smallest_at
    for l0 in l0s[start:].tolist():
        # The best of those at one L0: single SAEs land in poor minima.
        if heights[np.abs(l0s / l0 - 1) < NEAR].min() > low:
            return smallest_at, highest, elbow, l0
        elbow = l0
    return smallest_at, highest, elbow, math.nan


def useful_n(l0: float | int, d_sae: int) -> tuple[int, ...]:
    """Up to six n at which s_n^dec can tell: well above an L0, and below half the latents.

    Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, on the choice of n.
    """
    low, high = max(1.25 * l0, 0.25 * d_sae), 0.48 * d_sae
    if low > high:
        return ()
    spread = (round(low + (high - low) * i / 5) for i in range(6))
    return tuple(dict.fromkeys(n for n in spread if n < d_sae / 2))


def words_of_curves_alone(curves: tuple[Curve, ...]) -> tuple[str, ...]:
    """What the curves say where nothing was counted, and how far that can be trusted."""
    known = [curve for curve in curves if math.isfinite(curve.smallest_at)]
    projections = [curve for curve in known if curve.metric != "c_dec"]
    if not known:
        return ()
    words = []
    if projections:
        first, last = projections[0].metric, projections[-1].metric
        lows = [curve.smallest_at for curve in projections]
        at_top = sum(curve.elbow == curve.highest for curve in projections)
        words.append(
            f"By the curves alone: s_n^dec is smallest at {_between(lows)} ({first} to {last})."
            + "".join(
                f" c_dec is smallest at an L0 of {curve.smallest_at:.4g}."
                for curve in known
                if curve.metric == "c_dec"
            )
        )
        if at_top:
            words.append(
                f"For {at_top} of {len(projections)} n it is smaller there, where the sweep ends, "
                "than at any other; extend it to higher L0."
            )
        elbows = [curve.elbow for curve in projections]
        risen = [curve.risen_at for curve in projections if math.isfinite(curve.risen_at)]
        n_open = len(projections) - len(risen)
        stays = f"From there down to {_between(elbows)} it stays within a factor of {RISE} of that"
        if not risen:
            words.append(f"{stays}, and the sweep ends before it rises; extend it to lower L0.")
        else:
            words.append(
                f"{stays}, and has risen by more at {_between(risen)}: the elbow lies between."
                + (
                    f" For {n_open} of {len(projections)} n the sweep ends before."
                    if n_open
                    else ""
                )
            )
            agree = not n_open and max(risen) < min(elbows)
            words.append(
                "The n agree on where that is."
                if agree
                else "The n disagree on where that is, so that no one L0 follows from them."
            )
    words.append(_TRUST)
    return tuple(words)


_TRUST = (
    "Such a reading is no measurement: in benchmarks/l0/seed_0.csv, on 30 worlds with known "
    "answers and SAEs that are wide enough, the L0 of the SAE with the smallest s_n^dec "
    "(n = d_sae/2.5) is off by 48% at the median, that of the one with the smallest c_dec by 4%, "
    "in sweeps that are finer around the answer than a coarse one."
)


def _between(l0s: list[float]) -> str:
    low, high = f"{min(l0s):.4g}", f"{max(l0s):.4g}"
    return f"an L0 of {low}" if low == high else f"L0s of {low} to {high}"
