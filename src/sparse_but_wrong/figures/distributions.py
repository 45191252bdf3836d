"""Distributions: what an evaluation told of SAEs, histograms of projections, L0s by model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from sparse_but_wrong.figures.axes import (
    Color,
    finish,
    log_l0_axis,
    marks,
    numbers,
    require_columns,
    shades,
)
from sparse_but_wrong.figures.style import BLUE, GREY, RED, VERMILLION, Number, paper_style
from sparse_but_wrong.metrics.evaluation import DENSE, Evaluation

SHARES = (0.25, 0.33, 0.4, 0.48)
"""The n of the curves, as shares of d_sae: well above the L0 of any sparse SAE, below a half."""

_MOST_NAMED = 12
_BINS = 60
_HISTOGRAM_BINS = 80
_L0_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
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
    order = np.argsort([found.l0 for found in evaluations], kind="stable")  # NaN last
    ordered = [evaluations[int(i)] for i in order]
    figure = Figure(figsize=(9, 5), layout="constrained")
    (all_n, over_l0, similarity), (l0, density, projection) = figure.subplots(2, 3)
    _draw_over_l0(over_l0, ordered)
    _draw_similarity(similarity, ordered)
    for found, color in zip(ordered, shades(len(ordered)), strict=True):
        # s_0, the largest projection of all, would set the scale alone.
        n = np.unique(np.geomspace(1, max(2, found.d_sae // 2), 200).astype(int))
        n = n[n < found.d_sae]
        all_n.plot(n, found.projections[n], color=color, linewidth=0.9, label=f"{found.l0:.3g}")
        _draw_l0(l0, found, color)
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
    if len(ordered) <= _MOST_NAMED:
        all_n.legend(title="L0", loc="best", handlelength=1, ncols=2)
    for axes in (all_n, l0, density):
        axes.set_xscale("log")
    projection.set_yscale("log")
    finish(all_n, "$n$", "$s_n$", "Decoder projections, sorted")
    finish(l0, "active latents of a sample", "share of samples per number", "L0 over samples")
    share = "share of samples on which a latent is active"
    finish(density, share, "latents", "Densities of latents")
    finish(projection, "projection on a decoder row", "share", "All projections")
    return figure


def _draw_over_l0(axes: Axes, evaluations: Sequence[Evaluation]) -> None:
    for share, color, marker in zip(SHARES, shades(4, "plasma", 0.8), "os^D", strict=True):
        at = [int(share * found.d_sae) for found in evaluations]
        pairs = list(zip(evaluations, at, strict=True))
        axes.errorbar(
            [found.l0 for found in evaluations],
            [found.projections[n] for found, n in pairs],
            yerr=[2 * found.projection_standard_errors[n] for found, n in pairs],
            color=color,
            marker=marker,
            markersize=3,
            linewidth=0.8,
            elinewidth=0.8,
            label=f"$n = {at[0]}$" if len(set(at)) == 1 else f"$n = {share:g}\\,H$",
        )
    _over_l0(axes, evaluations, "$s_n$", "$n$-th decoder projection")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    axes.legend(loc="upper center", handlelength=1.2, ncols=2)


def _draw_similarity(axes: Axes, evaluations: Sequence[Evaluation]) -> None:
    l0 = [found.l0 for found in evaluations]
    for label, color, marker, values in (
        (r"$c_\mathrm{dec}$", BLUE, "o", [found.c_dec for found in evaluations]),
        (r"$c_\mathrm{enc}$", VERMILLION, "s", [found.c_enc for found in evaluations]),
    ):
        axes.plot(l0, values, color=color, marker=marker, markersize=3, linewidth=0.8, label=label)
    _over_l0(axes, evaluations, "mean |cosine|", "Similarity of latents")
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])  # or values close to each other touch the frame
    axes.legend(loc="best", handlelength=1.2)


def _over_l0(axes: Axes, evaluations: Sequence[Evaluation], ylabel: str, title: str) -> None:
    finish(axes, "SAE L0", ylabel, title)
    if any(found.l0 > 0 for found in evaluations):  # else there is nothing on a logarithmic axis
        log_l0_axis(axes)


def _draw_l0(axes: Axes, found: Evaluation, color: Color) -> None:
    counts = found.l0_counts
    edges = np.unique(np.geomspace(1, found.d_sae + 1, _BINS).astype(int)).astype(float)
    # What has no active latent has no place on a logarithmic axis, and is in the first bar.
    at, weights = np.maximum(np.arange(len(counts)), 1), counts / max(1, found.n_samples)
    share = np.histogram(at, edges, weights=weights)[0] / np.diff(edges)
    used = np.flatnonzero(share)
    if len(used):
        first, last = used[0], used[-1] + 1
        axes.stairs(share[first:last], edges[first : last + 1], color=color, linewidth=0.9)


@dataclass(frozen=True, eq=False)
class ProjectionPanel:
    """The decoder projections of one SAE, of all samples on all latents, and their s_n."""

    projections: Float[np.ndarray, " samples_times_latents"]
    s_n: Number
    n: int
    title: str


@paper_style()
def projection_histograms(panels: Sequence[ProjectionPanel]) -> Figure:
    """A histogram per SAE on common axes, counts on a logarithmic scale, $s_n$ as a line.

    Raises:
        ValueError: no panels, or projections that are missing or not finite.
    """
    if not panels:
        raise ValueError("there are no panels: pass one for each SAE.")
    for panel in panels:
        if panel.projections.size == 0 or not np.isfinite(panel.projections).all():
            raise ValueError(f"the projections of {panel.title!r} are missing or not finite.")
    lowest = min(panel.projections.min() for panel in panels)
    highest = max(panel.projections.max() for panel in panels)
    bins = np.linspace(lowest, highest + 1e-6, _HISTOGRAM_BINS + 1).tolist()
    figure = Figure(figsize=(3.1 * len(panels), 2.1))
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axes, panel in zip(grid, panels, strict=True):
        weights = np.full(panel.projections.size, 1 / panel.projections.size)
        axes.hist(panel.projections, bins=bins, weights=weights, color=BLUE, alpha=0.8)
        label = f"$s_{{{panel.n}}} = {panel.s_n:.3f}$"
        axes.axvline(panel.s_n, color=VERMILLION, linestyle="--", linewidth=1, label=label)
        axes.set_yscale("log")
        axes.set_title(panel.title)
        axes.set_xlabel("Decoder projection")
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
    require_columns(table, ["model", "l0", "elbow"])
    if table.empty or not (numbers(table, "l0") > 0).all():
        raise ValueError("l0_by_model needs SAEs, each with a positive L0.")
    l0, models = numbers(table, "l0"), table["model"].to_numpy(dtype=str)
    medians = {str(model): float(np.median(l0[models == model])) for model in np.unique(models)}
    order = sorted(medians, key=medians.__getitem__)
    spread = np.random.default_rng(0).uniform(-_SPREAD / 2, _SPREAD / 2, len(table))
    heights = np.array([order.index(model) for model in models]) + spread
    has_elbow = table["elbow"].notna().to_numpy()
    figure = Figure(figsize=(5, 0.8 + 0.17 * len(medians)))
    axes = figure.add_subplot()
    for chosen, color, alpha, label in (
        (~has_elbow, BLUE, 0.25, "SAE"),
        (has_elbow, VERMILLION, 0.8, "SAE where an elbow is reported"),
    ):
        if chosen.any():
            # Thousands of dots as vectors make a PDF that is slow to open.
            look = marks(color, size=2.2, markeredgewidth=0, alpha=alpha, rasterized=True)
            axes.plot(l0[chosen], heights[chosen], **look, label=label)
    look = marks("black", "|", 8, markeredgewidth=1.4, label="Median")
    axes.plot([medians[model] for model in order], np.arange(len(medians)), **look)
    if mark is not None:
        axes.axvline(mark, color=RED, linestyle="--", linewidth=0.7, label=f"L0 = {mark:g}")
    names = [f"{model} ({(models == model).sum()})" for model in order]
    # A bare underscore means more to LaTeX.
    axes.set_yticks(np.arange(len(order)), [name.replace("_", r"$\_$") for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.7, len(medians) - 0.3)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_L0_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("L0")
    axes.grid(True, axis="x", alpha=0.3)
    entries = axes.get_legend_handles_labels()
    figure.legend(*entries, loc="outside upper center", ncols=4, handlelength=1.2)
    return figure
