"""What a sweep shows: at a glance, s_n over L0, over seeds, L0 over coefficients, error over k.

A table has a row per SAE, and `projections` has the same rows with a column for each n. SAEs with
values that are not finite are left out, and the axis says how many. A figure that lacks columns,
or has no SAE to draw, raises a ValueError. `true_l0` is None where nobody knows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_but_wrong.figures import parts
from sparse_but_wrong.figures.style import BLUE, GREEN, GREY, VERMILLION, Number, paper_style
from sparse_but_wrong.metrics.evaluation import Evaluations, split_projections

# Beyond this ratio of largest to smallest coefficient a linear axis hides the small ones.
_LOG_AXIS_RATIO = 100
_LOOKS = ((VERMILLION, "o"), ("black", "s"), (BLUE, "^"), (GREY, "D"))

TOO_LOW = "too low:\nlatents mix\ncorrelated features"
TOO_HIGH = (
    "too high: flat near $10^{-3}$,\nover a wider range for larger $n$;\nthe argmin there is noise"
)
CLIFF = "at the true L0:\na cliff, because\nlatents are features"

# An SAE this far from the truth, as a share of it, is an example of too low or too high.
_CLEARLY_OFF = 0.2


@paper_style()
def overview(
    table: pd.DataFrame,
    projections: pd.DataFrame,
    true_l0: Number,
    *,
    ns: Sequence[int] = (12, 16, 20, 24),
    too_low: str = TOO_LOW,
    too_high: str = TOO_HIGH,
    cliff: str = CLIFF,
) -> Figure:
    """What a sweep shows, at a glance, for a world whose true L0 is known.

    Left, $s_n$ against L0 for several n on a scale that shows both its rise below the truth and
    how flat it is above. Middle, all projections of up to three SAEs: of those within 20 % of the
    truth the one that recovers most, of those below the nearest to half of it, of those above that
    nearest to twice. Right, decoder similarity and recovery of the true features against L0.

    Args:
        table: with columns `l0`, `c_dec`, `mcc` and perhaps `added`.
        ns: which projections the left panel shows; each above the true L0 and below d_sae / 2.
        too_low, too_high, cliff: what is written below the truth, above it, and beside the sorted
            projections. They hold for the JumpReLU sweep of the paper; for another table pass
            what holds there, or "".
    """
    if not ns:
        raise ValueError("ns is empty: name at least one projection to draw against L0.")
    every_n = sorted({*projections.columns, *ns})
    joined = parts.with_projections(table, projections, every_n)
    rows = parts.rows_to_draw(joined, ["l0", "c_dec", "mcc", *(f"s_{n}" for n in every_n)])
    figure = Figure(figsize=(10, 3.2))
    grid = figure.add_gridspec(2, 3, width_ratios=(1.25, 1.1, 1))
    left, middle = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[:, 1])
    similarity = figure.add_subplot(grid[0, 2])
    recovery = figure.add_subplot(grid[1, 2], sharex=similarity)
    _draw_against_l0(left, rows, true_l0, ns, too_low, too_high)
    title = "$n$-th decoder projection against L0"
    parts.finish(left, f"SAE L0{parts.left_out(table, rows)}", "$s_n$", title)
    _draw_sorted(middle, rows, projections.loc[rows.index], true_l0, cliff)
    parts.draw_saes(similarity, rows, "c_dec", color=GREY, explain=True)
    parts.finish(similarity, "", r"$c_\mathrm{dec}$", "Similarity between decoder rows", true_l0)
    similarity.tick_params(labelbottom=False)
    similarity.set_ylim(bottom=0)
    if handles := similarity.get_legend_handles_labels()[0][:-1]:  # without the true L0
        similarity.legend(handles=handles, loc="upper center", handletextpad=0.2, framealpha=1)
    parts.draw_saes(recovery, rows, "mcc", color=GREEN)
    parts.finish(recovery, "SAE L0", "matched cosine", "Recovery of the true features", true_l0)
    recovery.set_ylim(top=1.05)
    return figure


def _draw_against_l0(
    axes: Axes, rows: pd.DataFrame, true_l0: Number, ns: Sequence[int], too_low: str, too_high: str
) -> None:
    for n, color, marker in zip(ns, parts.shades(len(ns)), cycle("os^Dv"), strict=False):
        parts.draw_saes(axes, rows, f"s_{n}", color=color, marker=marker)
        look = {"color": color, "marker": marker, "markersize": 3, "linewidth": 0.8}
        axes.plot([], [], **look, label=f"$n = {n}$")
    parts.mark_true_l0(axes, true_l0)
    parts.symlog_s_n_axis(axes)
    values = rows[[f"s_{n}" for n in ns]].to_numpy(dtype=float)
    # Room for the legend below the curves and for the two remarks above.
    axes.set_ylim(min(-5e-3, 5 * values.min()), max(1.0, values.max()) * 25)
    l0 = parts.numbers(rows, "l0")
    low, high = l0.min(), l0.max()
    margin = 0.04 * max(high - low, 1.0)
    # Each side is wide enough for its remark, which takes about a third or half of the panel.
    left = min(low - margin, true_l0 - 0.47 * (high + margin - true_l0))
    right = max(high + margin, true_l0 + 0.85 * (true_l0 - left))
    axes.set_xlim(left, right)
    for words, start, end, color in (
        (too_low, left, true_l0, VERMILLION),
        (too_high, true_l0, right, BLUE),
    ):
        axes.axvspan(start, end, color=color, alpha=0.06, linewidth=0, zorder=0)
        place = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
        axes.text((start + end) / 2, 0.975, words, fontsize=7, color=color, **place)
    axes.legend(loc="lower center", ncols=3, handlelength=1.8, framealpha=1, columnspacing=1.5)


def _draw_sorted(
    axes: Axes, rows: pd.DataFrame, projections: pd.DataFrame, true_l0: Number, words: str
) -> None:
    # At n = d_sae / 2 the projection is the median and tells nothing.
    ns = [n for n in sorted(projections.columns) if 1 <= n < projections.shape[1] / 2]
    l0 = parts.numbers(rows, "l0")
    below = l0 < (1 - _CLEARLY_OFF) * true_l0
    above = l0 > (1 + _CLEARLY_OFF) * true_l0
    at = ~below & ~above
    # Near the truth single runs land in poor minima, so there the best is shown, not the nearest.
    for candidates, merit, color, marker, verdict in (
        (below, -np.abs(l0 - true_l0 / 2), VERMILLION, "v", "too low"),
        (at, parts.numbers(rows, "mcc"), "black", "o", "best near the truth"),
        (above, -np.abs(l0 - true_l0 * 2), BLUE, "^", "too high"),
    ):
        if candidates.any():
            i = int(np.where(candidates, merit, -np.inf).argmax())
            look = {"color": color, "marker": marker, "markersize": 3, "linewidth": 0.9}
            label = f"L0 {l0[i]:.2f}: {verdict}"
            axes.plot(ns, projections.iloc[i][ns].astype(float), **look, label=label)
    parts.finish(axes, "$n$", "$s_n$", "All projections of single SAEs", true_l0)
    axes.set_ylim(bottom=min(-0.05, axes.get_ylim()[0]))
    if at.any():
        axes.text(0.04, 0.06, words, transform=axes.transAxes, fontsize=7, va="bottom")
    axes.legend(loc="upper right", handlelength=1.5)


@paper_style()
def projection_vs_l0(
    table: pd.DataFrame, projections: pd.DataFrame, n: int, true_l0: Number | None = None
) -> Figure:
    """The n-th decoder projection of every SAE against its L0, joined in order of L0.

    Args:
        table: with a column `l0`, and `added` where some SAEs are not in the published grid: they
            are drawn hollow.
        n: which projection; above the right L0 and below d_sae / 2.
    """
    rows = parts.rows_to_draw(parts.with_projections(table, projections, [n]), ["l0", f"s_{n}"])
    figure = Figure(figsize=(3, 1.5))
    axes = figure.add_subplot()
    parts.draw_saes(axes, rows, f"s_{n}", color=BLUE, explain=True)
    title = f"N={n} Decoder Projection vs SAE L0"
    parts.finish(axes, f"SAE L0{parts.left_out(table, rows)}", "$s_n$", title, true_l0)
    if handles := axes.get_legend_handles_labels()[0]:
        # One row of legend in room made for it: anywhere else in so low a figure it hides SAEs.
        s_n = parts.numbers(rows, f"s_{n}")
        lowest, highest = s_n.min(), s_n.max()
        span = highest - lowest or 1.0
        axes.set_ylim(lowest - 0.06 * span, highest + 0.42 * span)
        close = {"handlelength": 1.5, "handletextpad": 0.4, "columnspacing": 1.0}
        axes.legend(loc="upper center", ncols=len(handles), fontsize=6, framealpha=1, **close)
    return figure


def plot_projections(
    saes: pd.DataFrame | Evaluations, n: int = 5, true_l0: Number | None = None
) -> Figure:
    """As `projection_vs_l0`, of evaluations, or of a run's table of results with its `s_n`."""
    if isinstance(saes, pd.DataFrame):
        return projection_vs_l0(*split_projections(saes), n, true_l0)
    return projection_vs_l0(saes.to_frame(), saes.projections, n, true_l0)


