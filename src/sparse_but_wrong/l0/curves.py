"""The curves of a sweep, c_dec and s_n^dec over L0: what they say of an L0, and what alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

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


class Bottom(NamedTuple):
    """Where a curve is smallest and where it rises from there, by the L0 of SAEs; NaN: nowhere."""

    smallest_at: float = math.nan
    highest: float = math.nan
    """The highest L0 of the sweep."""
    elbow: float = math.nan
    """The lowest L0 that can be reached from the smallest before it has risen by `RISE`."""
    risen_at: float = math.nan
    """The next lower L0, at which it has; NaN where the sweep ends before."""


_NOWHERE = Bottom()


@dataclass(frozen=True)
class Curve:
    """What one curve over the sweep says of an L0, and what it says alone."""

    n: int | None
    """Of s_n^dec; None for c_dec."""
    near: float
    """Its smallest value among SAEs near that L0 (`NEAR`; where there are none, in the next one
    above, up to `CLOSE`); NaN where there are none."""
    below: float
    """Its smallest value among SAEs clearly below (`BELOW`); NaN where there are none."""
    bottom: Bottom = _NOWHERE

    @property
    def metric(self) -> str:
        """Its name in tables: ``c_dec`` or ``s_n``."""
        return "c_dec" if self.n is None else f"s_{self.n}"

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
        sweep: an evaluated one.
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
    for n in (None, *useful_n(l0 or 0.0, sweep.d_sae)):
        column = sweep.table["c_dec"] if n is None else sweep.projections[n]
        values = column.to_numpy(float)
        values = np.where(np.isfinite(values), values, np.nan)
        floor = _FLAT_BELOW * float(np.nanmax(np.abs(values), initial=0.0))
        at_it, lower = (_smallest(values[rows], floor) for rows in (near, below))
        curves.append(Curve(n, at_it, lower, _bottom(reached, values, floor)))
    return tuple(curves)


def _smallest(values: np.ndarray, floor: float) -> float:
    finite = values[np.isfinite(values)]
    return max(floor, float(finite.min())) if len(finite) else math.nan


def _bottom(reached: np.ndarray, values: np.ndarray, floor: float) -> Bottom:
    known = np.isfinite(reached) & (reached > 0) & np.isfinite(values)
    if not known.any():
        return _NOWHERE
    downwards = np.argsort(-reached[known], kind="stable")
    l0s, heights = reached[known][downwards], values[known][downwards]
    start = int(heights.argmin())
    low = RISE * max(floor, float(heights[start]))
    found = Bottom(smallest_at=float(l0s[start]), highest=float(l0s[0]), elbow=float(l0s[start]))
    for l0 in l0s[start:].tolist():
        # The best of those at one L0: single SAEs land in poor minima.
        if heights[np.abs(l0s / l0 - 1) < NEAR].min() > low:
            return found._replace(risen_at=l0)
        found = found._replace(elbow=l0)
    return found


def useful_n(l0: float | int, d_sae: int) -> tuple[int, ...]:
    """Up to six n at which s_n^dec can tell: well above an L0, and below half the latents.

    Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, on the choice of n.
    """
    low, high = max(1.25 * l0, 0.25 * d_sae), 0.48 * d_sae
    if low > high:
        return ()
    spread = (round(low + (high - low) * i / 5) for i in range(6))
    return tuple(dict.fromkeys(n for n in spread if n < d_sae / 2))


_TRUST = (
    "Such a reading is no measurement: in benchmarks/l0/seed_0.csv, on 30 worlds with known "
    "answers and SAEs that are wide enough, the L0 of the SAE with the smallest s_n^dec "
    "(n = d_sae/2.5) is off by 48% at the median, that of the one with the smallest c_dec by 4%, "
    "in sweeps that are finer around the answer than a coarse one."
)


def curves_in_words(curves: tuple[Curve, ...]) -> tuple[str, ...]:
    """What the curves say where nothing was counted, and how far that can be trusted."""
    known = [curve for curve in curves if math.isfinite(curve.bottom.smallest_at)]
    bottoms = [curve.bottom for curve in known if curve.n is not None]
    if not bottoms:
        return (_TRUST,) if known else ()
    names = [curve.metric for curve in known if curve.n is not None]
    c_dec = "".join(f", c_dec at {_l0s([c.bottom.smallest_at])}" for c in known if c.n is None)
    words = [
        f"By the curves alone: s_n^dec is smallest at {_l0s(b.smallest_at for b in bottoms)} "
        f"({names[0]} to {names[-1]}){c_dec}."
    ]
    if at_top := sum(bottom.elbow == bottom.highest for bottom in bottoms):
        words.append(
            f"For {at_top} of {len(bottoms)} n the sweep ends there; extend it to higher L0."
        )
    stays = (
        f"From there down to {_l0s(b.elbow for b in bottoms)} it stays within a factor of {RISE} "
        "of that, and "
    )
    risen = [bottom.risen_at for bottom in bottoms if math.isfinite(bottom.risen_at)]
    n_open = len(bottoms) - len(risen)
    if not risen:
        words.append(f"{stays}the sweep ends before it rises; extend it to lower L0.")
    else:
        ends = f" For {n_open} of {len(bottoms)} n the sweep ends before." if n_open else ""
        words.append(f"{stays}has risen by more at {_l0s(risen)}: the elbow lies between.{ends}")
        agree = not n_open and max(risen) < min(bottom.elbow for bottom in bottoms)
        words.append(
            "The n agree on where that is."
            if agree
            else "The n disagree on where that is, so that no one L0 follows from them."
        )
    return (*words, _TRUST)


def _l0s(values: Iterable[float]) -> str:
    ordered = sorted(values)
    low, high = (f"{ordered[end]:.4g}" for end in (0, -1))
    return f"an L0 of {low}" if low == high else f"L0s of {low} to {high}"
