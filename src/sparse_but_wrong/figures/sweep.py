"""Sweeps as curves: s_n over L0, means over seeds, L0 over coefficients, error over k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_but_wrong.figures.axes import (
    Color,
    draw_saes,
    explain_marks,
    finish,
    left_out,
    mark_true_l0,
    numbers,
    require_columns,
    rows_to_draw,
    shades,
    symlog_s_n_axis,
    with_projections,
)
from sparse_but_wrong.figures.style import BLUE, GREEN, GREY, VERMILLION, Number, paper_style
from sparse_but_wrong.metrics.projection_table import split_projections

# Beyond this ratio of largest to smallest coefficient a linear axis hides the small ones.
_LOG_AXIS_RATIO = 100
_LOOKS = ((VERMILLION, "o"), ("black", "s"), (BLUE, "^"), (GREY, "D"))


@runtime_checkable
class HasProjections(Protocol):
    """Evaluations of several SAEs."""

    @property
    def projections(self) -> pd.DataFrame: ...

    def to_frame(self) -> pd.DataFrame: ...


@paper_style()
def projection_vs_l0(
    table: pd.DataFrame, projections: pd.DataFrame, n: int, true_l0: Number | None = None
) -> Figure:
    """The n-th decoder projection of every SAE against its L0, joined in order of L0.

    Args:
        table: a row per SAE with a column `l0`, and `added` where some SAEs are not in the
            published grid: they are drawn hollow. SAEs with values that are not finite are left
            out, and the axis says how many.
        projections: the same rows, with a column for each n.
        n: which projection; above the right L0 and below d_sae / 2.
        true_l0: active features per sample, drawn as a line; left out where nobody knows it.
    Raises:
        ValueError: missing columns, or no SAE that can be drawn.
    """
    column = f"s_{n}"
    rows = rows_to_draw(with_projections(table, projections, [n]), [column])
    figure = Figure(figsize=(3, 1.5))
    axes = figure.add_subplot()
    draw_saes(axes, rows, column, color=BLUE)
    explain_marks(axes, rows, color=BLUE)
    mark_true_l0(axes, true_l0)
    title = f"N={n} Decoder Projection vs SAE L0"
    finish(axes, f"SAE L0{left_out(table, rows)}", "$s_n$", title)
    if handles := axes.get_legend_handles_labels()[0]:
        # One row of legend in room made for it: anywhere else in so low a figure it hides SAEs.
        heights = numbers(rows, column)
        lowest, highest = heights.min(), heights.max()
        span = highest - lowest or 1.0
        axes.set_ylim(lowest - 0.06 * span, highest + 0.42 * span)
        close = {"handlelength": 1.5, "handletextpad": 0.4, "columnspacing": 1.0}
        axes.legend(loc="upper center", ncols=len(handles), fontsize=6, framealpha=1, **close)
    return figure


def plot_projections(
    saes: pd.DataFrame | HasProjections, n: int = 5, true_l0: Number | None = None
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
    Raises:
        ValueError: missing columns, or no SAE that can be drawn.
    """
    rows = rows_to_draw(table, ["l0_coefficient"])
    coefficients = numbers(rows, "l0_coefficient")
    figure = Figure(figsize=(3, 2))
    axes = figure.add_subplot()
    draw_saes(axes, rows, "l0_coefficient", color=BLUE, size=3.5, line=False)
    explain_marks(axes, rows, color=BLUE, size=3.5)
    mark_true_l0(axes, true_l0)
    if 0 < coefficients.min() < coefficients.max() / _LOG_AXIS_RATIO:
        axes.set_yscale("log")
    title = "SAE L0 vs L0 Coefficient for JumpReLU SAEs"
    finish(axes, f"SAE L0{left_out(table, rows)}", "L0 Coefficient", title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(handlelength=1.5)
    return figure


@paper_style()
def over_seeds(
    table: pd.DataFrame, column: str, true_l0: Number | None = None, *, ylabel: str, title: str
) -> Figure:
    """A number of every SAE against its k: mean and standard deviation over the seeds.

    The standard deviation is that of a sample, and 0 for one seed. Values that are not finite are
    left out, and the axis says how many.

    Args:
        table: a row per SAE with columns `k` and `column`.
    Raises:
        ValueError: missing columns, or no finite value at all.
    """
    figure = Figure(figsize=(3, 1.7))
    axes = figure.add_subplot()
    _draw_over_seeds(axes, table, column, color=BLUE)
    _finish_over_seeds(axes, table, [column], true_l0, ylabel, title)
    axes.legend(loc="best", handlelength=1.5)
    return figure


def projection_over_seeds(
    table: pd.DataFrame, projections: pd.DataFrame, n: int, true_l0: Number | None = None
) -> Figure:
    """As `over_seeds`, of the n-th decoder projection."""
    joined = with_projections(table, projections, [n])
    title = f"N={n} Decoder Projection vs k"
    return over_seeds(joined, f"s_{n}", true_l0, ylabel="$s_n$", title=title)


@paper_style()
def overview_over_seeds(
    table: pd.DataFrame, projections: pd.DataFrame, true_l0: Number, *, ns: Sequence[int]
) -> Figure:
    """s_n, c_dec, c_enc and the recovery of the true features against k, over several seeds.

    Args:
        table: a row per SAE with columns `k`, `c_dec`, `c_enc` and `mcc`.
        projections: the same rows, with a column for each of the `ns`, one or more.
    Raises:
        ValueError: as `over_seeds`, or no ns.
    """
    if not ns:
        raise ValueError("ns is empty: name at least one projection to draw.")
    joined, columns = with_projections(table, projections, ns), [f"s_{n}" for n in ns]
    figure = Figure(figsize=(10, 2.6))
    panels = figure.subplots(1, 4, width_ratios=(1.5, 1, 1, 1))
    for i, (n, color) in enumerate(zip(ns, shades(len(ns)), strict=True)):
        look: dict[str, Any] = {"color": color, "marker": "os^Dv"[i % 5], "label": f"$n = {n}$"}
        _draw_over_seeds(panels[0], joined, f"s_{n}", **look)
    symlog_s_n_axis(panels[0])
    title = "$n$-th decoder projection"
    _finish_over_seeds(panels[0], joined, columns, true_l0, "$s_n$", title)
    # Room above the curves, where there is nothing to hide.
    panels[0].set_ylim(top=max(panels[0].get_ylim()[1], 1) * 12)
    panels[0].legend(loc="upper center", ncols=3, handlelength=1.6, columnspacing=1.2)
    for axes, column, color, ylabel, title in (
        (panels[1], "c_dec", GREY, r"$c_\mathrm{dec}$", "Similarity of decoder rows"),
        (panels[2], "c_enc", VERMILLION, r"$c_\mathrm{enc}$", "Similarity of encoder columns"),
        (panels[3], "mcc", GREEN, "matched cosine", "Recovery of the true features"),
    ):
        _draw_over_seeds(axes, table, column, color=color)
        _finish_over_seeds(axes, table, [column], true_l0, ylabel, title)
        axes.set_ylim(bottom=0)
    return figure


def _draw_over_seeds(
    axes: Axes,
    table: pd.DataFrame,
    column: str,
    *,
    color: Color,
    marker: str = "o",
    label: str = "Mean over seeds",
) -> None:
    """The mean of the finite values at every k as a line, and a band of one standard deviation."""
    require_columns(table, ["k", column])
    finite = np.isfinite(numbers(table, column))
    if not finite.any():
        raise ValueError(f"none of the table's {len(table)} rows has a finite {column}.")
    values = pd.Series(numbers(table, column)[finite])
    grouped = values.groupby(numbers(table, "k")[finite], sort=True)
    found = pd.DataFrame({"mean": grouped.mean(), "std": grouped.std().fillna(0.0)})
    k, mean, std = found.index.to_numpy(float), numbers(found, "mean"), numbers(found, "std")
    axes.fill_between(k, mean - std, mean + std, color=color, alpha=0.25, linewidth=0, zorder=1)
    look: dict[str, Any] = {"color": color, "marker": marker, "markersize": 2.5, "linewidth": 0.8}
    axes.plot(k, mean, **look, label=label, zorder=2)


def _finish_over_seeds(
    axes: Axes,
    table: pd.DataFrame,
    columns: Sequence[str],
    true_l0: Number | None,
    ylabel: str,
    title: str,
) -> None:
    mark_true_l0(axes, true_l0)
    missing = max(int((~np.isfinite(numbers(table, name))).sum()) for name in columns)
    note = f" ({missing} not finite, left out)" if missing else ""
    finish(axes, f"$k$ in training{note}", ylabel, title)


@paper_style()
def tradeoff(curves: Mapping[str, pd.DataFrame], recovery: pd.DataFrame, true_l0: Number) -> Figure:
    """Reconstruction error against k, and beside it how well the trained SAEs are the truth.

    Args:
        curves: by label, a row per k with columns `k` and `mse`; up to four. Errors that are not
            finite are left out.
        recovery: a row per trained SAE with columns `k` and `mcc`.
    Raises:
        ValueError: no curves or more than four, missing columns, or no error that can be drawn.
    """
    if not 1 <= len(curves) <= len(_LOOKS):
        raise ValueError(f"there are {len(curves)} curves; pass 1 to {len(_LOOKS)}.")
    require_columns(recovery, ["k", "mcc"])
    figure = Figure(figsize=(7, 2.6))
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    look: dict[str, Any] = {"markersize": 3, "linewidth": 0.9}
    n_drawn = 0
    for (label, curve), (color, marker) in zip(curves.items(), _LOOKS, strict=False):
        require_columns(curve, ["k", "mse"])
        k, mse = (numbers(curve.sort_values("k"), name) for name in ("k", "mse"))
        there = np.isfinite(mse)
        n_drawn += int(there.sum())
        left.plot(k[there], mse[there], color=color, marker=marker, label=label, **look)
    if n_drawn == 0:
        raise ValueError("none of the curves has a finite error: nothing to draw.")
    by_k = recovery.sort_values("k")
    right.plot(numbers(by_k, "k"), numbers(by_k, "mcc"), color=GREEN, marker="o", **look)
    x = "$k$ (latents kept per sample)"
    for axes, ylabel, title in (
        (left, "MSE (summed over dimensions)", "Reconstruction at the same L0"),
        (right, "matched cosine", "Recovery of the true features"),
    ):
        mark_true_l0(axes, true_l0)
        finish(axes, x, ylabel, title)
    # Linear, because what sets the curves apart is below the true L0; above it all are near 0.
    left.set_ylim(bottom=0)
    left.legend(handlelength=1.8)
    right.set_ylim(0, 1.05)
    return figure
