"""Every signal of which L0 is right, above each other over the same axis of L0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_but_wrong.figures import parts
from sparse_but_wrong.figures.style import BLUE, GREEN, GREY, VERMILLION, paper_style
from sparse_but_wrong.metrics.evidence import STANDARD_ERROR

SIGNALS = {
    "$s_n$": {"s_0.25H": "n = 0.25 H", "s_0.4H": "n = 0.4 H"},
    r"$c_\mathrm{dec}$": {"c_dec": ""},
    "shared latents": {"shared_latents": ""},
    "PW-MCC": {"pw_mcc": ""},
    "probing, AUC": {"auc_1": "k = 1", "auc_16": "k = 16"},
    "AUC below\nthe best": {"below_best_1": "k = 1", "below_best_16": "k = 16"},
    "cross entropy\nadded (nats)": {"cross_entropy_increase": ""},
    "latents": {"dead_latents": "dead", "dense_latents": "dense"},
}
"""Panels from top to bottom, each with its columns and what the legend calls them."""

_LOGARITHMIC = ("cross_entropy_increase",)
_LOOKS = ((BLUE, "o"), (VERMILLION, "s"))


@dataclass(frozen=True, eq=False)
class Signals:
    """A sweep of one architecture on one kind of activations."""

    title: str
    table: pd.DataFrame
    """A row per SAE with `l0` and those columns of `SIGNALS` that were measured, and their
    standard errors."""

    baseline: pd.DataFrame | None = None
    """The same of SAEs with a frozen random decoder."""

    interval: tuple[float, float] | None = None
    """Of the recommended L0."""


@paper_style()
def plot_signals(sweeps: Sequence[Signals]) -> Figure:
    """A column per sweep, a row per signal; bars are two standard errors, grey is the baseline.

    A line joins the means of SAEs of one L0. Signals that no sweep has are left out.

    Raises:
        ValueError: there is no sweep, or none has an SAE to draw.
    """
    measured = {
        name: columns
        for name, columns in SIGNALS.items()
        if any(_has(sweep.table, column) for sweep in sweeps for column in columns)
    }
    if not measured:
        raise ValueError("there is no signal to draw; give sweeps whose SAEs were evaluated.")
    size = (0.9 + 2.4 * len(sweeps), 0.5 + 1.25 * len(measured))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(measured), len(sweeps), sharex=True, sharey="row", squeeze=False)
    for row, (name, columns) in zip(grid, measured.items(), strict=True):
        for axes, sweep in zip(row, sweeps, strict=True):
            _draw(axes, sweep, columns)
            parts.finish(axes, "", name if axes is row[0] else "")
        if any(column in _LOGARITHMIC for column in columns):
            row[0].set_yscale("log")
        named = [axes for axes in row if axes.get_legend_handles_labels()[1]]
        if named:
            named[-1].legend(loc="best", handlelength=1)
    for top, bottom, sweep in zip(grid[0], grid[-1], sweeps, strict=True):
        top.set_title(sweep.title)
        bottom.set_xlabel("SAE L0")
    parts.log_l0_axis(grid[0, 0])
    return figure


def _draw(axes: Axes, sweep: Signals, columns: dict[str, str]) -> None:
    if sweep.interval is not None:
        axes.axvspan(*sweep.interval, color=GREEN, alpha=0.25, linewidth=0, zorder=0)
    for (column, label), (color, marker) in zip(columns.items(), _LOOKS, strict=False):
        for table, shown, said in (
            (sweep.baseline, GREY, "_baseline"),
            (sweep.table, color, label or "_"),
        ):
            if table is not None and _has(table, column):
                _draw_one(axes, table, column, parts.marks(shown, marker, 2.5, label=said))


def _draw_one(axes: Axes, table: pd.DataFrame, column: str, look: dict[str, Any]) -> None:
    rows = parts.rows_to_draw(table, ["l0", column])
    error = column + STANDARD_ERROR
    bars = 2 * parts.numbers(rows, error) if error in rows else None
    l0, values = parts.numbers(rows, "l0"), parts.numbers(rows, column)
    axes.errorbar(l0, values, yerr=bars, elinewidth=0.7, **look)
    # SAEs of one L0 from several seeds are at most 3 % apart.
    point = np.concatenate([[0], np.cumsum(np.diff(np.log(l0)) > np.log(1.03))])
    means = [np.bincount(point, x) / np.bincount(point) for x in (np.log(l0), values)]
    axes.plot(np.exp(means[0]), means[1], color=look["color"], linewidth=0.8, label="_means")


def _has(table: pd.DataFrame, column: str) -> bool:
    return column in table and bool(np.isfinite(parts.numbers(table, column)).any())
