"""How much latents mix against what makes them mix: every latent, and mean and spread of SAEs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_but_wrong.figures.axes import (
    finish,
    is_added,
    mark_true_l0,
    marks,
    numbers,
    require_columns,
)
from sparse_but_wrong.figures.style import BLUE, GREEN, GREY, VERMILLION, paper_style

_YLABEL = "Component of feature 0\nin the other latents"


@paper_style()
def mixing_vs_correlation(table: pd.DataFrame) -> Figure:
    """Mixing against the latent correlation; that of the 0/1 firings is written on top.

    Args:
        table: a row per SAE with columns `correlation`, `firing_correlation`, `mixing` and
            `component_1`, …, of which mixing is the mean. SAEs whose mixing is not finite are left
            out, and the axis says how many.
    Raises:
        ValueError: missing columns, or no SAE that can be drawn.
    """
    rows = _finite(table, ["correlation", "firing_correlation"])
    figure = Figure(figsize=(4, 2.6))
    axes = figure.add_subplot()
    _draw_latents(axes, rows, "correlation", BLUE)
    _draw_means(axes, rows, "correlation", BLUE, "o", "_means")
    axes.axhline(0, color=GREY, linewidth=0.6, zorder=1)
    axes.axvline(0, color=GREY, linewidth=0.6, zorder=1)
    finish(axes, f"Latent correlation with feature 0{_left_out(table, rows)}", _YLABEL, "")
    x, y = numbers(rows, "correlation"), numbers(rows, "firing_correlation")
    firing = dict(zip(x, y, strict=True))
    ticks = sorted(firing)
    ticks = ticks[:: max(1, -(-len(ticks) // 11))]
    axes.set_xticks(ticks)
    top = axes.secondary_xaxis("top")
    top.set_xticks(ticks, [f"${firing[tick]:.2f}$" for tick in ticks])
    top.set_xlabel("Correlation of the 0/1 firings")
    return figure


@paper_style()
def mixing_vs_k(table: pd.DataFrame, added: str = "added") -> Figure:
    """Mixing against the k of the SAEs, for each correlation by itself.

    Args:
        table: a row per SAE with columns `k`, `correlation`, `true_l0`, `mixing`, `component_1`, …
            and `added` (true for SAEs that are not in the published grid: hollow and dashed,
            without their latents). SAEs whose mixing is not finite are left out, and the axis says
            how many.
        added: what the legend calls the added SAEs.
    Raises:
        ValueError: missing columns, or no SAE that can be drawn.
    """
    rows = _finite(table, ["k", "correlation", "true_l0", "added"])
    styles = [(BLUE, "o"), (VERMILLION, "s"), (GREEN, "^")]
    figure = Figure(figsize=(4, 3))
    axes = figure.add_subplot()
    axes.axhline(0, color=GREY, linewidth=0.6, zorder=1)
    correlations = np.unique(numbers(rows, "correlation"))[::-1]
    for index, correlation in enumerate(correlations):
        color, marker = styles[index % len(styles)]
        chosen = rows.loc[numbers(rows, "correlation") == correlation]
        published, others = chosen.loc[~is_added(chosen)], chosen.loc[is_added(chosen)]
        label = f"Correlation ${correlation:+g}$"
        _draw_latents(axes, published, "k", color)
        _draw_means(axes, published, "k", color, marker, label)
        _draw_means(axes, others, "k", color, marker, f"{label}, {added}", is_hollow=True)
    truths = set(numbers(rows, "true_l0").round(6).tolist())
    mark_true_l0(axes, truths.pop() if len(truths) == 1 else None)
    finish(axes, f"$k$ of the SAE{_left_out(table, rows)}", _YLABEL, "")
    entries = axes.get_legend_handles_labels()
    figure.legend(*entries, loc="outside upper center", ncols=2, handlelength=2.5)
    return figure


def _draw_latents(axes: Axes, rows: pd.DataFrame, x: str, color: str) -> None:
    """A dot per latent: where one takes on all there is, the mean looks as if all did."""
    look = marks(color, alpha=0.35, markeredgewidth=0, label="_latents", zorder=2)
    for name in (name for name in rows.columns if str(name).startswith("component_")):
        axes.plot(numbers(rows, x), numbers(rows, name), **look)


def _draw_means(
    axes: Axes,
    rows: pd.DataFrame,
    x: str,
    color: str,
    marker: str,
    label: str,
    *,
    is_hollow: bool = False,
) -> None:
    """A line through the means over SAEs, with their standard deviations."""
    if rows.empty:
        return
    at, mixing = numbers(rows, x), numbers(rows, "mixing")
    groups = {value: mixing[at == value] for value in np.unique(at)}
    look: dict[str, Any] = {"markersize": 2.5, "markerfacecolor": color, "linestyle": "-"}
    if is_hollow:
        look = {"markersize": 3.5, "markerfacecolor": "white", "linestyle": "--"}
    axes.errorbar(
        list(groups),
        [values.mean() for values in groups.values()],
        yerr=[values.std(ddof=1) if len(values) > 1 else 0.0 for values in groups.values()],
        color=color,
        marker=marker,
        linewidth=0.8,
        capsize=1.5,
        label=label,
        zorder=3 if is_hollow else 4,
        **look,
    )


def _finite(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    require_columns(table, ["mixing", *columns])
    rows = table.loc[np.isfinite(numbers(table, "mixing"))]
    if rows.empty:
        raise ValueError(f"none of the table's {len(table)} rows has a finite mixing.")
    return rows


def _left_out(table: pd.DataFrame, rows: pd.DataFrame) -> str:
    left_out = len(table) - len(rows)
    return f" ({left_out} SAEs diverged, left out)" if left_out else ""
