"""How much latents mix, over the strength of the correlation and over how far L0 is too low.

Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, the toy model of 5 features.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from sparse_but_wrong.experiments.analysis import NamedFigure, Results
from sparse_but_wrong.experiments.mixing import (
    EVALUATION_SAMPLES,
    NO_COMPONENT,
    TRUE_L0,
    Mixing,
    concentrated_in_words,
    correlations_in_words,
    elsewhere_in_words,
    floats,
    is_lowered,
    is_too_low,
    lowering_in_words,
    mean_and_spread,
    mixing_by,
    not_finite,
    small_sae,
    strictly_rising,
)
from sparse_but_wrong.experiments.rank_correlation import rank_correlation
from sparse_but_wrong.experiments.requirements import true_l0_of
from sparse_but_wrong.experiments.verdict import Check, Verdict
from sparse_but_wrong.experiments.worlds import BUDGET, small_world
from sparse_but_wrong.runs.spec import ExperimentSpec

if TYPE_CHECKING:
    import pandas as pd

_SEEDS = range(5)
_CORRELATIONS = tuple(round(tenth / 10, 1) for tenth in range(-5, 6))
_KS = (1.7, 1.75, 1.8, 1.85, 1.9, 1.95, 2.0)

CLEARLY_LOWER = 0.02
"""Reconstruction errors that differ by less than this share of them count as equal."""

CORRELATION_STRENGTH = ExperimentSpec(
    name="correlation-strength",
    title="How much latents mix at k = 1.8, over the strength of the correlation",
    claim="mixing grows with the correlation and has its sign",
    worlds={f"c_{c:+g}_seed_{seed}": small_world(c) for c in _CORRELATIONS for seed in _SEEDS},
    saes=tuple(
        small_sae(1.8, c, seed, world=f"c_{c:+g}_seed_{seed}", sae_id=f"c_{c:+g}_seed_{seed}")
        for c in _CORRELATIONS
        for seed in _SEEDS
    ),
    training=BUDGET,
    evaluation_samples=EVALUATION_SAMPLES,
    analysis="correlation-strength",
)

L0_STRENGTH = ExperimentSpec(
    name="l0-strength",
    title="How much latents mix, over how far k is below the true L0",
    claim="the further k is below the true L0, the more latents mix",
    worlds={f"c_{c:+g}_seed_{seed}": small_world(c) for c in (0.4, -0.4) for seed in _SEEDS},
    saes=tuple(
        small_sae(
            k,
            c,
            seed,
            world=f"c_{c:+g}_seed_{seed}",
            sae_id=f"c_{c:+g}_seed_{seed}_k_{k:g}{'_lowered' if lowered else ''}",
            added=lowered,
            lowered=lowered,
        )
        for c in (0.4, -0.4)
        for seed in _SEEDS
        for k, lowered in (*((k, False) for k in _KS), *((k, True) for k in _KS if k < TRUE_L0))
    ),
    training=BUDGET,
    evaluation_samples=EVALUATION_SAMPLES,
    analysis="l0-strength",
)


class CorrelationStrength(Mixing):
    """Whether mixing grows with the correlation."""

    def check(self, spec: ExperimentSpec) -> None:
        """As the base class: SAEs of one k, at two correlations or more."""
        super().check(spec)
        _require_several(spec, "correlation")
        ks = sorted({sae.factors["k"] for sae in spec.saes}, key=float)
        if len(ks) > 1:
            raise ValueError(
                f"the analysis {spec.analysis!r} compares correlations at one k, but the spec "
                f"{spec.name!r} has several: {', '.join(map(str, ks))}."
            )

    def judge(self, results: Results) -> Verdict:
        """As the base class."""
        return judge_correlations(results.tables["mixing"].frame)

    def draw(self, results: Results) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.mixing import mixing_vs_correlation

        table = results.tables["mixing"].frame
        if not np.isfinite(table["mixing"]).any():
            return []
        return [
            NamedFigure(
                "overview",
                mixing_vs_correlation(table),
                "What the latents of the other features hold of feature 0: each latent (dots), "
                "and the mean over latents with its mean and standard deviation over seeds.",
            )
        ]


class L0Strength(Mixing):
    """Whether mixing grows as L0 falls."""

    def check(self, spec: ExperimentSpec) -> None:
        """As the base class: for each correlation, two values of k or more up to the true L0."""
        super().check(spec)
        _require_several(spec, "k")
        ks: dict[float, set[float]] = {}
        for sae in spec.saes:
            at = ks.setdefault(float(sae.factors["correlation"]), set())
            k = float(sae.factors["k"])
            if not sae.added and k <= true_l0_of(spec, sae.world) + 1e-9:
                at.add(k)
        few = [f"{c:+g}" for c, at in ks.items() if len(at) < 2]
        if few:
            raise ValueError(
                f"the analysis {spec.analysis!r} needs, for each correlation, SAEs at several "
                f"values of k up to the true L0 that are not added; the spec {spec.name!r} has "
                f"none or one at correlation {', '.join(few)}."
            )
        if any(sae.factors["correlation"] == 0 for sae in spec.saes):
            raise ValueError(
                f"the analysis {spec.analysis!r} looks at mixing of the correlation's sign, but "
                f"the spec {spec.name!r} has SAEs of correlation 0."
            )

    def judge(self, results: Results) -> Verdict:
        """As the base class."""
        return judge_l0s(results.tables["mixing"].frame, lowering_in_words(results.spec))

    def draw(self, results: Results) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.mixing import mixing_vs_k

        table = results.tables["mixing"].frame
        if not np.isfinite(table["mixing"]).any():
            return []
        added = [sae for sae in results.spec.saes if sae.added]
        all_lowered = bool(added) and all(map(is_lowered, added))
        label = "$k$ lowered" if all_lowered else "added"
        how = f", whose k came down {lowering_in_words(results.spec)}" if all_lowered else ""
        return [
            NamedFigure(
                "overview",
                mixing_vs_k(table, label),
                "What the latents of the other features hold of feature 0: each latent (dots), "
                "and the mean over latents with its mean and standard deviation over seeds. "
                f"Dashed: SAEs added to the published ones{how}.",
            )
        ]


def judge_correlations(table: pd.DataFrame) -> Verdict:
    """Whether mixing rises with the correlation and has its sign.

    Args:
        table: of mixing, all SAEs of the same k.
    """
    rises = "the mean over seeds of mixing rises from each correlation to the next"
    signs = (
        "it has the sign of the correlation for every SAE, and without correlation it is at most "
        f"{NO_COMPONENT:g} either way"
    )
    diverged = not_finite(table)
    if diverged:
        return Verdict((Check(rises, diverged, None), Check(signs, diverged, None)))
    groups = mixing_by(table, "correlation")
    means = {c: float(values.mean()) for c, values in groups.items()}
    said = "; ".join(f"{c:+g}: {mean_and_spread(values)}" for c, values in groups.items())
    falls = [f"{a:+g} to {b:+g}" for a, b in pairwise(means) if not means[a] < means[b]]
    where = f"; it does not from {', '.join(falls)}" if falls else ""
    correlation, mixing = floats(table, "correlation"), floats(table, "mixing")
    rank = rank_correlation(correlation, mixing)
    right = np.sign(mixing[correlation != 0]) == np.sign(correlation[correlation != 0])
    without = np.abs(mixing[correlation == 0])
    largest = f"; without correlation up to {without.max():.3f}" if without.size else ""
    return Verdict(
        (
            Check(
                rises,
                f"{said}{where}; Spearman's rank correlation over all SAEs {rank:.3f}",
                strictly_rising(list(means.values())),
            ),
            Check(
                signs,
                f"{int(right.sum())} of {len(right)} SAEs{largest}",
                bool(right.all() and (without <= NO_COMPONENT).all()),
            ),
        ),
        (
            correlations_in_words(table),
            *concentrated_in_words(table),
            *elsewhere_in_words(table),
        ),
    )


def judge_l0s(table: pd.DataFrame, lowering: str = "during training") -> Verdict:
    """Whether mixing of the correlation's sign rises as k falls, for every correlation by itself.

    Args:
        table: of mixing, no correlation 0.
        lowering: from where the k of the lowered SAEs came down, and when.
    """
    checks = []
    # Above the true L0 nothing is left to mix.
    published = table.loc[~table["added"]]
    judged = published.loc[floats(published, "k") <= floats(published, "true_l0") + 1e-9]
    for correlation in sorted(np.unique(floats(judged, "correlation")).tolist(), reverse=True):
        rows = judged.loc[floats(judged, "correlation") == correlation]
        claim = (
            f"correlation {correlation:+g}: the mean over seeds of mixing, with the sign of the "
            "correlation, rises from each k to the next lower one"
        )
        diverged = not_finite(rows)
        if diverged:
            checks.append(Check(claim, diverged, None))
            continue
        falling_k = dict(reversed(mixing_by(rows, "k").items()))
        said = "; ".join(f"k = {k:g}: {mean_and_spread(v)}" for k, v in falling_k.items())
        sign = float(np.sign(correlation))
        rank = rank_correlation(floats(rows, "k"), sign * floats(rows, "mixing"))
        means = [sign * float(values.mean()) for values in falling_k.values()]
        if len(means) < 2:
            checks.append(Check(claim, f"{said}; there is no other k to compare it with", None))
            continue
        checks.append(
            Check(
                claim,
                f"{said}; Spearman's rank correlation with k over all SAEs {rank:.3f}",
                strictly_rising(means),
            )
        )
    remarks = (
        correlations_in_words(table),
        *concentrated_in_words(published),
        *elsewhere_in_words(published),
        *_lowered(table, lowering),
        *_inference_l0(table),
    )
    return Verdict(tuple(checks), remarks)


def _lowered(table: pd.DataFrame, lowering: str) -> list[str]:
    """What becomes of the SAEs whose k was lowered, beside those that began low."""
    published = table.loc[~table["added"] & ~table["lowered"]]
    added = table.loc[table["added"] & table["lowered"]]
    if added.empty or not_finite(table):
        return []
    lines = []
    for correlation in sorted(set(floats(added, "correlation").tolist()), reverse=True):
        rows = added.loc[floats(added, "correlation") == correlation]
        falling_k = dict(reversed(mixing_by(rows, "k").items()))
        sign = float(np.sign(correlation))
        means = [sign * float(values.mean()) for values in falling_k.values()]
        said = "; ".join(f"k = {k:g}: {mean_and_spread(v)}" for k, v in falling_k.items())
        does = "rises" if strictly_rising(means) else "does not rise"
        rising = (
            f"mixing {does} from each k to the next lower one ({said})"
            if len(means) > 1
            else f"mixing is, at {said}"
        )
        better = []
        for k in falling_k:
            at_k = rows.loc[floats(rows, "k") == k]
            lowered = float(floats(at_k, "mse").mean())
            of_setting = (floats(published, "correlation") == correlation) & (
                floats(published, "k") == k
            )
            low = published.loc[of_setting]
            began = floats(low, "mse")
            if began.size and lowered < float(began.mean()) * (1 - CLEARLY_LOWER):
                better.append(
                    f"{lowered:.3f} at L0 {floats(at_k, 'l0').mean():.3f} in place of "
                    f"{began.mean():.3f} at L0 {floats(low, 'l0').mean():.3f} "
                    f"for k = {k:g}"
                )
        lines.append(
            f"Correlation {correlation:+g}, SAEs added to the published ones, whose k came down "
            f"{lowering}: {rising}."
            + (
                " In use, with their thresholds and so each at its own L0, their error is lower: "
                f"{', '.join(better)}. That is consistent with a poorer minimum where k was low "
                "from the start, but not measured at one L0."
                if better
                else ""
            )
        )
    return lines


def _inference_l0(table: pd.DataFrame) -> list[str]:
    """How far the L0 of the SAEs in use is from the k they were trained with."""
    rows = table.loc[is_too_low(table) & np.isfinite(floats(table, "l0"))]
    if rows.empty:
        return []
    gap = floats(rows, "l0") - floats(rows, "k")
    return [
        "k is what each SAE is trained with. In use, with its threshold, the L0 of those below "
        f"the truth is {gap.min():+.2f} to {gap.max():+.2f} from it."
    ]


def _require_several(spec: ExperimentSpec, factor: str) -> None:
    values = {sae.factors[factor] for sae in spec.saes}
    if len(values) < 2:
        raise ValueError(
            f"the analysis {spec.analysis!r} needs SAEs at several values of {factor}; the spec "
            f"{spec.name!r} has one, {next(iter(values))}."
        )
