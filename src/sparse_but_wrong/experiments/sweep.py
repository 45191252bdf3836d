"""Sweeps over L0: where is s_n^dec smallest? Those of JumpReLU, of BatchTopK, and of users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd

from sparse_but_wrong.experiments.analysis import Analysis, Figures, Run, draw_curves
from sparse_but_wrong.experiments.verdict import NEAR, RECOVERED, Check, Verdict, check, ranges
from sparse_but_wrong.figures.distributions import plot_evaluations
from sparse_but_wrong.figures.heatmaps import correlation_heatmap, firing_probabilities
from sparse_but_wrong.figures.sweep import (
    CLIFF,
    TOO_HIGH,
    TOO_LOW,
    l0_vs_coefficient,
    over_seeds,
    overview,
    overview_over_seeds,
    projection_over_seeds,
    projection_vs_l0,
)
from sparse_but_wrong.metrics.findings import remarks
from sparse_but_wrong.report.evaluation import CAPTION
from sparse_but_wrong.runs.spec import ActivationsSpec, ExperimentSpec

NOISE = 1e-3
"""Differences in s_n below this are taken to say nothing: at the right L0 s_n itself, which would
be 0 for exact features, comes out between 0.0002 and 0.003 from one run to the next (n = 12 to 18
in the 50-feature world)."""


@dataclass(frozen=True)
class Minimum:
    """Where s_n^dec is smallest over a sweep, for one n."""

    n: int
    l0: float
    """Of the SAE that has the smallest."""
    bottom: tuple[float, ...]
    """L0 of each SAE whose s_n is within NOISE of the smallest, ascending."""
    n_higher_within: int
    """SAEs between those two whose s_n is larger all the same: single runs land in poor minima."""
    swept: tuple[float, float]
    """The lowest and highest L0 of the sweep."""

    def shape(self, true_l0: float) -> Literal["sharp", "flat", "away"]:
        """Whether the bottom of the curve is at the truth alone, reaches further, or is away."""
        at_it = [abs(l0 - true_l0) <= NEAR for l0 in self.bottom]
        return "sharp" if all(at_it) else "flat" if any(at_it) else "away"


def find_minima(table: pd.DataFrame, projections: pd.DataFrame, ns: Sequence[int]) -> list[Minimum]:
    """For each n, the SAE with the smallest s_n^dec, and how wide the bottom of the curve is.

    SAEs that diverged are left out; where none remains, there is no minimum. So are n from
    d_sae / 2 on: there s_n is the median or beyond, blind to how far the projections spread.

    Args:
        table: a row per SAE with a column `l0`; `projections` has the same rows, a column per n.
    """
    found = []
    for n in (n for n in ns if n < projections.shape[1] / 2):
        points = np.array([table["l0"], projections[n]], dtype=float)
        l0, s_n = points[:, np.isfinite(points).all(axis=0)]
        if len(l0):
            bottom = np.sort(l0[s_n <= s_n.min() + NOISE]).tolist()
            within = (bottom[0] <= l0) & (l0 <= bottom[-1])
            swept = float(l0.min()), float(l0.max())
            at = float(l0[s_n.argmin()])
            found.append(Minimum(n, at, tuple(bottom), int(within.sum()) - len(bottom), swept))
    return found


def missing_sides(l0s: Sequence[float], true_l0: float) -> list[str]:
    """The sides of the true L0 on which a sweep has no SAE that the smallest could be below."""
    sides = (("below", min(l0s) < true_l0 - NEAR), ("above", max(l0s) > true_l0 + NEAR))
    return [side for side, is_there in sides if not is_there]


def judge_projections(
    table: pd.DataFrame, projections: pd.DataFrame, ns: Sequence[int], true_l0: float
) -> Verdict:
    """Whether s_n^dec is smallest at the true L0, for every n; arguments as of `find_minima`."""
    found = find_minima(table, projections, ns)
    if not found:
        claim = "s_n^dec is smallest at the true L0"
        return Verdict((check(claim, "", None, unless="no n to look at"),))
    away = [f for f in found if f.shape(true_l0) == "away"]
    flat = [f for f in found if f.shape(true_l0) == "flat"]
    where = "; ".join(
        f"at L0 {l0:.2f} for n = {ranges(f.n for f in found if f.l0 == l0)}"
        for l0 in sorted({f.l0 for f in found})
    )
    missing = " or ".join(missing_sides(found[0].swept, true_l0))
    judged = check(
        f"for n = {ranges(f.n for f in found)} s_n^dec is smallest within {NEAR:g} of the true L0 "
        f"{true_l0:.2f} (what is less than {NOISE:g} above it counts too)",
        f"{len(found) - len(away)} of {len(found)} n; the smallest itself is {where}",
        not away,
        unless=missing and f"the sweep has no SAE more than {NEAR:g} {missing} the true L0",
    )
    if not flat:
        return Verdict((judged,))
    widest = max(flat, key=lambda f: f.bottom[-1] - f.bottom[0])
    but = f", {widest.n_higher_within} between them aside" if widest.n_higher_within else ""
    remark = (
        f"For n = {ranges(f.n for f in flat)} which of several SAEs is smallest is noise: theirs "
        f"differ by less than {NOISE:g}, at the widest (n = {widest.n}) from L0 "
        f"{widest.bottom[0]:.2f} to {widest.bottom[-1]:.2f}{but}. Read off the last SAE before the "
        "rise towards low L0."
    )
    return Verdict((judged,), (remark,))


def _judge_similarity(mean: pd.DataFrame, column: str, true_l0: float, unless: str) -> Check:
    claim = (
        f"the mean {column} over the seeds is smallest within {NEAR:g} of the true L0 {true_l0:.2f}"
    )
    finite = mean.loc[mean[column].notna() & mean["l0"].notna()].sort_values(column)
    if finite.empty:
        return check(claim, "", None, unless=unless or f"no finite {column}")
    best, is_off = finite.iloc[0], (finite["l0"] - true_l0).abs() > NEAR
    measured = f"{best[column]:.4f} at k = {best['k']:g} (L0 {best['l0']:.2f})"
    if is_off.any():
        other = finite.loc[is_off].iloc[0]
        measured += f"; away from the true L0 at least {other[column]:.4f}, at k = {other['k']:g}"
    if missing := " or ".join(missing_sides(finite["l0"].tolist(), true_l0)):
        missing = f"the sweep has no SAE more than {NEAR:g} {missing} it"
    reasons = "; ".join(filter(None, (missing, unless)))
    return check(claim, measured, not is_off.iloc[0], unless=reasons)


def judge_over_seeds(run: Run) -> Verdict:
    """Whether the mean over seeds of s_n^dec, c_dec and c_enc is smallest at the true L0.

    A check for which an SAE has no finite number is not judged: its mean would be that of others.
    """
    table, ns, true_l0 = run.table, run.spec.projection_n, run.only_l0
    metrics = table[["l0", "c_dec", "c_enc"]].join(run.projections[list(ns)])

    def diverged(columns: Sequence[str | int]) -> list[str]:
        finite = np.isfinite(metrics[["l0", *columns]].to_numpy(float)).all(axis=1)
        return [str(sae_id) for sae_id in table.loc[~finite, "sae_id"]]

    def why_not(columns: Sequence[str | int]) -> str:
        n = len(diverged(columns))
        return f"not judged, as {n} of the SAEs diverged, which no mean includes" if n else ""

    by_k = table.groupby("k", sort=True)[["l0", "c_dec", "c_enc"]]
    s_by_k = run.projections.groupby(table["k"], sort=True)
    # Where projections are near 0 a single SAE can make the mean the smallest; not the median.
    by_mean, by_median = (
        judge_projections(by_k.agg(how).reset_index(), s_by_k.agg(how), ns, true_l0)
        for how in ("mean", "median")
    )
    (of_mean,), (of_median,) = by_mean.checks, by_median.checks
    if unless := why_not(ns):
        of_mean, of_median = (
            check(c.claim, c.measured, None, unless=unless) for c in (of_mean, of_median)
        )
    word = {True: "holds", False: "does not hold", None: "is not judged"}[of_median.holds]
    off = (table["l0"] - table["k"]).abs().max()
    near = table.loc[(table["k"] - true_l0).abs() <= NEAR].groupby("k")["mcc"]
    counts = ", ".join(f"{int((m > RECOVERED).sum())} of {len(m)} at k = {k:g}" for k, m in near)
    every = ", ".join(diverged([*ns, "c_dec", "c_enc"]))
    remarks = (
        *by_mean.remarks,
        f"With the median seed instead of the mean, the claim about s_n^dec {word}: "
        f"{of_median.measured}.",
        "L0 here is that of the thresholded (JumpReLU) export, which a BatchTopK SAE is used as; "
        f"it differs from k by up to {off:.2f}.",
        counts and f"The mean matched cosine is above {RECOVERED:g} in {counts}.",
        every and f"SAEs that diverged: {every}.",
    )
    mean = by_k.agg("mean").reset_index()
    c_dec, c_enc = (
        _judge_similarity(mean, column, true_l0, why_not([column])) for column in ("c_dec", "c_enc")
    )
    return Verdict((of_mean, c_dec, c_enc), tuple(filter(None, remarks)))


def _draw_over_seeds(run: Run) -> Figures:
    ns, true_l0 = run.spec.projection_n, run.only_l0
    shown = spread_out([n for n in ns if n < run.projections.shape[1] / 2])
    caption = (
        "Mean over the seeds at every k, and a band of one standard deviation. The k is that of "
        "training; the L0 of the thresholded SAEs is in the table."
    )
    figures: Figures = {
        f"projections/s_{n}": projection_over_seeds(run.table, run.projections, n, true_l0)
        for n in ns
    }
    for part, of in (("dec", "Decoder rows"), ("enc", "Encoder columns")):
        label, title = rf"$c_\mathrm{{{part}}}$", f"{of}: pairwise cosine similarity vs k"
        figure = over_seeds(run.table, f"c_{part}", true_l0, ylabel=label, title=title)
        figures[f"similarity/c_{part}"] = figure
    drawn = overview_over_seeds(run.table, run.projections, true_l0, ns=shown)
    return {"overview": (drawn, caption), **figures, **draw_curves(run)}


def judge_sweep(run: Run) -> Verdict:
    """Whether s_n^dec is smallest at the true L0, for every n of the spec."""
    return judge_projections(run.table, run.projections, run.spec.projection_n, run.only_l0)


def _draw_sweep(run: Run) -> Figures:
    first = _overview(run) if run.spec.projection_n else {}
    return {**first, **_draw_projections(run, run.only_l0), **draw_curves(run)}


def _draw_jumprelu(run: Run) -> Figures:
    """A sweep, drawn as the notebook draws it, under the notebook's names."""
    world, setup = run.world(), "toy_setup_jumprelu/toy_model"
    assert world.correlation_matrix is not None
    return {
        **_overview(run),
        f"{setup}_feature_firing_probabilities": firing_probabilities(world.firing_probabilities),
        f"{setup}_correlation_matrix": correlation_heatmap(world.correlation_matrix),
        **_draw_projections(run, run.only_l0, "dpn_jumprelu/dp_"),
        "toy_l0_jumprelu/l0_vs_l0_coeff_jumprelu": l0_vs_coefficient(run.table, run.only_l0),
        **draw_curves(run),
    }


