"""The low-l0 experiment: what SAEs learn at the right k, at too low ones and at too high ones.

Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_but_wrong.experiments.analysis import (
    MeasuredTable,
    NamedFigure,
    Run,
    rank_correlation,
)
from sparse_but_wrong.experiments.findings import NEAR
from sparse_but_wrong.experiments.sweep import RECOVERED, draw_curves
from sparse_but_wrong.experiments.true_features import TrueFeatures, by_k
from sparse_but_wrong.experiments.verdict import Check, Verdict
from sparse_but_wrong.experiments.worlds import BUDGET, FIFTY_FEATURES, batchtopk
from sparse_but_wrong.runs.spec import ONLY_WORLD, ExperimentSpec
from sparse_but_wrong.worlds.correlations import firing_correlation

if TYPE_CHECKING:
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
    saes=tuple(batchtopk(f"k_{k}", k) for k in sorted((RIGHT_K, *TOO_LOW, *TOO_HIGH))),
    training=BUDGET,
    analysis="low-l0",
)


class LowL0(TrueFeatures):
    """SAEs below, at and above the true L0, each against the true features."""

    def measure(self, run: Run) -> dict[str, MeasuredTable]:
        """As the base class: how well each feature was recovered, and what each pair mixed."""
        import pandas as pd

        between = firing_correlations(run)
        i, j = np.nonzero(~np.eye(len(between), dtype=bool))
        world = run.spec.toy_world(run.only_world)
        recovered, mixed = [], []
        for sae in run.spec.saes:
            of_sae = {"sae_id": sae.sae_id, "k": sae.factors["k"]}
            matrix = self.cosines(run, run.saes[sae.sae_id], run.only_world)
            features = {
                "feature": np.arange(len(between)),
                "firing_probability": world.firing_probabilities,
                "cosine": matrix.diagonal(),
            }
            pairs = {
                "feature": i,
                "other": j,
                "firing_correlation": between[i, j],
                "cosine": matrix[i, j],
            }
            recovered.append(pd.DataFrame({**of_sae, **features}))
            mixed.append(pd.DataFrame({**of_sae, **pairs}))
        recovery, mixing = (pd.concat(f, ignore_index=True) for f in (recovered, mixed))
        return {
            "by_k": MeasuredTable(
                summarise(recovery, mixing),
                f"Features recovered (matched cosine > {RECOVERED:g}); over all pairs, how the "
                "cosine with the other feature goes with the correlation of the firings; of clear "
                f"pairs (|correlation| > {CLEAR:g}), and of those that are mixed (|cosine| > "
                f"{MIXED:g}), the share with the sign of their correlation.",
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

    def judge(self, run: Run) -> Verdict:
        """As the base class."""
        by_k, recovery, mixing = (run.tables[n].frame for n in ("by_k", "recovery", "mixing"))
        return judge_low_l0(by_k, recovery, mixing, run.true_l0[run.only_world])

    def draw(self, run: Run) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.heatmaps import correlation_heatmap, cosines_vs_correlation

        true_l0 = run.true_l0[run.only_world]
        panels = self.panels(
            run,
            run.only_world,
            [(f"$k = {k:g}$: {_side(k, true_l0)}", run.saes[s.sae_id]) for k, s in by_k(run.spec)],
        )
        figures = self.draw_decoders("overview", panels, true_l0)
        if panels:
            between = firing_correlations(run)
            apart = ~np.eye(len(between), dtype=bool)
            points = [(title, between[apart], matrix[apart]) for title, matrix in panels]
            figures += [
                NamedFigure(
                    "cosines_vs_correlation",
                    cosines_vs_correlation(points),
                    "What each latent holds of each other feature, against how the firings of the "
                    "two are correlated.",
                ),
                NamedFigure(
                    "firing_correlation",
                    correlation_heatmap(between, title="Correlation of the firings"),
                ),
            ]
        return [*figures, draw_curves(run)]


def summarise(recovery: pd.DataFrame, mixing: pd.DataFrame) -> pd.DataFrame:
    """A row per k: how many features are recovered, and what latents mix in.

    Args:
        recovery: a row per SAE and feature with columns `k`, `feature` and `cosine`.
        mixing: a row per SAE and ordered pair of features with columns `k`, `feature`, `other`,
            `cosine` and `firing_correlation`.
    """
    import pandas as pd

    rows = []
    for k in sorted({float(k) for k in recovery["k"]}):
        own = recovery.loc[recovery["k"] == k, "cosine"].to_numpy(float)
        pairs = mixing.loc[mixing["k"] == k]
        firings = pairs["firing_correlation"].to_numpy(float)
        cosines = pairs["cosine"].to_numpy(float)
        order = rank_correlation(firings, cosines)
        same = np.sign(firings) == np.sign(cosines)
        clear = np.abs(firings) > CLEAR
        mixed = clear & (np.abs(cosines) > MIXED)
        rows.append(
            {
                "k": k,
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


def judge_low_l0(
    summary: pd.DataFrame, recovery: pd.DataFrame, mixing: pd.DataFrame, true_l0: float
) -> Verdict:
    """Whether the right k recovers all features, and what those below and above it do.

    Nothing is judged by an SAE that diverged, nor on a side that has no SAE.

    Args:
        summary: what `summarise` makes of the other two.
        recovery, mixing: as for `summarise`, recovery with `firing_probability` too.
        true_l0: of the world; k within NEAR of it is right, of several the nearest.
    """
    rows = {row["k"]: row for row in summary.to_dict("records")}
    right = rows[min(rows, key=lambda k: abs(k - true_l0))]
    of_right = recovery.loc[recovery["k"] == right["k"]]
    worst = of_right.loc[of_right["cosine"].fillna(-math.inf).idxmin()]
    is_right = abs(right["k"] - true_l0) <= NEAR
    lows = [row for k, row in rows.items() if k < true_l0 - NEAR]
    highs = [row for k, row in rows.items() if k > true_l0 + NEAR]
    checks = [
        Check(
            f"at k = {right['k']:g} every feature has a latent of its own with cosine > "
            f"{RECOVERED:g}",
            _diverged(right)
            or f"{right['recovered']} of {right['features']}; the smallest is "
            f"{worst['cosine']:.4f} (feature {worst['feature']:g})"
            + ("" if is_right else f"; k = {right['k']:g} is not within {NEAR:g} of the true L0"),
            right["recovered"] == right["features"] if is_right and not right["diverged"] else None,
        )
    ]
    for row in lows:
        checks += _judge_mixing(row)
    for row in highs:
        is_judged = is_right and not (row["diverged"] or right["diverged"])
        checks.append(
            Check(
                f"at k = {row['k']:g} fewer features are recovered (cosine > {RECOVERED:g}) than "
                f"at k = {right['k']:g}",
                _diverged(right, row)
                or f"{row['recovered']} of {row['features']} against {right['recovered']}; the "
                f"mean cosine is {row['mean_cosine']:.3f} against {right['mean_cosine']:.3f}",
                row["recovered"] < right["recovered"] if is_judged else None,
            )
        )
    for side, there, what in (
        ("below", lows, "latents mix in other features in order"),
        ("above", highs, "fewer features are recovered"),
    ):
        if not there:
            claim = f"at a k more than {NEAR:g} {side} the true L0 {true_l0:.2f} {what}"
            checks.append(Check(claim, "there is no such SAE", None))
    missed = of_right.loc[of_right["cosine"] <= RECOVERED].head(5).to_dict("records")
    of_pairs = mixing.loc[mixing["k"] == right["k"]]
    return Verdict(tuple(checks), tuple(_missed_in_words(row, of_pairs) for row in missed))


def _diverged(*rows: dict[str, Any]) -> str:
    """Which of the SAEs that a check looks at diverged; nothing if none did."""
    which = " and ".join(f"k = {row['k']:g}" for row in rows if row["diverged"])
    return f"the SAE at {which} diverged" if which else ""


def _missed_in_words(row: dict[str, Any], pairs: pd.DataFrame) -> str:
    """Where the latent went that is matched to a feature without one of its own."""
    others = pairs.loc[pairs["feature"] == row["feature"]]
    words = (
        f"Feature {row['feature']:g}, which fires with probability "
        f"{row['firing_probability']:.3g}, has no latent of its own at k = {row['k']:g}"
    )
    if not others["cosine"].notna().any():
        return f"{words}."
    strongest = others.loc[others["cosine"].abs().idxmax()]
    return (
        f"{words}: the latent matched to it has a cosine of {strongest['cosine']:+.2f} with "
        f"feature {strongest['other']:g}."
    )


def _judge_mixing(row: dict[str, Any]) -> list[Check]:
    order, same, n_clear = row["rank_correlation"], row["clear_with_sign"], row["clear_pairs"]
    return [
        Check(
            f"at k = {row['k']:g} latents mix in other features in the order of their correlation: "
            f"rank correlation > {SAME_ORDER:g} over all pairs",
            _diverged(row) or f"{order:.2f} (Spearman; Pearson {row['pearson']:.2f})",
            None if math.isnan(order) else order > SAME_ORDER,
        ),
        Check(
            f"at k = {row['k']:g} more than {SAME_SIGN:.0%} of the pairs with |firing correlation| "
            f"> {CLEAR:g} are mixed with the sign of their correlation",
            _diverged(row)
            or (f"{same:.0%} of {n_clear}" if n_clear else "there are no such pairs"),
            bool(same > SAME_SIGN) if n_clear and not row["diverged"] else None,
        ),
    ]


def firing_correlations(run: Run) -> np.ndarray:
    """How the firings of every two features of the world are correlated, shape [F, F]."""
    world = run.world(run.only_world)
    latent = world.correlation_matrix
    p = world.firing_probabilities.double().tolist()
    matrix = np.eye(len(p))
    assert latent is not None
    for i, j in combinations(range(len(p)), 2):
        matrix[i, j] = matrix[j, i] = firing_correlation(float(latent[i, j]), p[i], p[j])
    return matrix


def _side(k: float, true_l0: float) -> str:
    if abs(k - true_l0) <= NEAR:
        return "right"
    return "too low" if k < true_l0 else "too high"
