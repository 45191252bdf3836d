"""The low-l0 experiment: what SAEs learn at the right k, at too low ones and at too high ones.

Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_but_wrong.experiments.analysis import Analysis, MeasuredTable, NamedFigure, Results
from sparse_but_wrong.experiments.findings import NEAR
from sparse_but_wrong.experiments.rank_correlation import pearson, rank_correlation
from sparse_but_wrong.experiments.requirements import (
    require_k_around_the_truth,
    require_k_as_trained,
    require_latent_per_feature,
)
from sparse_but_wrong.experiments.sweep import RECOVERED, require_one_world
from sparse_but_wrong.experiments.verdict import Check, Verdict
from sparse_but_wrong.experiments.worlds import BUDGET, FIFTY_FEATURES, batchtopk
from sparse_but_wrong.metrics.recovery import matched_cosines
from sparse_but_wrong.runs.spec import ONLY_WORLD, ExperimentSpec, SAESpec
from sparse_but_wrong.worlds.correlations import firing_correlation

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

RIGHT_K, TOO_LOW, TOO_HIGH = 11, (9, 5), (14, 18)

SAME_ORDER = 0.5
"""A rank correlation above this between firing correlation and mixing counts as the same order."""

SAME_SIGN = 0.9
"""A share above this of pairs with the sign of their correlation counts as the same sign."""

CLEAR = 0.1
"""Firings correlated by more than this have a clear correlation."""

MIXED = 0.05
"""A latent with a cosine beyond this with another feature has clearly mixed it in."""

LOW_L0 = ExperimentSpec(
    name="low-l0",
    title="BatchTopK SAEs at the right k, at two that are too low and at two that are too high",
    claim="the right k recovers every feature; too low a k mixes correlated features, too high a "
    "k loses some",
    worlds={ONLY_WORLD: FIFTY_FEATURES},
    saes=tuple(
        SAESpec(sae_id=f"k_{k}", architecture="batchtopk", config=batchtopk(k), factors={"k": k})
        for k in sorted((RIGHT_K, *TOO_LOW, *TOO_HIGH))
    ),
    training=BUDGET,
    analysis="low-l0",
)


class LowL0(Analysis):
    """SAEs below, at and above the true L0, each against the true features."""

    def check(self, spec: ExperimentSpec) -> None:
        """As the base class: one world with correlations, BatchTopK SAEs on both sides of its L0.

        Raises:
            ValueError: what is missing in the spec.
        """
        require_one_world(spec)
        require_k_as_trained(spec)
        require_latent_per_feature(spec)
        require_k_around_the_truth(spec, NEAR, above=True)
        (world,) = map(spec.toy_world, spec.worlds)
        if world.correlation is None:
            raise ValueError(
                f"the analysis {spec.analysis!r} compares what is mixed with what is correlated, "
                f"but the world of the spec {spec.name!r} has no correlation."
            )
        for i, p in enumerate(world.firing_probabilities):
            if not 0 < p < 1:
                raise ValueError(
                    f"the analysis {spec.analysis!r} needs the correlation of every two firings, "
                    f"but firing_probabilities[{i}] is {p}: such a feature is correlated with none."
                )

    def measure(self, results: Results) -> dict[str, MeasuredTable]:
        """As the base class: how well each feature was recovered, and what each pair mixed."""
        import pandas as pd

        between = firing_correlations(results)
        (world,) = map(results.spec.toy_world, results.spec.worlds)
        recovered, mixed = [], []
        for sae in results.spec.saes:
            cosines = _cosines(results, sae.sae_id)
            factors = {"sae_id": sae.sae_id, "k": sae.factors["k"]}
            n_features = len(between)
            features = np.arange(n_features)
            recovered.append(
                pd.DataFrame(
                    {
                        **factors,
                        "feature": features,
                        "firing_probability": world.firing_probabilities,
                        "cosine": cosines.diagonal(),
                    }
                )
            )
            i, j = np.nonzero(~np.eye(n_features, dtype=bool))
            mixed.append(
                pd.DataFrame(
                    {
                        **factors,
                        "feature": i,
                        "other": j,
                        "firing_correlation": between[i, j],
                        "cosine": cosines[i, j],
                    }
                )
            )
        return {
            "recovery": MeasuredTable(
                pd.concat(recovered, ignore_index=True),
                "Cosine of the latent matched to each feature with that feature.",
            ),
            "mixing": MeasuredTable(
                pd.concat(mixed, ignore_index=True),
                "Cosine of the latent matched to one feature with each other feature, and how the "
                "firings of the two are correlated.",
            ),
        }

    def judge(self, results: Results) -> Verdict:
        """As the base class."""
        return judge_low_l0(
            results.tables["recovery"].frame,
            results.tables["mixing"].frame,
            results.true_l0[results.only_world],
        )

    def draw(self, results: Results) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.heatmaps import (
            correlation_heatmap,
            cosines_vs_correlation,
            decoder_cosines,
        )
        from sparse_but_wrong.figures.training import training_curves

        true_l0 = results.true_l0[results.only_world]
        saes = sorted(results.spec.saes, key=lambda sae: float(sae.factors["k"]))
        panels = []
        for sae in saes:
            title = f"$k = {sae.factors['k']:g}$: {_side(float(sae.factors['k']), true_l0)}"
            panels.append((title, _cosines(results, sae.sae_id)))
        figures = []
        finite = [(title, matrix) for title, matrix in panels if np.isfinite(matrix).all()]
        if finite:
            figures.append(
                NamedFigure(
                    "overview",
                    decoder_cosines(finite),
                    "Cosine of every latent with every true feature, latents in the order of the "
                    f"features they are matched to. The true L0 is {true_l0:.2f}.",
                )
            )
            between = firing_correlations(results)
            apart = ~np.eye(len(between), dtype=bool)
            figures += [
                NamedFigure(
                    "cosines_vs_correlation",
                    cosines_vs_correlation(
                        [(title, between[apart], matrix[apart]) for title, matrix in finite]
                    ),
                    "What each latent holds of each other feature, against how the firings of the "
                    "two are correlated.",
                ),
                NamedFigure(
                    "firing_correlation",
                    correlation_heatmap(between, title="Correlation of the firings"),
                ),
            ]
        curves = training_curves(results.curves, true_l0)
        return [*figures, NamedFigure("training_curves", curves)]


def judge_low_l0(recovery: pd.DataFrame, mixing: pd.DataFrame, true_l0: float) -> Verdict:
    """Whether the right k recovers all features, and what those below and above it do.

    Nothing is judged by an SAE that diverged, nor of a side that has no SAE.

    Args:
        recovery: a row per SAE and feature with columns `k`, `feature`, `firing_probability` and
            `cosine`.
        mixing: a row per SAE and ordered pair of features with columns `k`, `feature`, `other`,
            `cosine` and `firing_correlation`.
        true_l0: of the world; k within NEAR of it is right, of several the nearest.
    """
    ks = sorted({float(k) for k in recovery["k"]})
    right = min(ks, key=lambda k: abs(k - true_l0))
    of_right = recovery.loc[recovery["k"] == right]
    worst = of_right.loc[of_right["cosine"].fillna(-math.inf).idxmin()]
    n_right = int((of_right["cosine"] > RECOVERED).sum())
    diverged = [k for k in ks if _diverged(recovery, k) or _diverged(mixing, k)]
    is_right = abs(right - true_l0) <= NEAR
    lows = [k for k in ks if k < true_l0 - NEAR]
    highs = [k for k in ks if k > true_l0 + NEAR]
    checks = [
        Check(
            f"at k = {right:g} every feature has a latent of its own with cosine > {RECOVERED:g}",
            _why_not([right], diverged)
            or f"{n_right} of {len(of_right)}; the smallest is {worst['cosine']:.4f} "
            f"(feature {worst['feature']:g})"
            + ("" if is_right else f"; k = {right:g} is not within {NEAR:g} of the true L0"),
            n_right == len(of_right) if is_right and right not in diverged else None,
        )
    ]
    for k in lows:
        checks += _judge_mixing(mixing.loc[mixing["k"] == k], k)
    if not lows:
        checks.append(_no_side("below", "latents mix in other features in order", true_l0))
    for k in highs:
        of_k = recovery.loc[recovery["k"] == k]
        n = int((of_k["cosine"] > RECOVERED).sum())
        checks.append(
            Check(
                f"at k = {k:g} fewer features are recovered (cosine > {RECOVERED:g}) than at k = "
                f"{right:g}",
                _why_not([right, k], diverged)
                or f"{n} of {len(of_k)} against {n_right}; the mean cosine is "
                f"{of_k['cosine'].mean():.3f} against {of_right['cosine'].mean():.3f}",
                n < n_right if is_right and not {right, k} & set(diverged) else None,
            )
        )
    if not highs:
        checks.append(_no_side("above", "fewer features are recovered", true_l0))
    control = mixing.loc[mixing["k"] == right]
    remarks = []
    if right not in diverged:
        remarks.append(
            f"For comparison, the rank correlation at k = {right:g} is {_order(control):+.2f}, "
            f"with a mean |cosine| of {control['cosine'].abs().mean():.4f} between latents and "
            "other features."
        )
    missed = of_right.loc[of_right["cosine"] <= RECOVERED]
    remarks += [_of_missed(row, control) for row in missed.head(5).to_dict("records")]
    for k in (k for k in lows if k not in diverged):
        of_k = recovery.loc[recovery["k"] == k, "cosine"]
        pairs = mixing.loc[mixing["k"] == k]
        remarks.append(
            f"At k = {k:g}, {int((of_k > RECOVERED).sum())} of {len(of_k)} features are recovered; "
            f"the mean matched cosine is {of_k.mean():.3f}, and the mean |cosine| between latents "
            f"and other features {pairs['cosine'].abs().mean():.4f}. {_of_mixed(pairs)}"
        )
    return Verdict(tuple(checks), tuple(remarks))


def _diverged(table: pd.DataFrame, k: float) -> bool:
    return not np.isfinite(table.loc[table["k"] == k, "cosine"].to_numpy(float)).all()


def _why_not(ks: Sequence[float], diverged: Sequence[float]) -> str:
    """Which of the SAEs a check looks at diverged; nothing if none did."""
    which = " and ".join(f"k = {k:g}" for k in ks if k in diverged)
    return f"the SAE at {which} diverged" if which else ""


def _no_side(side: str, what: str, true_l0: float) -> Check:
    claim = f"at a k more than {NEAR:g} {side} the true L0 {true_l0:.2f} {what}"
    return Check(claim, "there is no such SAE", None)


def _of_missed(row: dict[str, Any], pairs: pd.DataFrame) -> str:
    """Where the latent went that is left over for a feature without one of its own."""
    others = pairs.loc[pairs["feature"] == row["feature"]]
    words = (
        f"Feature {row['feature']:g}, which fires with probability "
        f"{row['firing_probability']:.3g}, has no latent of its own at k = {row['k']:g}"
    )
    if not others["cosine"].notna().any():
        return f"{words}."
    strongest = others.loc[others["cosine"].abs().idxmax()]
    return (
        f"{words}: the one left for it has a cosine of {strongest['cosine']:+.2f} with feature "
        f"{strongest['other']:g}."
    )


def _of_mixed(pairs: pd.DataFrame) -> str:
    """How often the sign is right where something was clearly mixed in."""
    clear = pairs["firing_correlation"].abs() > CLEAR
    mixed = pairs.loc[clear & (pairs["cosine"].abs() > MIXED)]
    if mixed.empty:
        return f"No pair with a clear correlation has a |cosine| > {MIXED:g}."
    same = (np.sign(mixed["firing_correlation"]) == np.sign(mixed["cosine"])).mean()
    return (
        f"Of the {len(mixed)} pairs with a clear correlation whose |cosine| is above {MIXED:g}, "
        f"{same:.0%} have the sign of their correlation; among the others the |cosine| is at most "
        f"{MIXED:g}."
    )


def _judge_mixing(pairs: pd.DataFrame, k: float) -> list[Check]:
    order = _order(pairs)
    clear = pairs.loc[pairs["firing_correlation"].abs() > CLEAR]
    same = (np.sign(clear["firing_correlation"]) == np.sign(clear["cosine"])).mean()
    why_not = "" if np.isfinite(pairs["cosine"].to_numpy(float)).all() else "the SAE diverged"
    linear = pearson(pairs["firing_correlation"].to_numpy(float), pairs["cosine"].to_numpy(float))
    sign_claim = (
        f"at k = {k:g} of pairs with |firing correlation| > {CLEAR:g} more than {SAME_SIGN:.0%} "
        "are mixed with the sign of their correlation"
    )
    return [
        Check(
            f"at k = {k:g} latents mix in other features in the order of their correlation: rank "
            f"correlation > {SAME_ORDER:g} over all pairs",
            why_not or f"{order:.2f} (Spearman; Pearson {linear:.2f})",
            None if math.isnan(order) else order > SAME_ORDER,
        ),
        Check(
            sign_claim,
            why_not or (f"{same:.0%} of {len(clear)}" if len(clear) else "there are no such pairs"),
            bool(same > SAME_SIGN) if len(clear) and not why_not else None,
        ),
    ]


def _order(pairs: pd.DataFrame) -> float:
    """Spearman's correlation of firing correlation and cosine."""
    return rank_correlation(
        pairs["firing_correlation"].to_numpy(float), pairs["cosine"].to_numpy(float)
    )


def firing_correlations(results: Results) -> np.ndarray:
    """How the firings of every two features of the world are correlated, shape [F, F]."""
    world = results.world(results.only_world)
    latent = world.correlation_matrix
    p = world.firing_probabilities.double().tolist()
    matrix = np.eye(len(p))
    if latent is None:
        return matrix
    for i, j in combinations(range(len(p)), 2):
        matrix[i, j] = matrix[j, i] = firing_correlation(float(latent[i, j]), p[i], p[j])
    return matrix


def _cosines(results: Results, sae_id: str) -> np.ndarray:
    directions = results.world(results.only_world).directions
    return matched_cosines(results.sae(sae_id), directions).double().numpy()


def _side(k: float, true_l0: float) -> str:
    if abs(k - true_l0) <= NEAR:
        return "right"
    return "too low" if k < true_l0 else "too high"
