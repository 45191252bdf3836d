"""The low-l0 experiment: what SAEs learn at the right k, at too low ones and at too high ones."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from sparse_but_wrong.experiments.analysis import (
    Analysis,
    Figures,
    MeasuredTable,
    Run,
    draw_curves,
    floats,
    rank_correlation,
)
from sparse_but_wrong.experiments.sweep import missing_sides
from sparse_but_wrong.experiments.true_features import (
    by_k,
    cosine_panels,
    draw_decoders,
    nearest,
)
from sparse_but_wrong.experiments.verdict import NEAR, RECOVERED, Check, Verdict, check
from sparse_but_wrong.figures.heatmaps import correlation_heatmap, cosines_vs_correlation
from sparse_but_wrong.metrics.recovery import matched_cosines
from sparse_but_wrong.worlds.correlations import firing_correlation

SAME_ORDER = 0.5
"""A rank correlation above this between firing correlation and mixing counts as the same order."""

SAME_SIGN = 0.9
"""A share above this of pairs with the sign of their correlation counts as the same sign."""

CLEAR = 0.1
"""Firings correlated by more than this have a clear correlation."""

MIXED = 0.05
"""A latent with a cosine beyond this with another feature has clearly mixed it in."""


def _measure(run: Run) -> dict[str, MeasuredTable]:
    """How well each feature was recovered, what each pair mixed, and both by k."""
    world, between = run.world(), firing_correlations(run)
    probabilities = run.spec.toy_world(run.only_world).firing_probabilities
    i, j = np.nonzero(~np.eye(len(between), dtype=bool))
    recovered, mixed = [], []
    for sae in run.spec.saes:
        matrix = matched_cosines(run.saes[sae.sae_id], world.directions).double().numpy()
        of_sae = {"sae_id": sae.sae_id, "k": sae.factors["k"]}
        own = {"firing_probability": probabilities, "cosine": matrix.diagonal()}
        recovered.append(pd.DataFrame({**of_sae, "feature": np.arange(len(between)), **own}))
        pairs = {"firing_correlation": between[i, j], "cosine": matrix[i, j]}
        mixed.append(pd.DataFrame({**of_sae, "feature": i, "other": j, **pairs}))
    recovery, mixing = (pd.concat(frames, ignore_index=True) for frames in (recovered, mixed))
    return {
        "by_k": MeasuredTable(
            summarise(recovery, mixing),
            f"Features recovered (matched cosine > {RECOVERED:g}); how the cosine with the other "
            "feature goes with the correlation of the firings, over all pairs; the share with its "
            f"sign, of clear pairs (|correlation| > {CLEAR:g}) and mixed ones (|cosine| > "
            f"{MIXED:g}).",
        ),
        "recovery": MeasuredTable(
            recovery, "Cosine of the latent matched to each feature with that feature."
        ),
        "mixing": MeasuredTable(
            mixing,
            "Cosine of the latent matched to one feature with each other feature, and how the "
            "firings of the two are correlated.",
        ),
    }


def summarise(recovery: pd.DataFrame, mixing: pd.DataFrame) -> pd.DataFrame:
    """A row per k: how many features are recovered, and what latents mix in.

    Args:
        recovery: a row per SAE and feature; `mixing` has one per ordered pair of features.
    """
    rows = []
    for k, of_k in recovery.groupby("k"):
        pairs, own = mixing.loc[mixing["k"] == k], floats(of_k, "cosine")
        firings, cosines = floats(pairs, "firing_correlation"), floats(pairs, "cosine")
        order = rank_correlation(firings, cosines)
        same = np.sign(firings) == np.sign(cosines)
        clear = np.abs(firings) > CLEAR
        mixed = clear & (np.abs(cosines) > MIXED)
        rows.append(
            {
                "k": float(of_k["k"].iloc[0]),
                "diverged": not (np.isfinite(own).all() and np.isfinite(cosines).all()),
                "features": len(own),
                "recovered": int((own > RECOVERED).sum()),
                "mean_cosine": np.nanmean(own) if np.isfinite(own).any() else math.nan,
                "mean_abs_cosine_with_others": np.abs(cosines).mean(),
                "rank_correlation": order,
                "pearson": np.corrcoef(firings, cosines)[0, 1] if order == order else math.nan,
                "clear_pairs": int(clear.sum()),
                "clear_with_sign": same[clear].mean() if clear.any() else math.nan,
                "mixed_pairs": int(mixed.sum()),
                "mixed_with_sign": same[mixed].mean() if mixed.any() else math.nan,
            }
        )
    return pd.DataFrame(rows)


def judge_low_l0(run: Run) -> Verdict:
    """Whether the right k recovers all features, and what those below and above it do.

    Right is a k within NEAR of the true L0, of several the nearest. Nothing is judged by an SAE
    that diverged, nor on a side that has no SAE.
    """
    true_l0 = run.only_l0
    by_k, recovery, mixing = (run.tables[name].frame for name in ("by_k", "recovery", "mixing"))
    rows = {row["k"]: row for row in by_k.to_dict("records")}
    right = rows[nearest(rows, true_l0)]
    at = f"at k = {right['k']:g}"
    of_right = recovery.loc[recovery["k"] == right["k"]]
    worst = of_right.loc[of_right["cosine"].fillna(-math.inf).idxmin()]
    not_right = ""
    if abs(right["k"] - true_l0) > NEAR:
        not_right = f"k = {right['k']:g} is not within {NEAR:g} of the true L0"
    checks = [
        check(
            f"{at} every feature has a latent of its own with cosine > {RECOVERED:g}",
            f"{right['recovered']} of {right['features']}; the smallest is {worst['cosine']:.4f} "
            f"(feature {worst['feature']:g})",
            right["recovered"] == right["features"],
            unless=_diverged(right) or not_right,
        )
    ]
    for k, row in rows.items():
        if k < true_l0 - NEAR:
            checks += _judge_mixing(row)
        elif k > true_l0 + NEAR:
            checks.append(
                check(
                    f"at k = {k:g} fewer features are recovered (cosine > {RECOVERED:g}) than {at}",
                    f"{row['recovered']} of {row['features']} against {right['recovered']}; the "
                    f"mean cosine is {row['mean_cosine']:.3f} against {right['mean_cosine']:.3f}",
                    row["recovered"] < right["recovered"],
                    unless=_diverged(right, row) or not_right,
                )
            )
    for side in missing_sides(list(rows), true_l0):
        what = "latents mix in order" if side == "below" else "fewer features are recovered"
        claim = f"at a k more than {NEAR:g} {side} the true L0 {true_l0:.2f} {what}"
        checks.append(check(claim, "", None, unless="there is no such SAE"))
    remarks = []
    for row in of_right.loc[of_right["cosine"] <= RECOVERED].head(5).to_dict("records"):
        of_latent = mixing.loc[(mixing["k"] == right["k"]) & (mixing["feature"] == row["feature"])]
        strongest = of_latent.loc[of_latent["cosine"].abs().idxmax()]
        remarks.append(
            f"Feature {row['feature']:g}, which fires with probability "
            f"{row['firing_probability']:.3g}, has no latent of its own {at}: the latent matched "
            f"to it has a cosine of {strongest['cosine']:+.2f} with feature {strongest['other']:g}."
        )
    return Verdict(tuple(checks), tuple(remarks))


def _judge_mixing(row: dict[str, Any]) -> list[Check]:
    at, same, n_clear = f"at k = {row['k']:g}", row["clear_with_sign"], row["clear_pairs"]
    order = row["rank_correlation"]
    return [
        check(
            f"{at} latents mix in other features in the order of their correlation: rank "
            f"correlation > {SAME_ORDER:g} over all pairs",
            f"{order:.2f} (Spearman; Pearson {row['pearson']:.2f})",
            order > SAME_ORDER,
            unless=_diverged(row) or ("no rank correlation" if math.isnan(order) else ""),
        ),
        check(
            f"{at} more than {SAME_SIGN:.0%} of the pairs with |firing correlation| > {CLEAR:g} "
            "are mixed with the sign of their correlation",
            f"{same:.0%} of {n_clear}" if n_clear else "",
            same > SAME_SIGN,
            unless=_diverged(row) or ("" if n_clear else "there are no such pairs"),
        ),
    ]


def _diverged(*rows: dict[str, Any]) -> str:
    """Which of the SAEs that a check looks at diverged; nothing if none did."""
    which = " and ".join(f"k = {row['k']:g}" for row in rows if row["diverged"])
    return f"the SAE at {which} diverged" if which else ""


def _draw(run: Run) -> Figures:
    def title(k: float) -> str:
        off = k - run.only_l0
        side = "right" if abs(off) <= NEAR else "too low" if off < 0 else "too high"
        return f"$k = {k:g}$: {side}"

    saes = by_k(run.spec)
    panels = cosine_panels(run, ((title(k), run.saes[sae.sae_id]) for k, sae in saes.items()))
    figures = draw_decoders("overview", panels, run.only_l0)
    if panels:
        between = firing_correlations(run)
        apart = ~np.eye(len(between), dtype=bool)
        points = [(name, between[apart], matrix[apart]) for name, matrix in panels]
        caption = (
            "What each latent holds of each other feature, against how the firings of the two are "
            "correlated."
        )
        firings = correlation_heatmap(between, title="Correlation of the firings")
        figures["cosines_vs_correlation"] = (cosines_vs_correlation(points), caption)
        figures["firing_correlation"] = firings
    return {**figures, **draw_curves(run)}


def firing_correlations(run: Run) -> np.ndarray:
    """How the firings of every two features of the world are correlated, shape [F, F]."""
    world = run.world()
    latent, p = world.correlation_matrix, world.firing_probabilities.double().tolist()
    assert latent is not None
    matrix = np.eye(len(p))
    for i, j in combinations(range(len(p)), 2):
        matrix[i, j] = matrix[j, i] = firing_correlation(float(latent[i, j]), p[i], p[j])
    return matrix


ANALYSES = {"low-l0": Analysis(judge_low_l0, _draw, _measure)}
