"""What figures share: the rows they can draw, SAEs' marks, scales, the line at the true L0.

A `table` has a row per SAE; `projections` has the same rows and a column for each integer n, s_n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedLocator,
    FormatStrFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from sparse_but_wrong.figures.style import RED, Number

Color = str | tuple[float, ...]


def require_columns(table: pd.DataFrame, columns: Sequence[Any]) -> None:
    """Check that a table has the columns a figure needs.

    Raises:
        ValueError: some are missing; the message names them.
    """
    missing = [str(name) for name in columns if name not in table.columns]
    if missing:
        raise ValueError(
            f"the table lacks the columns {', '.join(missing)}; it has "
            f"{', '.join(map(str, table.columns))}."
        )


def with_projections(
    table: pd.DataFrame, projections: pd.DataFrame, ns: Sequence[int]
) -> pd.DataFrame:
    """The table with a column `s_{n}` for each n.

    Raises:
        ValueError: the projections lack an n.
    """
    require_columns(projections, ns)
    added = projections[list(ns)].add_prefix("s_")
    return table.drop(columns=added.columns, errors="ignore").join(added)


def rows_to_draw(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The SAEs whose `columns` are all finite, in order of L0.

    Raises:
        ValueError: missing columns, or no row that can be drawn.
    """
    require_columns(table, ["l0", *columns])
    finite = np.all([np.isfinite(numbers(table, name)) for name in ("l0", *columns)], axis=0)
    rows = table.loc[finite].sort_values("l0", kind="stable")
    if rows.empty:
        raise ValueError(
            f"none of the table's {len(table)} rows has finite values in all of "
            f"{', '.join(['l0', *columns])}: nothing to draw."
        )
    return rows


def numbers(table: pd.DataFrame, column: str) -> Float[np.ndarray, " rows"]:
    """A column as float64, missing entries as NaN."""
    return table[column].to_numpy(dtype=np.float64, na_value=np.nan)


def is_added(table: pd.DataFrame) -> Bool[np.ndarray, " rows"]:
    """Which SAEs are not in the published grid; none where no column `added` says so."""
    return table["added"].to_numpy(bool) if "added" in table else np.zeros(len(table), bool)


def left_out(table: pd.DataFrame, drawn: pd.DataFrame) -> str:
    """What an axis says of SAEs left out for want of finite values."""
    missing = len(table) - len(drawn)
    return f" ({missing} not finite, left out)" if missing else ""


def marks(color: Color, marker: str = "o", size: Number = 3, **more: Any) -> dict[str, Any]:
    """Arguments of `Axes.plot` for marks that nothing joins."""
    return {"linestyle": "", "marker": marker, "markersize": size, "color": color, **more}


def outlined(color: Color, face: Color, marker: str = "o", size: Number = 3) -> dict[str, Any]:
    """As `marks`, with a face of another colour than the edge."""
    edge = {"markerfacecolor": face, "markeredgecolor": color, "markeredgewidth": 0.7}
    return marks(color, marker, size, **edge)


def draw_saes(
    axes: Axes,
    rows: pd.DataFrame,
    y: str,
    *,
    color: Color,
    marker: str = "o",
    size: Number = 3,
    line: bool = True,
) -> None:
    """A mark per SAE over its L0: full for the published grid, hollow for SAEs added to it."""
    xs, ys, added = numbers(rows, "l0"), numbers(rows, y), is_added(rows)
    if line:
        axes.plot(xs, ys, color=color, linewidth=0.8, label="_line", zorder=2)
    for chosen, face, name in ((~added, color, "_grid"), (added, "white", "_added")):
        look = outlined(color, face, marker, size)
        axes.plot(xs[chosen], ys[chosen], **look, label=name, zorder=3)


def explain_marks(axes: Axes, rows: pd.DataFrame, *, color: Color, size: Number = 3) -> None:
    """Entries for the legend that tell full marks from hollow ones, where there are hollow ones."""
    if is_added(rows).any():
        for face, name in ((color, "Published grid"), ("white", "Added")):
            axes.plot([], [], **outlined(color, face, size=size), label=name)


def mark_true_l0(axes: Axes, true_l0: Number | None, *, horizontal: bool = False) -> None:
    """A dashed red line at the true L0, where it is known, which the legend gives in figures."""
    if true_l0 is not None:
        line = axes.axhline if horizontal else axes.axvline
        label = f"True L0 = {true_l0:.4g}"
        line(true_l0, color=RED, linestyle="--", linewidth=0.7, alpha=0.8, label=label, zorder=1)


def finish(axes: Axes, xlabel: str, ylabel: str, title: str) -> None:
    """Labels and a pale grid."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.grid(True, alpha=0.3)


def log_l0_axis(axes: Axes) -> None:
    """A logarithmic x axis that is labelled at 1, 2, 5, 10, …"""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def symlog_s_n_axis(axes: Axes, top: int = 0) -> None:
    """A y axis that shows s_n rising over decades and how flat it is near 0, up to 10^top."""
    axes.set_yscale("symlog", linthresh=1e-3, linscale=0.4)
    axes.yaxis.set_major_locator(FixedLocator([0, *(10.0**i for i in range(-3, top + 1))]))
    axes.yaxis.set_minor_locator(NullLocator())


def shades(count: int, name: str = "viridis", end: Number = 0.85) -> list[tuple[float, ...]]:
    """Colours of a colour map, without the end that does not show on white."""
    return [
        tuple(map(float, rgba)) for rgba in matplotlib.colormaps[name](np.linspace(0, end, count))
    ]
