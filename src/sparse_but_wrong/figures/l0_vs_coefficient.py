"""Which L0 each sparsity coefficient led to."""

from __future__ import annotations

import pandas as pd
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

# Beyond this ratio of largest to smallest coefficient a linear axis hides the small ones.
_LOG_AXIS_RATIO = 100


def l0_vs_coefficient(table: pd.DataFrame, true_l0: float | int | None = None) -> Figure:
    """The L0 of every SAE of a JumpReLU sweep against the coefficient it was trained with.

    The coefficients are on a logarithmic axis where the largest is more than 100 times the
    smallest.

    Args:
        table: a row per SAE with columns `l0`, `l0_coefficient` and `added` (true for SAEs that
            are not in the published grid: they are drawn hollow).
        true_l0: active features per sample of the world, drawn as a vertical line; left out where
            nobody knows it.
    Raises:
        ValueError: missing columns, or no SAE that can be drawn.
    """
    rows = rows_to_draw(table, ["l0_coefficient"])
    coefficients = numbers(rows, "l0_coefficient")
    with paper_style():
        figure = Figure(figsize=(3, 2))
        axes = figure.add_subplot()
        draw_saes(axes, rows, "l0", "l0_coefficient", color=BLUE, size=3.5, line=False)
        explain_marks(axes, rows, color=BLUE, size=3.5)
        if true_l0 is not None:
            mark_true_l0(axes, true_l0)
        if 0 < coefficients.min() < coefficients.max() / _LOG_AXIS_RATIO:
            axes.set_yscale("log")
        axes.set_xlabel(l0_label(table, rows))
        axes.set_ylabel("L0 Coefficient")
        axes.set_title("SAE L0 vs L0 Coefficient for JumpReLU SAEs")
        axes.grid(True, alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(handlelength=1.5)
    return figure
