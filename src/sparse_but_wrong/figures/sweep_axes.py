"""What figures of a sweep share: the rows they can draw, the SAEs' marks, the line at the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.axes import Axes

from sparse_but_wrong.figures.style import RED


def require_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Check that a table has the columns a figure needs.

    Raises:
        ValueError: some are missing; the message names them.
    """
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(
            f"the table lacks the columns {', '.join(missing)}; it has "
            f"{', '.join(map(str, table.columns))}."
        )


def rows_to_draw(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The SAEs whose `columns` are all finite, in order of L0.

    Raises:
        ValueError: missing columns, or no row that can be drawn.
    """
    require_columns(table, ["added", "l0", *columns])
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
    """Which SAEs are not in the published grid."""
    return table["added"].to_numpy(dtype=bool)


def l0_label(table: pd.DataFrame, drawn: pd.DataFrame) -> str:
    """The label of an L0 axis, which owns up to the SAEs left out for want of finite values."""
    left_out = len(table) - len(drawn)
    return "SAE L0" if left_out == 0 else f"SAE L0 ({left_out} not finite, left out)"


def draw_saes(
    axes: Axes,
    rows: pd.DataFrame,
    x: str,
    y: str,
    *,
    color: str | tuple[float, ...],
    marker: str = "o",
    size: float | int = 3,
    line: bool = True,
) -> None:
    """One mark per SAE: full for the published grid, hollow for SAEs added to it.

    Args:
        line: join all the marks in the order of the rows.
    """
    xs, ys, added = numbers(rows, x), numbers(rows, y), is_added(rows)
    if line:
        axes.plot(xs, ys, color=color, linewidth=0.8, label="_line", zorder=2)
    for of_kind, face, name in ((~added, color, "_grid"), (added, "white", "_added")):
        axes.plot(
            xs[of_kind],
            ys[of_kind],
            linestyle="",
            marker=marker,
            markersize=size,
            markerfacecolor=face,
            markeredgecolor=color,
            markeredgewidth=0.7,
            label=name,
            zorder=3,
        )


def explain_marks(axes: Axes, rows: pd.DataFrame, *, color: str, size: float | int = 3) -> None:
    """Entries for the legend that tell full marks from hollow ones, where there are hollow ones."""
    if not is_added(rows).any():
        return
    for face, name in ((color, "Published grid"), ("white", "Added")):
        axes.plot(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=size,
            markerfacecolor=face,
            markeredgecolor=color,
            markeredgewidth=0.7,
            label=name,
        )


def mark_true_l0(axes: Axes, true_l0: float | int, *, horizontal: bool = False) -> None:
    """A dashed red line at the true L0, which the legend gives in figures."""
    line = axes.axhline if horizontal else axes.axvline
    line(
        true_l0,
        color=RED,
        linestyle="--",
        linewidth=0.7,
        alpha=0.8,
        label=f"True L0 = {true_l0:.4g}",
        zorder=1,
    )
