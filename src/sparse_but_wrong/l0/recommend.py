"""The rule: from a measured sweep to an L0, its interval and reasons, or to why there is none."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sparse_but_wrong.l0.agreement import (
    MORE_THAN_ON_NOISE,
    SHARED,
    SMALLEST_SHARE,
    Agreement,
    read_agreement,
)
from sparse_but_wrong.l0.curves import BELOW, CLOSE, NEAR, Curve, curves_in_words, read_curves
from sparse_but_wrong.l0.presence import SMALLEST_NOISE_COST, Presence
from sparse_but_wrong.l0.sweep import Count, EvaluatedSweep, most_directions
from sparse_but_wrong.shown import with_figure

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


@dataclass(frozen=True)
class FeaturesActive:
    """How many features are active per sample, as counted, or why that cannot be said."""

    l0: float | None
    """None where the count is in doubt or nothing was counted."""

    interval: tuple[float, float] | None
    counted: float | None
    """What was counted, in doubt or not."""

    doubts: tuple[str, ...]
    """Why no number is given; empty where one is."""

    def __str__(self) -> str:
        if self.l0 is None or self.interval is None:
            return "cannot be said"
        return f"{self.l0:.4g}, between {self.interval[0]:.4g} and {self.interval[1]:.4g}"


@dataclass(frozen=True, eq=False, repr=False)
class L0Recommendation:
    """The L0 at which SAEs of one width and recipe learn true features, or why none can be named.

    That is one question, and how many features are active (`active`) another. Where the SAEs have
    room for all features both have one answer.
    """

    l0: float | None
    """Active latents per sample; None where nothing is recommended."""

    interval: tuple[float, float] | None
    """Where the right L0 lies: in nine cases of ten on small worlds with known answers, and, where
    it rests on agreement, in 11 of 12 on large ones that are only reported."""

    basis: Literal["count", "agreement"]
    """What it rests on, or would: the features that are active, or how alike SAEs of different
    seeds are."""

    reasons: tuple[str, ...]
    """What speaks for it, in words."""

    doubts: tuple[str, ...]
    """Why nothing is recommended, and what to do; empty where something is."""

    active: FeaturesActive
    """How many features are active."""

    agreement: Agreement | None
    """Where SAEs are most alike; None where too few can be compared."""

    curves: tuple[Curve, ...]
    """c_dec, and s_n for several n; of what was counted, if anything was."""

    sweep: EvaluatedSweep
    """The evidence."""

    sae: sae_lens.TrainingSAE[Any] | None = None
    """An SAE trained at the recommended L0, where one was trained that has it."""

    sae_l0: float | None = None
    """The L0 of `sae` as it is used, measured on held-out samples; it lies in `interval`."""

    @property
    def counted(self) -> float | None:
        """How many features were counted, in doubt or not."""
        return self.active.counted

    @property
    def half_width(self) -> float | None:
        """Of the interval, as a share of the L0."""
        if self.l0 is None or self.interval is None:
            return None
        return (self.interval[1] - self.interval[0]) / (2 * self.l0)

    def to_frame(self) -> pd.DataFrame:
        """The SAEs that it rests on: a row each, in order of L0."""
        return self.sweep.table.sort_values("l0")

    def paragraphs(self) -> list[tuple[str, tuple[str, ...]]]:
        """Both answers in words, and what speaks for them: heads with their points."""
        width = f"SAEs of {self.sweep.d_sae:,} latents"
        if self.l0 is None or self.interval is None:
            answer = f"No recommendation for {width}:", self.doubts
        else:
            low, high = self.interval
            answer = f"L0 {self.l0:.4g}, between {low:.4g} and {high:.4g}, for {width}", ()
        head = "Why:" if self.l0 is not None else "Observed:"
        same = ", which these SAEs have room for" if self.l0 and self.basis == "count" else ""
        active = f"Features active per sample: {self.active}{same}", self.active.doubts
        return [answer, (head, self.reasons), active]

    def __repr__(self) -> str:
        return "\n".join("\n  - ".join((head, *points)) for head, points in self.paragraphs())

    def _repr_html_(self) -> str:
        (answer, *_), *_ = paragraphs = self.paragraphs()
        words = "".join(
            f"<p>{'<b>' * (head is answer)}{escape(head)}{'</b>' * (head is answer)}</p>"
            + (_list(points) if points else "")
            for head, points in paragraphs
        )
        return with_figure(words, "recommendation:plot_recommendation", self)


def _list(lines: tuple[str, ...]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def recommend_l0(sweep: EvaluatedSweep) -> L0Recommendation:
    """Judge an evaluated sweep.

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
        sweep: of `evaluate_sweep`, or the evidence of a recommendation.
    """
    counts = [count for count in sweep.counts if math.isfinite(count.presence.score)]
    if not counts:
        return _without_a_count(sweep)
    presence = counts[0].presence
    # Those that have to agree: all that are clear, and all about as good as the best. A start that
    # ended in a poor minimum is neither, and has no say.
    limit = max(1.5 * presence.score + 0.005, CLEAR_SCORE)
    close = [count for count in counts if count.presence.score <= limit]
    l0 = presence.l0
    spread = max(abs(count.presence.l0 / l0 - 1) for count in close)
    half = (
        SMALLEST_HALF_WIDTH
        + SCORE_WEIGHT * presence.score
        + spread
        + 2 * presence.standard_error / l0
        + (UNCONFIRMED if len({count.group for count in close}) == 1 else 0.0)
    )
    curves = read_curves(sweep, l0)
    reasons = _reasons(sweep, close, spread, curves)
    interval = (l0 * (1 - half), l0 * (1 + half))
    of_count = (
        *_those(_noise_doubt(close[0])),
        *_doubts_of_counts(sweep.d_sae, close, spread),
        *_doubts_of_curves(curves, presence.score),
    )
    active = FeaturesActive(l0, interval, l0, ())
    if of_count:
        active = FeaturesActive(None, None, l0, of_count)
    # Those that leave the question to what SAEs of different seeds share.
    of_sae = (
        *of_count,
        *_those(_width_doubt(sweep.d_sae, presence), _dead_doubt(sweep, l0)),
    )
    doubts = (*of_sae, *_doubts_of_sweep(sweep.table, l0))
    agreement = read_agreement(sweep.table, sweep.d_sae, sweep.on_noise)
    found = L0Recommendation(l0, interval, "count", reasons, (), active, agreement, curves, sweep)
    if not doubts:
        return found
    declined = replace(found, l0=None, interval=None, doubts=doubts)
    return _by_agreement(declined) if of_sae else declined


def _by_agreement(declined: L0Recommendation) -> L0Recommendation:
    """How alike SAEs of different seeds are decides, if it can, where the count does not."""
    if (agreement := declined.agreement) is None:
        return declined
    counts = declined.sweep.counts
    if doubts := _doubts_of_agreement(agreement, bool(counts and counts[0].is_noise)):
        return replace(declined, doubts=(*declined.doubts, *doubts))
    on_noise = ""
    if not math.isnan(agreement.on_noise):
        on_noise = f" On noise of the same mean and covariance they share {agreement.on_noise:.0f}."
    reasons = (
        f"SAEs of different seeds are most alike around an L0 of {agreement.l0:.4g}, with a PW-MCC "
        f"of {agreement.pw_mcc:.3f}. They share {agreement.n_shared:.0f} latents there, "
        f"{agreement.share:.0%} of those that fire (pairs of nearest, with a cosine of "
        f"{SHARED:g} or more, by its fourth power).{on_noise}",
        f"The count does not decide: {declined.doubts[0]}",
        *declined.reasons,
    )
    return replace(
        declined,
        l0=agreement.l0,
        interval=agreement.interval,
        basis="agreement",
        reasons=reasons,
        doubts=(),
    )


def needs_control(found: L0Recommendation) -> bool:
    """Whether it rests, or could rest, on agreement without having seen SAEs trained on noise."""
    peak = found.agreement
    decides = found.l0 is None or found.basis == "agreement"
    if peak is None or not decides or not math.isnan(peak.on_noise):
        return False
    return not peak.at_end and peak.share >= SMALLEST_SHARE


def _doubts_of_agreement(agreement: Agreement, needs_control: bool) -> tuple[str, ...]:
    on_noise = agreement.on_noise
    # Two standard deviations of the difference of two counts: 10 of few latents are no more than 5.
    by_chance = 0.0 if math.isnan(on_noise) else 2 * math.sqrt(agreement.n_shared + on_noise)
    return _those(
        (
            needs_control and math.isnan(agreement.on_noise),
            "SAEs of different seeds may share latents on noise as well: no SAEs of about that L0 "
            "were trained on it. find_l0 trains some.",
        ),
        (
            agreement.n_shared < max(MORE_THAN_ON_NOISE * on_noise, on_noise + by_chance),
            f"SAEs of an L0 of {agreement.l0:.4g} share {agreement.n_shared:.0f} latents, and "
            f"{on_noise:.0f} if they are trained on Gaussian noise of the same mean and covariance "
            f"(at least {MORE_THAN_ON_NOISE:g} times as many are required, and {by_chance:.0f} "
            "more): there is no sign of features.",
        ),
        (
            agreement.at_end,
            f"SAEs of different seeds are most alike at the {agreement.at_end[:-2]}est L0 of the "
            f"sweep; extend it to {agreement.at_end} L0.",
        ),
        (
            agreement.share < SMALLEST_SHARE,
            f"SAEs of different seeds find different latents: where they are most alike they "
            f"share {agreement.share:.0%} of those that fire (at least {SMALLEST_SHARE:.0%} "
            "are required). Train for longer, or narrower SAEs.",
        ),
    )


def _without_a_count(sweep: EvaluatedSweep) -> L0Recommendation:
    if sweep.counts:
        why = "none of the directions learned from the decoders is present in any sample."
    else:
        why = "no SAE of the sweep has a decoder to learn from; all have diverged or are empty."
    # A latent that fires as often as the mean one does must have had the chance to.
    firings = sweep.n_samples * sweep.table["l0"].to_numpy(float) / sweep.d_sae
    silent = sweep.table["dead_latents"].to_numpy(float)
    dead = (silent > MOST_DEAD * sweep.d_sae) & ~(firings < ENOUGH_FIRINGS)
    alive = replace(sweep, table=sweep.table[~dead], projections=sweep.projections[~dead])
    curves = read_curves(alive, None)
    names = ", ".join(map(str, sweep.table.loc[dead, "sae_id"]))
    doubts = _those(
        (True, why),
        (
            bool(dead.any()),
            f"more than half of the latents of {names} are silent on all {sweep.n_samples:,} "
            "samples, and the reading of the curves leaves these SAEs out. Train for longer, or "
            "with reinit_dead_every.",
        ),
    )
    agreement = read_agreement(sweep.table, sweep.d_sae, sweep.on_noise)
    active = FeaturesActive(None, None, None, doubts)
    words = curves_in_words(curves)
    found = L0Recommendation(
        None, None, "agreement", words, doubts, active, agreement, curves, sweep
    )
    return _by_agreement(found)


def _those(*doubts: tuple[object, str]) -> tuple[str, ...]:
    return tuple(text for holds, text in doubts if holds)


def _noise_doubt(best: Count) -> tuple[object, str]:
    return (
        best.is_noise,
        "the learned directions show no sign of features: on Gaussian noise of the same mean and "
        f"covariance they cost {best.noise_cost:.2f} times as much as on the activations, and at "
        f"least {SMALLEST_NOISE_COST:g} times is required.",
    )


def _width_doubt(d_sae: int, presence: Presence) -> tuple[object, str]:
    n = presence.n_directions
    return (
        n > WIDTH_TOLERANCE * d_sae + 1,
        f"the SAEs are too narrow for it: the activations are made of {n} directions, of which "
        f"{presence.l0:.2f} are present at a time, and an SAE with {d_sae} latents has to merge or "
        f"drop some at any L0. With d_sae ≥ {n} it would.",
    )


def _doubts_of_counts(d_sae: int, close: list[Count], spread: float) -> tuple[str, ...]:
    presence = close[0].presence
    n = presence.n_directions
    lowest, highest = (pick(count.presence.l0 for count in close) for pick in (min, max))
    return _those(
        (
            n >= AT_MOST * most_directions(d_sae),
            f"the activations are made of at least {n} directions, as many as could be learned "
            f"from SAEs of {d_sae} latents: there may be more. Train wider SAEs.",
        ),
        (
            presence.ambiguity > LARGEST_SCORE,
            f"present and absent directions do not part: {presence.ambiguity:.0%} of the count "
            f"lies where nothing tells them apart (at most {LARGEST_SCORE:.0%} may). Train on more "
            "samples; if that does not help, the activations may have no features of a typical "
            "magnitude.",
        ),
        (
            presence.residual > LARGEST_SCORE,
            f"the learned directions leave {presence.residual:.0%} of the variance unexplained "
            f"(at most {LARGEST_SCORE:.0%} may be). Train wider SAEs, or for longer.",
        ),
        (
            spread > LARGEST_SPREAD,
            f"starts disagree: they count from {lowest:.2f} to {highest:.2f}. Train for longer, "
            "or with more seeds.",
        ),
    )


def _dead_doubt(sweep: EvaluatedSweep, l0: float) -> tuple[object, str]:
    dead = sweep.table["dead_latents"].to_numpy()
    dead = dead[np.abs(sweep.table["l0"].to_numpy(float) / l0 - 1) < 2 * NEAR]
    n_dead = dead.min(initial=sweep.d_sae) if len(dead) else 0
    return (
        n_dead > MOST_DEAD * sweep.d_sae,
        f"most latents are dead in every SAE near an L0 of {l0:.2f} ({n_dead} of "
        f"{sweep.d_sae} at best); re-initialise dead latents (TrainOptions.reinit_dead_every), or "
        "train narrower SAEs.",
    )


def _doubts_of_sweep(table: pd.DataFrame, l0: float) -> tuple[str, ...]:
    everywhere = table["l0"].to_numpy(float)
    reached = everywhere[np.isfinite(everywhere) & (everywhere > 0)]
    relative = reached / l0
    has_below = ((relative >= BELOW[0]) & (relative < 1 - NEAR)).any()
    off = np.abs(reached - l0)
    next_to = f"{reached[off.argmin()]:.2f}" if len(off) else ""
    return _those(
        (
            not has_below and not _sticks(table, l0),
            f"the sweep has no SAE clearly below the {l0:.2f} that were counted, with an L0 of "
            f"{BELOW[0] * l0:.3g} to {(1 - NEAR) * l0:.3g}; "
            f"{'train some there' if (relative < BELOW[0]).any() else 'extend it to lower L0'}.",
        ),
        (
            # Half a latent off is as near as a whole k comes.
            len(off) > 0 and off.min() > max(CLOSE * l0, 0.5),
            f"the sweep has no SAE near the {l0:.2f} that were counted (the next has an L0 of "
            f"{next_to}); train some there.",
        ),
        (
            not (relative > 1 + NEAR).any(),
            f"the sweep has no SAE clearly above the {l0:.2f} that were counted, with an L0 of "
            f"more than {(1 + NEAR) * l0:.3g}; extend it to higher L0.",
        ),
    )


def _sticks(table: pd.DataFrame, l0: float) -> bool:
    """Whether SAEs stay at an L0 though their target or coefficient calls for less.

    JumpReLU SAEs do at the true L0, so that a sweep may have none below it. SAEs with a k do not.
    """
    here = np.abs(table["l0"].to_numpy(float) / l0 - 1) < NEAR
    column = next((c for c in ("target_l0", "coefficient") if c in table), None)
    if column is None:
        return False
    settings = np.unique(table[column].to_numpy(float)[here])
    settings = settings[np.isfinite(settings)]
    if len(settings) < _STICKING:
        return False
    if column == "target_l0":
        return bool(settings[0] < (1 - NEAR) * l0)
    return bool(settings[-1] >= _TURNED * settings[0])


def _doubts_of_curves(curves: tuple[Curve, ...], score: float) -> tuple[str, ...]:
    # Where features overlap or nest, curves fall towards low L0 though the count is right.
    if score < CLEAR_SCORE:
        return ()
    verdicts = {curve.metric: curve.verdict for curve in curves}
    n_projections = len(verdicts) - 1
    up, down = (
        [name for name, said in verdicts.items() if said == verdict and name != "c_dec"]
        for verdict in ("rises", "falls")
    )
    n_falling = list(verdicts.values()).count("falls")
    disagree = bool(up and down)
    return _those(
        (
            disagree,
            f"the n disagree: towards lower L0, s_n^dec rises for {len(up)} of {n_projections} n "
            f"({', '.join(up)}) and falls for {len(down)} ({', '.join(down)}), and the count alone "
            "is not clear enough. Train for longer, or with more seeds.",
        ),
        (
            n_falling > len(curves) / 2 and not disagree,
            f"the curves point lower: {n_falling} of {len(curves)} (s_n^dec for several n, and "
            "c_dec) are smaller in SAEs of a clearly lower L0. Extend the sweep to lower L0, and "
            "train for longer.",
        ),
    )


def _reasons(
    sweep: EvaluatedSweep, close: list[Count], spread: float, curves: tuple[Curve, ...]
) -> tuple[str, ...]:
    best, presence = close[0], close[0].presence
    n_groups = len({count.group for count in close})
    agreement = (
        f"{len(close)} starts from {n_groups} {'group' if n_groups == 1 else 'groups'} of SAEs "
        f"{'agree within' if spread <= LARGEST_SPREAD else 'are apart by up to'} {spread:.1%}"
    )
    if n_groups == 1:
        alone = "No second start" if len(close) == 1 else f"{agreement}, but none of another group"
        agreement = (
            f"{alone} came as close, so that agreement of different SAEs was not seen; an interval "
            f"is wider by ± {UNCONFIRMED:.0%} for it"
        )
    return (
        f"{presence.n_directions} directions make up the activations, learned from SAE "
        f"{best.sae_id}; {presence.l0:.2f} of them are present per sample, over "
        f"{sweep.n_samples:,} samples.",
        f"Present and absent part at {presence.cut:.2f} of a direction's usual magnitude; "
        f"{presence.ambiguity:.1%} of the count lies where nothing tells them apart, and the "
        f"directions leave {presence.residual:.1%} of the variance unexplained. On noise of the "
        f"same mean and covariance they cost {best.noise_cost:.1f} times as much.",
        f"{agreement}.",
        _said_by_curves(sweep, presence, curves),
    )


def _said_by_curves(sweep: EvaluatedSweep, presence: Presence, curves: tuple[Curve, ...]) -> str:
    projections = [curve for curve in curves if curve.n is not None]
    verdicts = [curve.verdict for curve in projections]
    if not projections:
        return (
            "No n lies well above this L0 and below half the latents, so s_n cannot be evaluated "
            "here."
        )
    if verdicts.count("unknown") == len(verdicts):
        if _sticks(sweep.table, presence.l0):
            return "SAEs with a lower target L0 stay at this one, so the curves say nothing below."
        return "No SAE lies clearly below this L0, or none near it, so the curves say nothing."
    falls = f" and falls for {verdicts.count('falls')}" if "falls" in verdicts else ""
    c_dec = next(curve.verdict for curve in curves if curve.n is None)
    said = (
        f"Towards lower L0, s_n^dec rises for {verdicts.count('rises')} of {len(verdicts)} n "
        f"({projections[0].metric} to {projections[-1].metric}){falls}, c_dec {c_dec}."
    )
    if "rises" in verdicts:
        return said
    said += " Features that overlap or nest may do that to these curves."
    return said + (" The count is clear and decides." if presence.score < CLEAR_SCORE else "")
