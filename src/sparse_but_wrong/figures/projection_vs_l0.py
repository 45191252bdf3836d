"""The N-th decoder projection of every SAE of a sweep against its L0."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_but_wrong.figures.style import BLUE, paper_style
from sparse_but_wrong.figures.sweep_axes import (
    draw_saes,
    explain_marks,
    l0_label,
    mark_true_l0,
    numbers,
    rows_to_draw,
)


def projection_vs_l0(table: pd.DataFrame, n: int, true_l0: float | int | None = None) -> Figure:
    """The n-th decoder projection $s_n$ of every SAE against its L0, joined in order of L0.

    Args:
        table: a row per SAE with columns `l0`, `s_{n}` and `added` (true for SAEs that are not in
            the published grid: they are drawn hollow). SAEs with values that are not finite are
            left out, and the axis says how many.
        n: which projection; above the L0 that is looked for and below d_sae / 2.
        true_l0: active features per sample of the world, drawn as a vertical line; left out where
            nobody knows it.
    Raises:
        ValueError: missing columns, or no SAE that can be drawn.
    """
    column = f"s_{n}"
    rows = rows_to_draw(table, [column])
    with paper_style():
        figure = Figure(figsize=(3, 1.5))
        axes = figure.add_subplot()
        draw_saes(axes, rows, "l0", column, color=BLUE)
        explain_marks(axes, rows, color=BLUE)
        if true_l0 is not None:
            mark_true_l0(axes, true_l0)
        axes.set_title(f"N={n} Decoder Projection vs SAE L0")
        axes.set_xlabel(l0_label(table, rows))
        axes.set_ylabel("$s_n$")
        axes.grid(True, alpha=0.3)
        _legend_above_data(axes, numbers(rows, column))
    return figure


def _legend_above_data(axes: Axes, heights: Float[np.ndarray, " rows"]) -> None:
    """One row of legend in room made for it: anywhere else in so low a figure it hides SAEs."""
    handles = axes.get_legend_handles_labels()[0]
    if not handles:
        return
    lowest, highest = heights.min(), heights.max()
    span = highest - lowest or 1.0
    axes.set_ylim(lowest - 0.06 * span, highest + 0.42 * span)
    axes.legend(
        loc="upper center",
        ncols=len(handles),
        fontsize=6,
        handlelength=1.5,
        handletextpad=0.4,
        columnspacing=1.0,
        framealpha=1,
    )