def _overview(run: Run) -> Figures:
    """The finding in one figure, which says in words what this table shows, and only that."""
    table, true_l0, shown = run.table, run.only_l0, spread_out(run.spec.projection_n)
    shapes = [found.shape(true_l0) for found in find_minima(table, run.projections, shown)]
    near = table.loc[(table["l0"] - true_l0).abs() <= NEAR, "mcc"]
    figure = overview(
        table,
        run.projections,
        true_l0,
        ns=shown,
        too_low=TOO_LOW if "away" not in shapes else "",
        too_high=TOO_HIGH if "flat" in shapes else "",
        cliff=CLIFF if max(near, default=0.0) > RECOVERED else "",
    )
    caption = (
        "Left: s_n against L0. Middle: all projections of SAEs below, at and above the true L0. "
        "Right: decoder similarity, and how well the true features are recovered."
    )
    return {"overview": (figure, caption)}


def _draw_projections(run: Run, true_l0: float | None, prefix: str = "projections/s_") -> Figures:
    return {
        f"{prefix}{n}": projection_vs_l0(run.table, run.projections, n, true_l0)
        for n in run.spec.projection_n
    }


def spread_out(ns: Sequence[int], at_most: int = 4) -> tuple[int, ...]:
    """Up to four of some n, spread evenly, the first among them."""
    return tuple(ns[:: max(1, -(-len(ns) // at_most))])


def _judge_activations(run: Run) -> Verdict:
    first = (
        "Nobody knows the features of these activations, so nothing is judged. `sbw find-l0 "
        f"{run.folder.path}` says what the sweep tells about the right L0."
    )
    return Verdict(remarks=(first, *remarks(run.evaluations)))


def _draw_activations(run: Run) -> Figures:
    drawn = (plot_evaluations(run.evaluations), CAPTION)
    return {"overview": drawn, **_draw_projections(run, None), **draw_curves(run)}


def _check(spec: ExperimentSpec, *, knows_features: bool) -> None:
    """A sweep has SAEs, and one world of the kind that is asked for."""
    if not spec.saes:
        raise ValueError(f"the spec {spec.name!r} has no SAEs; its analysis needs at least one.")
    if len(spec.worlds) != 1:
        raise ValueError(
            f"the analysis {spec.analysis!r} looks at one world, but the spec {spec.name!r} has "
            f"{len(spec.worlds)}: {', '.join(spec.worlds)}."
        )
    ((name, world),) = spec.worlds.items()
    is_stored = isinstance(world, ActivationsSpec)
    if knows_features == is_stored:
        raise ValueError(
            f"the analysis {spec.analysis!r} is for worlds {'with' if is_stored else 'without'} "
            f"known features, and {name!r} is of the other kind; write analysis: "
            f"{'activations' if is_stored else 'sweep'}."
        )


ANALYSES = {
    "sweep": Analysis(judge_sweep, _draw_sweep, check=partial(_check, knows_features=True)),
    "activations": Analysis(
        _judge_activations, _draw_activations, check=partial(_check, knows_features=False)
    ),
    "jumprelu": Analysis(judge_sweep, _draw_jumprelu),
    "batchtopk": Analysis(judge_over_seeds, _draw_over_seeds),
}
"""The first two are those that users' own specs may have."""
