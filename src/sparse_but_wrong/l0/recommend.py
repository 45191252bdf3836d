"""The rule: from a measured sweep to an L0, its interval and reasons, or to why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_but_wrong.l0.sweep import Count, Sweep

if TYPE_CHECKING:
    import pandas as pd
    import sae_lens

SMALLEST_HALF_WIDTH = 0.015
"""Of an interval, as a share of the L0: counts err in ways that a single search does not show."""

SCORE_WEIGHT = 1.2
"""How much of what is wrong with the directions (`Presence.score`) goes into the half-width."""

CLEAR_SCORE = 0.03
"""Below it the count is clear enough to stand against the curves."""

LARGEST_SCORE = 0.10
LARGEST_SPREAD = 0.10
WIDTH_TOLERANCE = 1.03
"""By what factor there may be more directions than latents."""

NEAR = 0.08
"""SAEs whose L0 differs by less than this share stand for the recommended L0."""

BELOW = (0.45, 0.87)
"""SAEs in this range, in units of the recommended L0, stand for too low an L0."""

RISE = 1.25
"""Factor between the two that counts as a rise."""

_STICKING = 3
"""SAEs near one L0 that make it a place where L0 sticks."""

_FLAT_BELOW = 1e-3
"""Values of s_n, as a share of the largest, between which no factor means anything."""


@dataclass(frozen=True)
class Curve:
    """What one curve over the sweep says of an L0."""

    metric: str
    """``c_dec`` or ``s_n`` for a number n."""

    near: float
    """Its smallest value among SAEs near that L0."""

    below: float
    """Its smallest value among SAEs clearly below; NaN where there are none."""

    @property
    def verdict(self) -> str:
        """``rises`` towards low L0, ``falls`` or is ``flat``; ``unknown`` without SAEs there."""
        if not (math.isfinite(self.near) and math.isfinite(self.below)):
            return "unknown"
        if self.below > RISE * self.near:
            return "rises"
        return "falls" if self.near > RISE * self.below else "flat"


@dataclass(frozen=True, eq=False)
class L0Recommendation:
    """The L0 that SAEs on some activations should have, or why none can be named."""

    l0: float | None
    """Active latents per sample; None where nothing is recommended."""

    interval: tuple[float, float] | None
    """Where the right L0 lies, in nine cases of ten on worlds with known answers."""

    reasons: tuple[str, ...]
    """What speaks for it, in words."""

    doubts: tuple[str, ...]
    """Why nothing is recommended, and what to do; empty where something is."""

    counted: float | None
    """What was counted, recommended or not."""

    curves: tuple[Curve, ...]
    """c_dec, and s_n for several n."""

    sweep: Sweep
    """The evidence."""

    sae: sae_lens.TrainingSAE[Any] | None = None
    """An SAE trained at the recommended L0, where one was trained."""

    @property
    def half_width(self) -> float | None:
        """Of the interval, as a share of the L0."""
        if self.l0 is None or self.interval is None:
            return None
        return (self.interval[1] - self.interval[0]) / (2 * self.l0)


def recommend_l0(sweep: Sweep) -> L0Recommendation:
    """Judge a measured sweep.

    The L0 is what was counted along the directions learned from the most promising decoders. It is
    recommended if present and absent directions part clearly, starts from different SAEs agree, the
    SAEs are wide enough for the directions that there are, the sweep reaches to both sides of it,
    and the curves of s_n^dec and c_dec do not fall where they should rise, towards lower L0.
    Reconstruction plays no part.

    Args:
        sweep: of `measure_sweep`, or the evidence of a recommendation.
    """
    counts = [count for count in sweep.counts if math.isfinite(count.presence.score)]
    if not counts:
        why = "no SAE of the sweep has a decoder to learn from; all have diverged or are empty."
        return L0Recommendation(None, None, (), (why,), None, (), sweep)
    best = counts[0]
    presence = best.presence
    l0 = presence.l0
    close = _close(counts)
    spread = max(abs(count.presence.l0 / l0 - 1) for count in close)
    curves = _curves(sweep, l0)
    doubts = [
        *_doubts_of_counts(sweep, best, close, spread),
        *_doubts_of_sweep(sweep.table, l0, sweep.d_sae),
        *_doubts_of_curves(curves, presence.score),
    ]
    half = (
        SMALLEST_HALF_WIDTH
        + SCORE_WEIGHT * presence.score
        + spread
        + 2 * presence.standard_error / l0
    )
    reasons = _reasons(sweep, best, close, spread, curves)
    if doubts:
        return L0Recommendation(None, None, reasons, tuple(doubts), l0, curves, sweep)
    interval = (l0 * (1 - half), l0 * (1 + half))
    return L0Recommendation(l0, interval, reasons, (), l0, curves, sweep)


def _close(counts: list[Count]) -> list[Count]:
    """Those about as good as the best."""
    limit = 1.5 * counts[0].presence.score + 0.005
    return [count for count in counts if count.presence.score <= limit]


def _doubts_of_counts(sweep: Sweep, best: Count, close: list[Count], spread: float) -> list[str]:
    presence = best.presence
    doubts = []
    if presence.n_directions > WIDTH_TOLERANCE * sweep.d_sae + 1:
        doubts.append(
            f"the SAEs are too narrow: the activations are made of about {presence.n_directions} "
            f"directions, of which {presence.l0:.2f} are present at a time, and an SAE with "
            f"{sweep.d_sae} latents has to merge or drop some at any L0. Use d_sae ≥ "
            f"{presence.n_directions}."
        )
    if presence.ambiguity > LARGEST_SCORE:
        doubts.append(
            f"present and absent directions do not part: {presence.ambiguity:.0%} of the count "
            f"lies where nothing tells them apart (at most {LARGEST_SCORE:.0%} may). Train on more "
            "samples; if that does not help, the activations may have no features of a typical "
            "magnitude."
        )
    if presence.residual > LARGEST_SCORE:
        doubts.append(
            f"the learned directions leave {presence.residual:.0%} of the variance over (at most "
            f"{LARGEST_SCORE:.0%} may be). Train wider SAEs, or for longer."
        )
    if spread > LARGEST_SPREAD:
        lowest, highest = (pick(count.presence.l0 for count in close) for pick in (min, max))
        doubts.append(
            f"starts disagree: they count from {lowest:.2f} to {highest:.2f}. Train for longer, "
            "or with more seeds."
        )
    return doubts


def _doubts_of_sweep(table: pd.DataFrame, l0: float, d_sae: int) -> list[str]:
    reached = table["l0"].to_numpy(float)
    reached = reached[np.isfinite(reached) & (reached > 0)]
    doubts = []
    # JumpReLU SAEs whose coefficients ask for less stay at the true L0: a place where several
    # settings meet is bracketed too.
    sticks = (np.abs(reached / l0 - 1) < NEAR).sum() >= _STICKING
    if not (reached < l0).any() and not sticks:
        doubts.append(
            f"the sweep does not reach below the {l0:.2f} that were counted; extend it to lower L0."
        )
    if not (reached > l0 * (1 - NEAR)).any():
        doubts.append(
            f"the sweep does not reach up to the {l0:.2f} that were counted; extend it to "
            "higher L0."
        )
    near = np.abs(table["l0"].to_numpy(float) / l0 - 1) < 2 * NEAR
    n_dead = table["dead_latents"].to_numpy()[near].min(initial=d_sae) if near.any() else 0
    if n_dead > 0.5 * d_sae:
        doubts.append(
            f"most latents are dead in every SAE near an L0 of {l0:.2f} "
            f"({n_dead} of {d_sae} at best); re-initialise dead latents "
            "(TrainOptions.reinit_dead_every), or train narrower SAEs."
        )
    return doubts


def _doubts_of_curves(curves: tuple[Curve, ...], score: float) -> list[str]:
    verdicts = [curve.verdict for curve in curves]
    n_falling = verdicts.count("falls")
    # Where features overlap or nest, curves fall towards low L0 though the count is right.
    if score < CLEAR_SCORE or n_falling <= len(curves) / 2:
        return []
    return [
        f"the curves point lower: {n_falling} of {len(curves)} (s_n^dec for several n, and c_dec) "
        "are smaller in SAEs of a clearly lower L0. Extend the sweep to lower L0, and train for "
        "longer."
    ]


def _curves(sweep: Sweep, l0: float) -> tuple[Curve, ...]:
    table = sweep.table
    relative = table["l0"].to_numpy(float) / l0
    near = np.abs(relative - 1) < NEAR
    below = (relative >= BELOW[0]) & (relative <= BELOW[1])
    curves = []
    for metric in ("c_dec", *(f"s_{n}" for n in useful_n(l0, sweep.d_sae))):
        values = table[metric].to_numpy(float)
        values = np.where(np.isfinite(values), values, np.nan)
        floor = _FLAT_BELOW * float(np.nanmax(np.abs(values), initial=0.0))
        curves.append(
            Curve(
                metric,
                near=_smallest(values[near], floor),
                below=_smallest(values[below], floor),
            )
        )
    return tuple(curves)


def _smallest(values: np.ndarray, floor: float) -> float:
    finite = values[np.isfinite(values)]
    return max(floor, float(finite.min())) if len(finite) else math.nan


def useful_n(l0: float | int, d_sae: int) -> tuple[int, ...]:
    """Up to six n at which s_n^dec can tell: well above an L0, and below half the latents.

    Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, on the choice of n.
    """
    low, high = max(1.25 * l0, 0.25 * d_sae), 0.48 * d_sae
    if low > high:
        return ()
    spread = (round(low + (high - low) * i / 5) for i in range(6))
    return tuple(dict.fromkeys(n for n in spread if n < d_sae / 2))


def _reasons(
    sweep: Sweep, best: Count, close: list[Count], spread: float, curves: tuple[Curve, ...]
) -> tuple[str, ...]:
    presence = best.presence
    reasons = [
        f"The activations are made of about {presence.n_directions} directions, learned from the "
        f"decoder of {best.sae_id}; {presence.l0:.2f} of them are present per sample, over "
        f"{sweep.n_samples:,} samples.",
        f"Present and absent part at {presence.cut:.2f} of a direction's usual magnitude; "
        f"{presence.ambiguity:.1%} of the count lies where nothing tells them apart, and the "
        f"directions leave {presence.residual:.1%} of the variance over.",
    ]
    groups = {count.group for count in close}
    if len(close) > 1:
        reasons.append(
            f"{len(close)} starts from {len(groups)} "
            f"{'group' if len(groups) == 1 else 'groups'} of SAEs agree within {spread:.1%}."
        )
    else:
        reasons.append("No second start came as close, so that agreement was not seen.")
    projections = [curve for curve in curves if curve.metric != "c_dec"]
    verdicts = [curve.verdict for curve in projections]
    if not projections:
        reasons.append("No n lies well above this L0 and below half the latents, so s_n is mute.")
    elif verdicts.count("unknown") == len(verdicts):
        reasons.append("No SAE lies clearly below this L0, or none near it: the curves are mute.")
    else:
        reasons.append(
            f"Towards lower L0, s_n^dec rises for {verdicts.count('rises')} of {len(verdicts)} n "
            f"({projections[0].metric} to {projections[-1].metric}), c_dec "
            f"{next(curve.verdict for curve in curves if curve.metric == 'c_dec')}."
            + (
                ""
                if "rises" in verdicts
                else " Features that overlap or nest do that to these curves; the count decides."
            )
        )
    return tuple(reasons)