@paper_style()
def l0_vs_coefficient(table: pd.DataFrame, true_l0: Number | None = None) -> Figure:
    """The L0 of every SAE of a JumpReLU sweep against the coefficient it was trained with.

    Args:
        table: as of `projection_vs_l0`, with a column `l0_coefficient`; on a logarithmic axis where
            the largest is more than 100 times the smallest.
    """
    rows = parts.rows_to_draw(table, ["l0", "l0_coefficient"])
    coefficients = parts.numbers(rows, "l0_coefficient")
    figure = Figure(figsize=(3, 2))
    axes = figure.add_subplot()
    parts.draw_saes(axes, rows, "l0_coefficient", color=BLUE, size=3.5, line=False, explain=True)
    if 0 < coefficients.min() < coefficients.max() / _LOG_AXIS_RATIO:
        axes.set_yscale("log")
    title = "SAE L0 vs L0 Coefficient for JumpReLU SAEs"
    parts.finish(axes, f"SAE L0{parts.left_out(table, rows)}", "L0 Coefficient", title, true_l0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(handlelength=1.5)
    return figure


@paper_style()
def over_seeds(
    table: pd.DataFrame, column: str, true_l0: Number | None = None, *, ylabel: str, title: str
) -> Figure:
    """A column against `k`: mean and standard deviation (of a sample, 0 for one) over the seeds."""
    figure = Figure(figsize=(3, 1.7))
    axes = figure.add_subplot()
    looks = {column: (BLUE, "o", "Mean over seeds")}
    _draw_over_seeds(axes, table, looks, true_l0, ylabel, title)
    axes.legend(loc="best", handlelength=1.5)
    return figure


def projection_over_seeds(
    table: pd.DataFrame, projections: pd.DataFrame, n: int, true_l0: Number | None = None
) -> Figure:
    """As `over_seeds`, of the n-th decoder projection."""
    joined = parts.with_projections(table, projections, [n])
    title = f"N={n} Decoder Projection vs k"
    return over_seeds(joined, f"s_{n}", true_l0, ylabel="$s_n$", title=title)


@paper_style()
def overview_over_seeds(
    table: pd.DataFrame, projections: pd.DataFrame, true_l0: Number, *, ns: Sequence[int]
) -> Figure:
    """s_n for one or more n, `c_dec`, `c_enc` and `mcc` against `k`, as `over_seeds`."""
    if not ns:
        raise ValueError("ns is empty: name at least one projection to draw.")
    joined = parts.with_projections(table, projections, ns)
    figure = Figure(figsize=(10, 2.6))
    first, *others = figure.subplots(1, 4, width_ratios=(1.5, 1, 1, 1))
    looks = {
        f"s_{n}": (color, "os^Dv"[i % 5], f"$n = {n}$")
        for i, (n, color) in enumerate(zip(ns, parts.shades(len(ns)), strict=True))
    }
    parts.symlog_s_n_axis(first)
    _draw_over_seeds(first, joined, looks, true_l0, "$s_n$", "$n$-th decoder projection")
    # Room above the curves, where there is nothing to hide.
    first.set_ylim(top=max(first.get_ylim()[1], 1) * 12)
    first.legend(loc="upper center", ncols=3, handlelength=1.6, columnspacing=1.2)
    for axes, (column, color, ylabel, title) in zip(
        others,
        (
            ("c_dec", GREY, r"$c_\mathrm{dec}$", "Similarity of decoder rows"),
            ("c_enc", VERMILLION, r"$c_\mathrm{enc}$", "Similarity of encoder columns"),
            ("mcc", GREEN, "matched cosine", "Recovery of the true features"),
        ),
        strict=True,
    ):
        _draw_over_seeds(axes, table, {column: (color, "o", "")}, true_l0, ylabel, title)
        axes.set_ylim(bottom=0)
    return figure


def _draw_over_seeds(
    axes: Axes,
    table: pd.DataFrame,
    looks: Mapping[str, tuple[parts.Color, str, str]],
    true_l0: Number | None,
    ylabel: str,
    title: str,
) -> None:
    """For each column, of a colour, a marker and a label, its mean and a band of one deviation."""
    drawn = []
    for column, (color, marker, label) in looks.items():
        drawn.append(parts.rows_to_draw(table, [column], ["k"]))
        found = parts.mean_and_std(drawn[-1], "k", column)
        k, mean, std = found.index.to_numpy(float), found["mean"], found["std"]
        axes.fill_between(k, mean - std, mean + std, color=color, alpha=0.25, linewidth=0, zorder=1)
        look: dict[str, Any] = {"color": color, "marker": marker, "label": label, "zorder": 2}
        axes.plot(k, mean, **look, markersize=2.5, linewidth=0.8)
    parts.finish(axes, f"$k$ in training{parts.left_out(table, *drawn)}", ylabel, title, true_l0)


@paper_style()
def tradeoff(curves: Mapping[str, pd.DataFrame], recovery: pd.DataFrame, true_l0: Number) -> Figure:
    """Reconstruction error against k, and beside it how well the trained SAEs are the truth.

    Args:
        curves: by label, a row per k with columns `k` and `mse`; one to four.
        recovery: a row per trained SAE with columns `k` and `mcc`.
    """
    if not 1 <= len(curves) <= len(_LOOKS):
        raise ValueError(f"there are {len(curves)} curves; pass 1 to {len(_LOOKS)}.")
    for table, column in (*((curve, "mse") for curve in curves.values()), (recovery, "mcc")):
        parts.require_columns(table, ["k", column])
    rows = parts.rows_to_draw(pd.concat(curves), ["k", "mse"])
    figure = Figure(figsize=(7, 2.6))
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    look: dict[str, Any] = {"markersize": 3, "linewidth": 0.9}
    for label, (color, marker) in zip(curves, _LOOKS, strict=False):
        curve = rows.loc[rows.index.get_level_values(0) == label]
        left.plot(curve["k"], curve["mse"], color=color, marker=marker, label=label, **look)
    by_k = recovery.sort_values("k")
    right.plot(by_k["k"], by_k["mcc"], color=GREEN, marker="o", **look)
    x = "$k$ (latents kept per sample)"
    title = "Reconstruction at the same L0"
    parts.finish(left, x, "MSE (summed over dimensions)", title, true_l0)
    parts.finish(right, x, "matched cosine", "Recovery of the true features", true_l0)
    # Linear, because what sets the curves apart is below the true L0; above it all are near 0.
    left.set_ylim(bottom=0)
    left.legend(handlelength=1.8)
    right.set_ylim(0, 1.05)
    return figure
