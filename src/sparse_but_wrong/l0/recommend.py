"""The rule: from a measured sweep to an L0, its interval and reasons, or to why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_but_wrong.l0.curves import (
    BELOW,
    CLOSE,
    NEAR,
    Curve,
    read_curves,
    useful_n as useful_n,
    words_of_curves_alone,
)
from sparse_but_wrong.l0.sweep import Count, EvaluatedSweep, most_directions

if TYPE_CHECKING:
    import pandas as pd
    import sae_lens

SMALLEST_HALF_WIDTH = 0.015
"""Of an interval, as a share of the L0: counts err in ways that a single search does not show."""

MOST_DEAD = 0.5
"""Share of dead latents above which an SAE's decoder says little."""

UNCONFIRMED = 0.02
"""Added to the half-width where no start from another group of SAEs bears the count out. It is a
choice, and more than the error of nearly every count in benchmarks/l0."""

SCORE_WEIGHT = 1.2
"""How much of what is wrong with the directions (`Presence.score`) goes into the half-width."""

CLEAR_SCORE = 0.03
"""Below it the count is clear: it stands against the curves, and has to agree with every other that
is."""

SMALLEST_NOISE_COST = 1.5
"""`Count.noise_cost` below which nothing tells the activations from noise. Of eight kinds of noise
(Gaussian of several spectra and ranks, uniform, Laplace) it was 0.99 to 1.02; of small worlds with
features, noise and densities of up to 40 % among them, 2.5 and more."""

ENOUGH_FIRINGS = 10
"""Samples in which the mean latent must be active before silence says that a latent is dead."""

AT_MOST = 0.95
"""Share of the directions that can be learned from which on there may be more."""

LARGEST_SCORE = 0.10
LARGEST_SPREAD = 0.10
WIDTH_TOLERANCE = 1.03
"""By what factor there may be more directions than latents."""

_STICKING = 3
"""Settings that lead to one L0, from which on it is a place where L0 sticks."""

_TURNED = 2.0
"""Factor between their coefficients from which it is not the coefficient that keeps them there."""


@dataclass(frozen=True, eq=False, repr=False)
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
    """c_dec, and s_n for several n; of `counted`, if anything was counted."""

    sweep: EvaluatedSweep
    """The evidence."""

    sae: sae_lens.TrainingSAE[Any] | None = None
    """An SAE trained at the recommended L0, where one was trained that has it."""

    sae_l0: float | None = None
    """The L0 of `sae` as it is used, measured on held-out samples; it lies in `interval`."""

    @property
    def half_width(self) -> float | None:
        """Of the interval, as a share of the L0."""
        if self.l0 is None or self.interval is None:
            return None
        return (self.interval[1] - self.interval[0]) / (2 * self.l0)

    def to_frame(self) -> pd.DataFrame:
        """The SAEs that it rests on: a row each, in order of L0."""
        return self.sweep.table.sort_values("l0")

    def _parts(self) -> tuple[str, tuple[str, ...], str, tuple[str, ...]]:
        """The answer, the doubts, and what the reasons are called."""
        if self.l0 is None or self.interval is None:
            return "No recommendation:", self.doubts, "Observed:", self.reasons
        low, high = self.interval
        return f"L0 {self.l0:.4g}, between {low:.4g} and {high:.4g}", (), "Why:", self.reasons

    def __repr__(self) -> str:
        answer, doubts, head, reasons = self._parts()
        return "\n  - ".join((answer, *doubts)) + "\n" + "\n  - ".join((head, *reasons))

    def _repr_html_(self) -> str:
        answer, doubts, head, reasons = (
            escape(part) if isinstance(part, str) else _list(part) for part in self._parts()
        )
        return f"<p><b>{answer}</b></p>{doubts}<p>{head}</p>{reasons}"


def _list(lines: tuple[str, ...]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def recommend_l0(sweep: EvaluatedSweep) -> L0Recommendation:
    """Judge a measured sweep.

    The L0 is what was counted along the directions learned from the most promising decoders. It is
    recommended if present and absent directions part clearly, the directions leave little of the
    variance unexplained and fit noise of the same mean and covariance far worse, clear counts from
    different SAEs agree, the SAEs are wide enough for the directions that there are, and the sweep
    has SAEs clearly below that L0, near it and above.

    The curves of s_n^dec and c_dec have a say where the count is not clear (`CLEAR_SCORE`): nothing
    is recommended if most of them fall where they should rise, towards lower L0, or if s_n rises
    for some n and falls for others. A clear count stands against them, since features that overlap
    or nest let curves fall at the right L0. Alone they recommend nothing: what they say where
    directions were not counted is among the reasons.

    The SAEs' reconstruction error is not used, only the variance that the learned directions leave
    unexplained.

    Args:
        sweep: of `measure_sweep`, or the evidence of a recommendation.
    """
    counts = [count for count in sweep.counts if math.isfinite(count.presence.score)]
    if not counts:
        return _without_a_count(sweep)
    best = counts[0]
    presence = best.presence
    l0 = presence.l0
    close = _compared(counts)
    spread = max(abs(count.presence.l0 / l0 - 1) for count in close)
    confirmed = len({count.group for count in close}) > 1
    curves = read_curves(sweep, l0)
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
        + (0.0 if confirmed else UNCONFIRMED)
    )
    reasons = _reasons(sweep, best, close, spread, curves)
    if doubts:
        return L0Recommendation(None, None, reasons, tuple(doubts), l0, curves, sweep)
    interval = (l0 * (1 - half), l0 * (1 + half))
    return L0Recommendation(l0, interval, reasons, (), l0, curves, sweep)


