"""Matrices of correlations and cosine similarities as heatmaps: one routine draws them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from torch import Tensor

from sparse_but_wrong.figures.style import paper_style

# One scale for every matrix, so that two figures can be compared by eye: red −1, white 0, blue 1.
_COLORS = "RdBu"
_LOWEST, _HIGHEST = -1, 1
_MOST_VECTOR_CELLS = 10_000


@dataclass(frozen=True)
class HeatmapPanel:
    """One matrix, of values between −1 and 1 or thereabouts, and what is written around it."""

    matrix: Float[np.ndarray, "rows columns"]
    title: str
    ylabel: str
    xlabel: str


def correlation_heatmap(
    matrix: Float[Tensor, "n_features n_features"] | Float[np.ndarray, "n_features n_features"],
    *,
    title: str = "Feature correlation matrix",
    size: tuple[float | int, float | int] = (2.5, 2),
    dtick: int | None = None,
) -> Figure:
    """A correlation matrix, red for −1 and blue for +1.

    Args:
        size: width and height in inches.
        dtick: label every how many features; chosen so that labels have room if left out.
    Raises:
        ValueError: an empty matrix, values outside [−1, 1], or a dtick below 1.
    """
    with paper_style():
        figure = Figure(figsize=size)
        draw_correlations(figure, matrix, title=title, dtick=dtick)
    return figure


def draw_correlations(
    figure: Figure,
    matrix: Float[Tensor, "n_features n_features"] | Float[np.ndarray, "n_features n_features"],
    *,
    title: str,
    dtick: int | None,
) -> None:
    """Draw a correlation matrix on an empty figure.

    Raises:
        ValueError: an empty matrix, values outside [−1, 1], or a dtick below 1.
    """
    values = to_array(matrix)
    _check_correlations(values)
    panel = HeatmapPanel(values, title=title, ylabel="Feature", xlabel="Feature")
    draw_heatmaps(figure, [panel], dtick=dtick)


def draw_heatmaps(
    figure: Figure,
    panels: Sequence[HeatmapPanel],
    *,
    dtick: int | None = None,
    first_index: int = 0,
    show_values: bool = False,
    origin: Literal["upper", "lower"] = "upper",
) -> None:
    """Draw matrices side by side on an empty figure, with one colour bar from −1 to 1.

    Args:
        origin: where row 0 is drawn, as in matplotlib's `imshow`.
        dtick: label every how many rows and columns; chosen so that labels have room if left out.
        first_index: the number that the first row and column are given.
        show_values: write each value into its cell.
    Raises:
        ValueError: an empty matrix, one with NaN or infinities, or a dtick below 1.
    """
    if dtick is not None and dtick < 1:
        raise ValueError(f"dtick is {dtick}: label every 1, 2, … rows, or leave it out.")
    for panel in panels:
        if panel.matrix.size == 0 or not np.isfinite(panel.matrix).all():
            raise ValueError(
                f"the matrix of {panel.title!r}, of shape {panel.matrix.shape}, is empty or has "
                "values that are not finite: nothing sensible can be drawn."
            )
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_cells(axes, panel, dtick=dtick, first_index=first_index)
        if origin == "upper":
            axes.invert_yaxis()
        if show_values:
            _write_values(axes, panel.matrix, width=figure.get_figwidth() / len(panels))
    scale = ScalarMappable(Normalize(_LOWEST, _HIGHEST), _COLORS)
    figure.colorbar(scale, ax=list(all_axes), ticks=[-1, -0.5, 0, 0.5, 1], pad=0.03)


def _check_correlations(matrix: np.ndarray) -> None:
    # NaN fails the comparison too. The slack is what float32 rounding does to a correlation of 1.
    outside = np.argwhere(~(np.abs(matrix) <= 1 + 1e-4))
    if len(outside):
        row, column = map(int, outside[0])
        raise ValueError(
            f"entry ({row}, {column}) of the correlation matrix is {matrix[row, column]}: "
            "correlations lie between −1 and 1. Divide a covariance by the standard deviations."
        )


def tick_positions(count: int, *, at_most: int) -> np.ndarray:
    """Round multiples from 0 below `count`, `at_most` of them."""
    steps = (digit * 10**power for power in range(count) for digit in (1, 2, 5))
    step = next(step for step in steps if count <= step * at_most)
    return np.arange(0, count, step)


def to_array(values: Tensor | np.ndarray) -> np.ndarray:
    """Values as a float64 array, wherever the tensor lives and whatever its precision."""
    if isinstance(values, Tensor):
        return values.detach().cpu().double().numpy()
    return values.astype(np.float64)


def _draw_cells(axes: Axes, panel: HeatmapPanel, *, dtick: int | None, first_index: int) -> None:
    rows, columns = panel.matrix.shape
    axes.pcolormesh(
        panel.matrix,
        cmap=_COLORS,
        vmin=_LOWEST,
        vmax=_HIGHEST,
        # As vectors, a large matrix makes a PDF that is slow to open.
        rasterized=panel.matrix.size > _MOST_VECTOR_CELLS,
    )
    for axis, count in ((axes.xaxis, columns), (axes.yaxis, rows)):
        ticks = np.arange(0, count, dtick) if dtick else tick_positions(count, at_most=6)
        axis.set_ticks(ticks + 0.5, [str(tick + first_index) for tick in ticks])
    axes.tick_params(length=2)
    axes.set_xlabel(panel.xlabel)
    axes.set_ylabel(panel.ylabel)
    axes.set_title(panel.title)


def _write_values(axes: Axes, matrix: np.ndarray, *, width: float) -> None:
    """Write each value into its cell, in letters that fit a panel `width` inches wide."""
    # Labels leave the cells about 0.8 of the panel; "−0.25" is 2.3 times as wide as it is high.
    cell = 0.8 * 72 * width / matrix.shape[1]
    of_labels = FontProperties(size=matplotlib.rcParams["xtick.labelsize"]).get_size_in_points()
    size = min(of_labels, 0.36 * cell)
    for (row, column), value in np.ndenumerate(matrix):
        axes.text(
            column + 0.5,
            row + 0.5,
            f"{round(value, 2) + 0.0:.2f}",  # + 0.0: no "-0.00"
            ha="center",
            va="center",
            fontsize=size,
            color="white" if abs(value) > 0.6 else "black",
        )
