"""Distributions: what an evaluation told of SAEs, histograms of projections, L0s by model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_but_wrong.figures import parts
from sparse_but_wrong.figures.style import BLUE, GREY, RED, VERMILLION, Number, paper_style
from sparse_but_wrong.metrics.evaluation import DENSE, Evaluation

SHARES = (0.25, 0.33, 0.4, 0.48)
"""The n of the curves, as shares of d_sae: well above the L0 of any sparse SAE, below a half."""

_MOST_NAMED = 12
_BINS = 60
_HISTOGRAM_BINS = 80
# Dots are spread over this share of a row, so that SAEs of equal L0 do not hide each other.
_SPREAD = 0.56


@paper_style()
def plot_evaluations(evaluations: Sequence[Evaluation]) -> Figure:
    """s_n^dec over n and over L0, similarity, L0 over samples, densities, all projections.

    SAEs are drawn in order of their L0, dark at the lowest. Bars at s_n are two standard errors.

    Raises:
        ValueError: there are no evaluations.
    """
    if not evaluations:
        raise ValueError("there are no evaluations to draw; evaluate at least one SAE.")
    l0s = np.array([found.l0 for found in evaluations])
    order = np.argsort(l0s, kind="stable")  # NaN last
    ordered = [evaluations[int(i)] for i in order]
    figure = Figure(figsize=(9, 5), layout="constrained")
    (all_n, over_l0, similarity), (l0, density, projection) = figure.subplots(2, 3)
    for axes in (all_n, l0, density):
        axes.set_xscale("log")
    projection.set_yscale("log")
    for found, color in zip(ordered, parts.shades(len(ordered)), strict=True):
        # s_0, the largest projection of all, would set the scale alone.
        n = np.unique(np.geomspace(1, max(2, found.d_sae // 2), 200).astype(int))
        n = n[n < found.d_sae]
        all_n.plot(n, found.projections[n], color=color, linewidth=0.9, label=f"{found.l0:.3g}")
        _draw_l0_counts(l0, found, color)
        alive = found.densities[found.densities > 0]
        edges = np.geomspace(1 / max(2, found.n_samples), 1, _BINS // 2)
        density.stairs(np.histogram(alive, edges)[0], edges, color=color, linewidth=0.9)
        counts = found.histogram_counts
        if counts.sum() > 0:
            # The outermost bars hold what lies beyond them, which is not there.
            share = counts[1:-1] / counts.sum()
            heights = np.where(share > 0, share, np.nan)
            projection.stairs(heights, found.histogram_edges[1:-1], color=color, linewidth=0.9)
    density.axvline(DENSE, color=GREY, linewidth=0.6, linestyle=":")
    _draw_over_l0(over_l0, similarity, ordered)
    if len(ordered) <= _MOST_NAMED:
        all_n.legend(title="L0", loc="best", handlelength=1, ncols=2)
    share = "share of samples on which a latent is active"
    for axes, xlabel, ylabel, title in (
        (all_n, "$n$", "$s_n$", "Decoder projections, sorted"),
        (over_l0, "SAE L0", "$s_n$", "$n$-th decoder projection"),
        (similarity, "SAE L0", "mean |cosine|", "Similarity of latents"),
        (l0, "active latents of a sample", "share of samples per number", "L0 over samples"),
        (density, share, "latents", "Densities of latents"),
        (projection, "projection on a decoder row", "share", "All projections"),
    ):
        parts.finish(axes, xlabel, ylabel, title)
    return figure


def _draw_over_l0(projections: Axes, similarity: Axes, evaluations: Sequence[Evaluation]) -> None:
    l0 = [found.l0 for found in evaluations]
    look = {"markersize": 3, "linewidth": 0.8}
    for share, color, marker in zip(SHARES, parts.shades(4, "plasma", 0.8), "os^D", strict=True):
        at = [int(share * found.d_sae) for found in evaluations]
        pairs = list(zip(evaluations, at, strict=True))
        projections.errorbar(
            l0,
            [found.projections[n] for found, n in pairs],
            yerr=[2 * found.projection_standard_errors[n] for found, n in pairs],
            color=color,
            marker=marker,
            elinewidth=0.8,
            label=f"$n = {at[0]}$" if len(set(at)) == 1 else f"$n = {share:g}\\,H$",
            **look,
        )
    for label, color, marker, values in (
        (r"$c_\mathrm{dec}$", BLUE, "o", [found.c_dec for found in evaluations]),
        (r"$c_\mathrm{enc}$", VERMILLION, "s", [found.c_enc for found in evaluations]),
    ):
        similarity.plot(l0, values, color=color, marker=marker, label=label, **look)
    if max(l0) > 0:  # else there is nothing on a logarithmic axis
        parts.log_l0_axis(projections)
        parts.log_l0_axis(similarity)
    low, high = projections.get_ylim()
    projections.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    projections.legend(loc="upper center", handlelength=1.2, ncols=2)
    # Or values close to each other touch the frame.
    similarity.set_ylim(0, 1.1 * similarity.get_ylim()[1])
    similarity.legend(loc="best", handlelength=1.2)


def _draw_l0_counts(axes: Axes, found: Evaluation, color: parts.Color) -> None:
    counts = found.l0_counts
    edges = np.unique(np.geomspace(1, found.d_sae + 1, _BINS).astype(int)).astype(float)
    # What has no active latent has no place on a logarithmic axis, and is in the first bar.
    at, weights = np.maximum(np.arange(len(counts)), 1), counts / max(1, found.n_samples)
    share = np.histogram(at, edges, weights=weights)[0] / np.diff(edges)
    used = np.flatnonzero(share)
    if len(used):
        first, last = used[0], used[-1] + 1
        axes.stairs(share[first:last], edges[first : last + 1], color=color, linewidth=0.9)


@paper_style()
def projection_histograms(
    panels: Sequence[tuple[str, Float[np.ndarray, " _projections"]]],
    s_n: Sequence[Number],
    n: int,
) -> Figure:
    """A histogram per SAE on common axes, counts on a logarithmic scale, $s_n$ as a line.

    Args:
        panels: for each SAE a title and the projections of all samples on all its latents.
        s_n: of each, its n-th decoder projection.
    """
    parts.check_panels(panels)
    lowest = min(projections.min() for _, projections in panels)
    highest = max(projections.max() for _, projections in panels)
    bins = np.linspace(lowest, highest + 1e-6, _HISTOGRAM_BINS + 1).tolist()
    figure = Figure(figsize=(3.1 * len(panels), 2.1))
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (title, projections), at in zip(grid, panels, s_n, strict=True):
        weights = np.full(projections.size, 1 / projections.size)
        axes.hist(projections, bins=bins, weights=weights, color=BLUE, alpha=0.8)
        label = f"$s_{{{n}}} = {at:.3f}$"
        axes.axvline(at, color=VERMILLION, linestyle="--", linewidth=1, label=label)
        axes.set(yscale="log", title=title, xlabel="Decoder projection")
        axes.legend(loc="upper right")
    grid[0].set_ylabel("Share of projections")
    return figure


@paper_style()
def l0_by_model(table: pd.DataFrame, mark: Number | None = None) -> Figure:
    """A dot per SAE on a logarithmic L0 axis, and each model's median, models in its order.

    Args:
        table: a row per SAE with columns `model`, `l0` (positive) and `elbow`; SAEs whose elbow is
            not missing are drawn in another colour.
        mark: an L0 that is marked by a dashed line.
    Raises:
        ValueError: missing columns, no rows, or an L0 that is not positive.
    """
    parts.require_columns(table, ["model", "l0", "elbow"])
    l0 = parts.numbers(table, "l0")
    if table.empty or not (l0 > 0).all():
        raise ValueError("l0_by_model needs SAEs, each with a positive L0.")
    by_model = pd.Series(l0).groupby(table["model"].to_numpy(str))
    medians, sizes = by_model.median().sort_values(kind="stable"), by_model.size()
    places = medians.index.get_indexer(table["model"].to_numpy(str))
    heights = places + np.random.default_rng(0).uniform(-_SPREAD / 2, _SPREAD / 2, len(table))
    has_elbow = table["elbow"].notna().to_numpy()
    figure = Figure(figsize=(5, 0.8 + 0.17 * len(medians)))
    axes = figure.add_subplot()
    for chosen, color, alpha, label in (
        (~has_elbow, BLUE, 0.25, "SAE"),
        (has_elbow, VERMILLION, 0.8, "SAE where an elbow is reported"),
    ):
        if chosen.any():
            # Thousands of dots as vectors make a PDF that is slow to open.
            look = parts.marks(color, size=2.2, markeredgewidth=0, alpha=alpha, rasterized=True)
            axes.plot(l0[chosen], heights[chosen], **look, label=label)
    look = parts.marks("black", "|", 8, markeredgewidth=1.4, label="Median")
    axes.plot(medians, np.arange(len(medians)), **look)
    if mark is not None:
        axes.axvline(mark, color=RED, linestyle="--", linewidth=0.7, label=f"L0 = {mark:g}")
    names = [f"{model} ({sizes[model]})" for model in medians.index]
    # A bare underscore means more to LaTeX.
    axes.set_yticks(np.arange(len(names)), [name.replace("_", r"$\_$") for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="L0", ylim=(-0.7, len(medians) - 0.3))
    parts.log_l0_axis(axes)
    axes.grid(True, axis="x", alpha=0.3)
    entries = axes.get_legend_handles_labels()
    figure.legend(*entries, loc="outside upper center", ncols=4, handlelength=1.2)
    return figure
