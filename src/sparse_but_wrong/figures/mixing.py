"""How much latents mix against what makes them mix: every latent, and mean and spread of SAEs.

A table has a row per SAE with columns `mixing` and `component_1`, …, of which mixing is the mean.
SAEs whose mixing is not finite are left out, and the axis says how many. Missing columns, or no SAE
that can be drawn, raise a ValueError.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_but_wrong.figures import parts
from sparse_but_wrong.figures.style import BLUE, GREEN, GREY, VERMILLION, paper_style

_YLABEL = "Component of feature 0\nin the other latents"


@paper_style()
def mixing_vs_correlation(table: pd.DataFrame) -> Figure:
    """Mixing against the latent `correlation`, with `firing_correlation` written on top."""
    rows = parts.rows_to_draw(table, ["correlation", "mixing"], ["firing_correlation"])
    figure = Figure(figsize=(4, 2.6))
    axes = figure.add_subplot()
    _draw_latents(axes, rows, "correlation", BLUE)
    _draw_means(axes, rows, "correlation", BLUE, "o", "_means")
    axes.axhline(0, color=GREY, linewidth=0.6, zorder=1)
    axes.axvline(0, color=GREY, linewidth=0.6, zorder=1)
    parts.finish(axes, f"Latent correlation with feature 0{parts.left_out(table, rows)}", _YLABEL)
    firing = rows.groupby("correlation")["firing_correlation"].last()
    firing = firing.iloc[:: max(1, -(-len(firing) // 11))]
    axes.set_xticks(firing.index)
    top = axes.secondary_xaxis("top")
    top.set_xticks(firing.index, [f"${correlation:.2f}$" for correlation in firing])
    top.set_xlabel("Correlation of the 0/1 firings")
    return figure


@paper_style()
def mixing_vs_k(table: pd.DataFrame, added: str = "added") -> Figure:
    """Mixing against `k`, for each `correlation` by itself, and the `true_l0` if it is one.

    SAEs that are `added` to the published grid are hollow and dashed, without their latents; the
    legend calls them `added`.
    """
    rows = parts.rows_to_draw(table, ["k", "mixing"], ["correlation", "true_l0", "added"])
    styles = [(BLUE, "o"), (VERMILLION, "s"), (GREEN, "^")]
    figure = Figure(figsize=(4, 3))
    axes = figure.add_subplot()
    axes.axhline(0, color=GREY, linewidth=0.6, zorder=1)
    correlations = np.unique(parts.numbers(rows, "correlation"))[::-1]
    for index, correlation in enumerate(correlations):
        color, marker = styles[index % len(styles)]
        chosen = rows.loc[rows["correlation"] == correlation]
        is_added = chosen["added"].to_numpy(bool)
        label = f"Correlation ${correlation:+g}$"
        _draw_latents(axes, chosen.loc[~is_added], "k", color)
        _draw_means(axes, chosen.loc[~is_added], "k", color, marker, label)
        _draw_means(
            axes, chosen.loc[is_added], "k", color, marker, f"{label}, {added}", hollow=True
        )
    truths = rows["true_l0"].round(6).unique()
    parts.mark_true_l0(axes, truths[0] if len(truths) == 1 else None)
    parts.finish(axes, f"$k$ of the SAE{parts.left_out(table, rows)}", _YLABEL)
    entries = axes.get_legend_handles_labels()
    figure.legend(*entries, loc="outside upper center", ncols=2, handlelength=2.5)
    return figure


def _draw_latents(axes: Axes, rows: pd.DataFrame, x: str, color: str) -> None:
    """A dot per latent: where one takes on all there is, the mean looks as if all did."""
    look = parts.marks(color, alpha=0.35, markeredgewidth=0, label="_latents", zorder=2)
    for name in (name for name in rows.columns if str(name).startswith("component_")):
        axes.plot(parts.numbers(rows, x), parts.numbers(rows, name), **look)


def _draw_means(
    axes: Axes,
    rows: pd.DataFrame,
    x: str,
    color: str,
    marker: str,
    label: str,
    *,
    hollow: bool = False,
) -> None:
    """A line through the means over SAEs, with their standard deviations."""
    if rows.empty:
        return
    found = parts.mean_and_std(rows, x, "mixing")
    look: dict[str, Any] = {"color": color, "marker": marker, "label": label, "linewidth": 0.8}
    look |= {"markersize": 2.5, "markerfacecolor": color, "linestyle": "-", "zorder": 4}
    if hollow:
        look |= {"markersize": 3.5, "markerfacecolor": "white", "linestyle": "--", "zorder": 3}
    axes.errorbar(found.index, found["mean"], yerr=found["std"], capsize=1.5, **look)
