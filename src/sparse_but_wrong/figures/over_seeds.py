"""Sweeps over k with several seeds: the mean, and a band of one standard deviation around it."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from sparse_but_wrong.figures.style import BLUE, GREEN, GREY, VERMILLION, paper_style
from sparse_but_wrong.figures.sweep_axes import mark_true_l0, numbers, require_columns

_LINEAR_BELOW = 1e-3


def seed_statistics(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean and standard deviation of a column over the seeds of each k.

    Args:
        table: a row per SAE with columns `k` and `column`. Values that are not finite are left
            out.
    Returns:
        a row per k, ascending, with columns `k`, `mean` and `std` (of a sample; 0 for one seed).
        A k without a finite value is not there.
    Raises:
        ValueError: missing columns, or no finite value at all.
    """
    require_columns(table, ["k", column])
    values = pd.DataFrame({"k": numbers(table, "k"), "value": numbers(table, column)})
    values["value"] = values["value"].where(np.isfinite(values["value"]))
    grouped = values.groupby("k", sort=True)["value"]
    statistics = pd.DataFrame(
        {
            "mean": grouped.mean(),
            "std": grouped.std().fillna(0.0),
        }
    ).reset_index()
    statistics = statistics.loc[statistics["mean"].notna()]
    if statistics.empty:
        raise ValueError(f"none of the table's {len(table)} rows has a finite {column}.")
    return statistics


def over_seeds(
    table: pd.DataFrame,
    column: str,
    true_l0: float | int | None = None,
    *,
    ylabel: str,
    title: str,
) -> Figure:
    """One measurement against k: mean and standard deviation over the seeds.

    Args:
        table: a row per SAE with columns `k` and `column`.
        column: what is drawn.
        true_l0: active features per sample of the world, drawn as a vertical line.
        ylabel: of the figure.
        title: of the figure.
    Raises:
        ValueError: as `seed_statistics`.
    """
    with paper_style():
        figure = Figure(figsize=(3, 1.7))
        axes = figure.add_subplot()
        draw_over_seeds(axes, table, column, color=BLUE)
        _finish(axes, table, true_l0, [column], ylabel=ylabel, title=title)
        axes.legend(loc="best", handlelength=1.5)
    return figure


def overview_over_seeds(table: pd.DataFrame, true_l0: float | int, *, ns: Sequence[int]) -> Figure:
    """s_n, c_dec, c_enc and the recovery of the true features against k, over several seeds.

    Args:
        table: a row per SAE with columns `k`, `c_dec`, `c_enc`, `mcc` and `s_{n}`.
        true_l0: active features per sample of the world.
        ns: which projections are drawn, one or more.
    Raises:
        ValueError: as `seed_statistics`, or no ns.
    """
    if not ns:
        raise ValueError("ns is empty: name at least one projection to draw.")
    with paper_style():
        figure = Figure(figsize=(10, 2.6))
        panels = figure.subplots(1, 4, width_ratios=(1.5, 1, 1, 1))
        projections = panels[0]
        colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(ns)))
        for i, (n, color) in enumerate(zip(ns, map(tuple, colors), strict=True)):
            marker = "os^Dv"[i % 5]
            draw_over_seeds(
                projections, table, f"s_{n}", color=color, marker=marker, label=f"$n = {n}$"
            )
        projections.set_yscale("symlog", linthresh=_LINEAR_BELOW, linscale=0.4)
        projections.yaxis.set_major_locator(FixedLocator([0, 1e-3, 1e-2, 1e-1, 1]))
        projections.yaxis.set_minor_locator(NullLocator())
        _finish(
            projections,
            table,
            true_l0,
            [f"s_{n}" for n in ns],
            ylabel="$s_n$",
            title="$n$-th decoder projection",
        )
        # Room above the curves, where there is nothing to hide.
        projections.set_ylim(top=max(projections.get_ylim()[1], 1) * 12)
        projections.legend(loc="upper center", ncols=3, handlelength=1.6, columnspacing=1.2)
        for axes, column, color, ylabel, title in (
            (panels[1], "c_dec", GREY, r"$c_\mathrm{dec}$", "Similarity of decoder rows"),
            (panels[2], "c_enc", VERMILLION, r"$c_\mathrm{enc}$", "Similarity of encoder columns"),
            (panels[3], "mcc", GREEN, "matched cosine", "Recovery of the true features"),
        ):
            draw_over_seeds(axes, table, column, color=color)
            _finish(axes, table, true_l0, [column], ylabel=ylabel, title=title)
            axes.set_ylim(bottom=0)
    return figure


def draw_over_seeds(
    axes: Axes,
    table: pd.DataFrame,
    column: str,
    *,
    color: str | tuple[float, ...],
    marker: str = "o",
    label: str = "Mean over seeds",
) -> None:
    """The mean of a column at every k as a line, and a band of one standard deviation.

    Raises:
        ValueError: as `seed_statistics`.
    """
    statistics = seed_statistics(table, column)
    k, mean, std = (numbers(statistics, name) for name in ("k", "mean", "std"))
    axes.fill_between(k, mean - std, mean + std, color=color, alpha=0.25, linewidth=0, zorder=1)
    axes.plot(
        k, mean, color=color, marker=marker, markersize=2.5, linewidth=0.8, label=label, zorder=2
    )


def _finish(
    axes: Axes,
    table: pd.DataFrame,
    true_l0: float | int | None,
    columns: Sequence[str],
    *,
    ylabel: str,
    title: str,
) -> None:
    if true_l0 is not None:
        mark_true_l0(axes, true_l0)
    left_out = max(int((~np.isfinite(numbers(table, name))).sum()) for name in columns)
    note = f" ({left_out} not finite, left out)" if left_out else ""
    axes.set_xlabel(f"$k$ in training{note}")
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.grid(True, alpha=0.3)