def _without_a_count(sweep: EvaluatedSweep) -> L0Recommendation:
    if sweep.not_counted:
        why = (
            f"nothing was counted: {sweep.not_counted}. Raise count_up_to to have it done all the "
            "same, or train narrower SAEs."
        )
    elif sweep.counts:
        why = "none of the directions learned from the decoders is present in any sample."
    else:
        why = "no SAE of the sweep has a decoder to learn from; all have diverged or are empty."
    # A latent that fires as often as the mean one does must have had the chance to.
    firings = sweep.n_samples * sweep.table["l0"].to_numpy(float) / sweep.d_sae
    silent = sweep.table["dead_latents"].to_numpy(float)
    mostly_dead = (silent > MOST_DEAD * sweep.d_sae) & ~(firings < ENOUGH_FIRINGS)
    alive = replace(
        sweep, table=sweep.table[~mostly_dead], projections=sweep.projections[~mostly_dead]
    )
    curves = read_curves(alive, None)
    reasons = words_of_curves_alone(curves)
    doubts = [why]
    if mostly_dead.any():
        names = ", ".join(map(str, sweep.table.loc[mostly_dead, "sae_id"]))
        doubts.append(
            f"more than half of the latents of {names} are silent on all {sweep.n_samples:,} "
            "samples. If they are dead, s_n^dec and c_dec are those of directions that nothing "
            "trained; the reading of the curves leaves these SAEs out. Train for longer, or with "
            "reinit_dead_every."
        )
    return L0Recommendation(None, None, reasons, tuple(doubts), None, curves, sweep)


def _compared(counts: list[Count]) -> list[Count]:
    """Those that have to agree: all that are clear, and all about as good as the best.

    A start that ended in a poor minimum is neither, and has no say.
    """
    limit = max(1.5 * counts[0].presence.score + 0.005, CLEAR_SCORE)
    return [count for count in counts if count.presence.score <= limit]


