"""How the L0s of many SAEs are spread, a row per model."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from sparse_but_wrong.figures.style import BLUE, RED, VERMILLION, paper_style
from sparse_but_wrong.figures.sweep_axes import numbers, require_columns

_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
# Dots are spread over this share of a row, so that SAEs of equal L0 do not hide each other.
_SPREAD = 0.56


def l0_by_model(table: pd.DataFrame, mark: float | int | None = None) -> Figure:
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
    with paper_style():
        figure = Figure(figsize=(5, 0.8 + 0.17 * len(medians)))
        axes = figure.add_subplot()
        for chosen, color, alpha, label in (
            (~has_elbow, BLUE, 0.25, "SAE"),
            (has_elbow, VERMILLION, 0.8, "SAE where an elbow is reported"),
        ):
            if chosen.any():
                axes.plot(
                    l0[chosen],
                    heights[chosen],
                    linestyle="",
                    marker="o",
                    markersize=2.2,
                    markeredgewidth=0,
                    color=color,
                    alpha=alpha,
                    label=label,
                    # Thousands of dots as vectors make a PDF that is slow to open.
                    rasterized=True,
                )
        axes.plot(
            [medians[model] for model in order],
            np.arange(len(medians)),
            linestyle="",
            marker="|",
            markersize=8,
            markeredgewidth=1.4,
            color="black",
            label="Median",
        )
        if mark is not None:
            axes.axvline(mark, color=RED, linestyle="--", linewidth=0.7, label=f"L0 = {mark:g}")
        axes.set_yticks(
            np.arange(len(order)),
            [f"{_in_latex(model)} ({(models == model).sum()})" for model in order],
        )
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.7, len(medians) - 0.3)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(_TICKS))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_xlabel("L0")
        axes.grid(True, axis="x", alpha=0.3)
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, handlelength=1.2
        )
    return figure


def _in_latex(name: str) -> str:
    """A name as LaTeX and matplotlib's own formulas both take it: a bare underscore means more."""
    return name.replace("_", r"$\_$")
