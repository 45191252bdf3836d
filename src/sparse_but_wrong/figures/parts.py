"""What figures share: the rows they can draw, SAEs' marks, scales, the line at the true L0.

A `table` has a row per SAE; `projections` has the same rows and a column for each integer n, s_n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import (
    FixedLocator,
    FormatStrFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from sparse_but_wrong.figures.style import RED, Number
from sparse_but_wrong.metrics.evaluation import join_projections

Color = str | tuple[float, ...]


def require_columns(table: pd.DataFrame, columns: Sequence[Any]) -> None:
    """Raise a ValueError that names the columns a table lacks."""
    missing = [str(name) for name in columns if name not in table.columns]
    if missing:
        raise ValueError(
            f"the table lacks the columns {', '.join(missing)}; it has "
            f"{', '.join(map(str, table.columns))}."
        )


def with_projections(
    table: pd.DataFrame, projections: pd.DataFrame, ns: Sequence[int]
) -> pd.DataFrame:
    """The table with a column `s_{n}` for each n; a ValueError if the projections lack one."""
    require_columns(projections, ns)
    kept = table.drop(columns=[f"s_{n}" for n in ns], errors="ignore")
    return join_projections(kept, projections.loc[:, list(ns)])


def rows_to_draw(
    table: pd.DataFrame, finite: Sequence[str], others: Sequence[str] = ()
) -> pd.DataFrame:
    """The rows whose columns `finite` are all finite, in order of the first of them.

    Raises:
        ValueError: columns are missing, `others` among them, or no row can be drawn.
    """
    require_columns(table, [*finite, *others])
    drawn = np.all([np.isfinite(numbers(table, name)) for name in finite], axis=0)
    if not drawn.any():
        raise ValueError(
            f"none of the table's {len(table)} rows has a finite {' and '.join(finite)}: "
            "nothing to draw."
        )
    return table.loc[drawn].sort_values(finite[0], kind="stable")


def check_panels(panels: Sequence[tuple[str, *tuple[np.ndarray, ...]]]) -> None:
    """Refuse none at all, and one of which something is empty or not finite."""
    if not panels:
        raise ValueError("there are no panels: pass at least one to draw.")
    for title, *arrays in panels:
        if not all(array.size and np.isfinite(array).all() for array in arrays):
            raise ValueError(f"the values of {title!r} are missing or not finite.")


def left_out(table: pd.DataFrame, *drawn: pd.DataFrame) -> str:
    """What an axis says of rows left out for want of finite values: the most of any curve."""
    missing = len(table) - min(map(len, drawn))
    return f" ({missing} not finite, left out)" if missing else ""


def numbers(table: pd.DataFrame, column: str) -> Float[np.ndarray, " rows"]:
    """A column as float64, missing entries as NaN."""
    return table[column].to_numpy(dtype=np.float64, na_value=np.nan)


def mean_and_std(rows: pd.DataFrame, by: str, column: str) -> pd.DataFrame:
    """`mean` and `std`, that of a sample and 0 for one row, at every value of `by`, in order."""
    grouped = pd.Series(numbers(rows, column)).groupby(numbers(rows, by))
    return pd.DataFrame({"mean": grouped.mean(), "std": grouped.std().fillna(0.0)})


def marks(
    color: Color, marker: str = "o", size: Number = 3, face: Color | None = None, **more: Any
) -> dict[str, Any]:
    """Arguments of `Axes.plot` for marks that nothing joins; with a `face`, `color` outlines it."""
    if face is not None:
        more |= {"markerfacecolor": face, "markeredgecolor": color, "markeredgewidth": 0.7}
    return {"linestyle": "", "marker": marker, "markersize": size, "color": color, **more}


def draw_saes(
    axes: Axes,
    rows: pd.DataFrame,
    y: str,
    *,
    color: Color,
    marker: str = "o",
    size: Number = 3,
    line: bool = True,
    label: str = "_grid",
    explain: bool = False,
) -> None:
    """A mark per SAE over its L0, hollow where `added` is true: not in the published grid.

    Args:
        line: join them.
        explain: add entries for the legend that tell the two kinds apart, where there are both.
    """
    added = rows["added"].to_numpy(bool) if "added" in rows else np.zeros(len(rows), bool)
    xs, ys = numbers(rows, "l0"), numbers(rows, y)
    if line:
        axes.plot(xs, ys, color=color, linewidth=0.8, label="_line", zorder=2)
    for chosen, face, name, entry in (
        (~added, color, label, "Published grid"),
        (added, "white", "_added", "Added"),
    ):
        look = marks(color, marker, size, face, zorder=3)
        axes.plot(xs[chosen], ys[chosen], **look, label=name)
        if explain and added.any():
            axes.plot([], [], **look, label=entry)


def mark_true_l0(axes: Axes, true_l0: Number | None, *, horizontal: bool = False) -> None:
    """A dashed red line at the true L0, where it is known, which the legend gives in figures."""
    if true_l0 is not None:
        line = axes.axhline if horizontal else axes.axvline
        label = f"True L0 = {true_l0:.4g}"
        line(true_l0, color=RED, linestyle="--", linewidth=0.7, alpha=0.8, label=label, zorder=1)


def finish(
    axes: Axes, xlabel: str, ylabel: str, title: str = "", true_l0: Number | None = None
) -> None:
    """The line at the true L0, labels and a pale grid."""
    mark_true_l0(axes, true_l0)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
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