def _doubts_of_counts(
    sweep: EvaluatedSweep, best: Count, close: list[Count], spread: float
) -> list[str]:
    presence = best.presence
    doubts = []
    if best.noise_cost < SMALLEST_NOISE_COST:
        doubts.append(
            "there is no sign of features: on Gaussian noise of the same mean and covariance the "
            f"learned directions cost {best.noise_cost:.2f} times as much as on the activations, "
            f"and at least {SMALLEST_NOISE_COST:g} times is required."
        )
    if presence.n_directions > WIDTH_TOLERANCE * sweep.d_sae + 1:
        n = presence.n_directions
        if n < AT_MOST * most_directions(sweep.d_sae):
            there_are, use = f"about {n} directions", f"Use d_sae ≥ {n}."
        else:
            # As many as could be learned, so that there may be more.
            there_are = f"at least {n} directions"
            use = f"Use d_sae ≥ {n}, better {2 * sweep.d_sae}."
        doubts.append(
            f"the SAEs are too narrow: the activations are made of {there_are}, of which "
            f"{presence.l0:.2f} are present at a time, and an SAE with {sweep.d_sae} latents has "
            f"to merge or drop some at any L0. {use}"
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
            f"the learned directions leave {presence.residual:.0%} of the variance unexplained "
            f"(at most {LARGEST_SCORE:.0%} may be). Train wider SAEs, or for longer."
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
    relative = reached / l0
    doubts = []
    if not ((relative >= BELOW[0]) & (relative < 1 - NEAR)).any() and not _sticks(table, l0):
        fix = "train some there" if (relative < BELOW[0]).any() else "extend it to lower L0"
        doubts.append(
            f"the sweep has no SAE clearly below the {l0:.2f} that were counted, with an L0 of "
            f"{BELOW[0] * l0:.3g} to {(1 - NEAR) * l0:.3g}; {fix}."
        )
    off = np.abs(reached - l0)
    # Half a latent off is as near as a whole k comes.
    if len(off) and off.min() > max(CLOSE * l0, 0.5):
        doubts.append(
            f"the sweep has no SAE near the {l0:.2f} that were counted (the next has an L0 of "
            f"{reached[off.argmin()]:.2f}); train some there."
        )
    if not (relative > 1 + NEAR).any():
        doubts.append(
            f"the sweep has no SAE clearly above the {l0:.2f} that were counted, with an L0 of "
            f"more than {(1 + NEAR) * l0:.3g}; extend it to higher L0."
        )
    near = np.abs(table["l0"].to_numpy(float) / l0 - 1) < 2 * NEAR
    n_dead = table["dead_latents"].to_numpy()[near].min(initial=d_sae) if near.any() else 0
    if n_dead > MOST_DEAD * d_sae:
        doubts.append(
            f"most latents are dead in every SAE near an L0 of {l0:.2f} "
            f"({n_dead} of {d_sae} at best); re-initialise dead latents "
            "(TrainOptions.reinit_dead_every), or train narrower SAEs."
        )
    return doubts


def _sticks(table: pd.DataFrame, l0: float) -> bool:
    """Whether SAEs stay at an L0 though their target or coefficient calls for less.

    JumpReLU SAEs do at the true L0, so that a sweep may have none below it. SAEs with a k do not.
    """
    here = np.abs(table["l0"].to_numpy(float) / l0 - 1) < NEAR
    for column in ("target_l0", "coefficient"):
        if column in table:
            settings = np.unique(table[column].to_numpy(float)[here])
            settings = settings[np.isfinite(settings)]
            if len(settings) < _STICKING:
                return False
            lowest, highest = float(settings[0]), float(settings[-1])
            if column == "target_l0":
                return lowest < (1 - NEAR) * l0
            return highest >= _TURNED * lowest
    return False


def _doubts_of_curves(curves: tuple[Curve, ...], score: float) -> list[str]:
    # Where features overlap or nest, curves fall towards low L0 though the count is right.
    if score < CLEAR_SCORE:
        return []
    projections = [curve for curve in curves if curve.metric != "c_dec"]
    up, down = (
        [curve.metric for curve in projections if curve.verdict == verdict]
        for verdict in ("rises", "falls")
    )
    if up and down:
        return [
            f"the n disagree: towards lower L0, s_n^dec rises for {len(up)} of {len(projections)} "
            f"n ({', '.join(up)}) and falls for {len(down)} ({', '.join(down)}), and the count "
            "alone is not clear enough. Train for longer, or with more seeds."
        ]
    n_falling = [curve.verdict for curve in curves].count("falls")
    if n_falling <= len(curves) / 2:
        return []
    return [
        f"the curves point lower: {n_falling} of {len(curves)} (s_n^dec for several n, and c_dec) "
        "are smaller in SAEs of a clearly lower L0. Extend the sweep to lower L0, and train for "
        "longer."
    ]


def _reasons(
    sweep: EvaluatedSweep, best: Count, close: list[Count], spread: float, curves: tuple[Curve, ...]
) -> tuple[str, ...]:
    presence = best.presence
    reasons = [
        f"{presence.n_directions} directions make up the activations, learned from the "
        f"decoder of {best.sae_id}; {presence.l0:.2f} of them are present per sample, over "
        f"{sweep.n_samples:,} samples.",
        f"Present and absent part at {presence.cut:.2f} of a direction's usual magnitude; "
        f"{presence.ambiguity:.1%} of the count lies where nothing tells them apart, and the "
        f"directions leave {presence.residual:.1%} of the variance unexplained. On noise of the "
        f"same mean and covariance they cost {best.noise_cost:.1f} times as much.",
    ]
    n_groups = len({count.group for count in close})
    said = (
        f"{len(close)} starts from {n_groups} {'group' if n_groups == 1 else 'groups'} of SAEs "
        f"{'agree within' if spread <= LARGEST_SPREAD else 'are apart by up to'} {spread:.1%}"
    )
    if n_groups > 1:
        reasons.append(f"{said}.")
    else:
        alone = "No second start" if len(close) == 1 else f"{said}, but none of another group"
        reasons.append(
            f"{alone} came as close, so that agreement of different SAEs was not seen; "
            f"an interval is wider by ± {UNCONFIRMED:.0%} for it."
        )
    projections = [curve for curve in curves if curve.metric != "c_dec"]
    verdicts = [curve.verdict for curve in projections]
    if not projections:
        reasons.append(
            "No n lies well above this L0 and below half the latents, so s_n cannot be evaluated "
            "here."
        )
    elif verdicts.count("unknown") == len(verdicts):
        reasons.append(
            "SAEs with a lower target L0 stay at this one, so the curves say nothing below it."
            if _sticks(sweep.table, presence.l0)
            else "No SAE lies clearly below this L0, or none near it, so the curves say nothing."
        )
    else:
        reasons.append(
            f"Towards lower L0, s_n^dec rises for {verdicts.count('rises')} of {len(verdicts)} n "
            f"({projections[0].metric} to {projections[-1].metric})"
            + (f" and falls for {verdicts.count('falls')}" if "falls" in verdicts else "")
            + f", c_dec {next(curve.verdict for curve in curves if curve.metric == 'c_dec')}."
            + (
                ""
                if "rises" in verdicts
                else " Features that overlap or nest may do that to these curves."
                + (" The count is clear and decides." if presence.score < CLEAR_SCORE else "")
            )
        )
    return tuple(reasons)
