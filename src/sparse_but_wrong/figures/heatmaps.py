"""Matrices of correlations and cosines as heatmaps, which one routine draws, and what goes along.

One scale for every matrix, so that two figures can be compared by eye: red −1, white 0, blue 1.
A panel of several is a title and what it shows. Where there is none, or its values are missing or
not finite, a ValueError says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from torch import Tensor

from sparse_but_wrong.figures import parts
from sparse_but_wrong.figures.style import BLUE, GREY, Number, paper_style

Values = Float[Tensor, " n_features"] | Float[np.ndarray, " n_features"]
Matrix = Float[Tensor, "n_features n_features"] | Float[np.ndarray, "n_features n_features"]
Panel = tuple[str, Float[np.ndarray, "_rows _columns"]]

_COLORS = "RdBu"
_MOST_VECTOR_CELLS = 10_000
# Beyond this many cells to a side their values no longer have room.
_MOST_VALUES = 10
_PANEL_WIDTH = 1.9


@paper_style()
def correlation_heatmap(
    matrix: Matrix,
    *,
    title: str = "Feature correlation matrix",
    size: tuple[Number, Number] = (2.5, 2),
    dtick: int | None = None,
    figure: Figure | None = None,
) -> Figure:
    """A correlation matrix, red for −1 and blue for +1.

    Args:
        size: width and height in inches.
        dtick: label every how many features; chosen so that labels have room if left out.
        figure: an empty one to draw on, of its own size.
    """
    values = to_array(matrix)
    # NaN fails the comparison too. The slack is what float32 rounding does to a correlation of 1.
    outside = np.argwhere(~(np.abs(values) <= 1 + 1e-4))
    if len(outside):
        row, column = map(int, outside[0])
        raise ValueError(
            f"entry ({row}, {column}) of the correlation matrix is {values[row, column]}: "
            "correlations lie between −1 and 1. Divide a covariance by the standard deviations."
        )
    figure = figure or Figure(figsize=size)
    draw_heatmaps(figure, [(title, values)], "Feature", "Feature", dtick=dtick)
    return figure


@paper_style()
def decoder_cosines(panels: Sequence[Panel]) -> Figure:
    """How SAEs' latents lie to the true features: for each a title and its `matched_cosines`."""
    # One colour bar, for which there has to be room beside a single panel too.
    figure = Figure(figsize=(_PANEL_WIDTH * len(panels) + 0.8, _PANEL_WIDTH + 0.35))
    draw_heatmaps(figure, panels, "True feature", "Latent (matched)")
    for axes in figure.axes[1 : len(panels)]:
        axes.set_ylabel("")
    return figure


@paper_style()
def feature_components_heatmaps(panels: Sequence[Panel]) -> Figure:
    """What each latent holds of each true feature: for each SAE a title and `feature_components`.

    Values are written where they have room.
    """
    figure = Figure(figsize=(2.3 * len(panels) + 0.6, 2.3))
    small = all(max(matrix.shape) <= _MOST_VALUES for _, matrix in panels)
    draw_heatmaps(figure, panels, "True feature", "SAE latent", show_values=small)
    return figure


def draw_heatmaps(
    figure: Figure,
    panels: Sequence[Panel],
    xlabel: str,
    ylabel: str,
    *,
    dtick: int | None = None,
    first_index: int = 0,
    show_values: bool = False,
    row_0_on_top: bool = True,
    title: str = "",
) -> None:
    """Draw matrices side by side on an empty figure, with one colour bar from −1 to 1.

    Args:
        dtick: label every how many rows and columns; chosen so that labels have room if left out.
        first_index: the number of the first row and column.
        show_values: write each value into its cell.
        title: of the whole figure.
    """
    if dtick is not None and dtick < 1:
        raise ValueError(f"dtick is {dtick}: label every 1, 2, … rows, or leave it out.")
    parts.check_panels(panels)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, matrix) in zip(all_axes, panels, strict=True):
        # As vectors, a large matrix makes a PDF that is slow to open.
        rasterized = matrix.size > _MOST_VECTOR_CELLS
        axes.pcolormesh(matrix, cmap=_COLORS, vmin=-1, vmax=1, rasterized=rasterized)
        for axis, count in zip((axes.yaxis, axes.xaxis), matrix.shape, strict=True):
            ticks = np.arange(0, count, dtick) if dtick else tick_positions(count, at_most=6)
            axis.set_ticks(ticks + 0.5, [str(tick + first_index) for tick in ticks])
        axes.tick_params(length=2)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=name)
        if row_0_on_top:
            axes.invert_yaxis()
        if show_values:
            _write_values(axes, matrix, width=figure.get_figwidth() / len(panels))
    scale = ScalarMappable(Normalize(-1, 1), _COLORS)
    figure.colorbar(scale, ax=list(all_axes), ticks=[-1, -0.5, 0, 0.5, 1], pad=0.03)
    if title:
        figure.suptitle(title)


def tick_positions(count: int, *, at_most: int) -> np.ndarray:
    """Round multiples from 0 below `count`, `at_most` of them."""
    steps = (digit * 10**power for power in range(count) for digit in (1, 2, 5))
    return np.arange(0, count, next(step for step in steps if count <= step * at_most))


def to_array(values: Tensor | np.ndarray) -> np.ndarray:
    """Values as a float64 array, wherever the tensor lives and whatever its precision."""
    if isinstance(values, Tensor):
        return values.detach().cpu().double().numpy()
    return values.astype(np.float64)


def _write_values(axes: Axes, matrix: np.ndarray, *, width: float) -> None:
    """Write each value into its cell, in letters that fit a panel `width` inches wide."""
    # Labels leave the cells about 0.8 of the panel; "−0.25" is 2.3 times as wide as it is high.
    cell = 0.8 * 72 * width / matrix.shape[1]
    of_labels = FontProperties(size=matplotlib.rcParams["xtick.labelsize"]).get_size_in_points()
    size = min(of_labels, 0.36 * cell)
    for (row, column), value in np.ndenumerate(matrix):
        text = f"{round(value, 2) + 0.0:.2f}"  # + 0.0: no "-0.00"
        color = "white" if abs(value) > 0.6 else "black"
        at = (column + 0.5, row + 0.5)
        axes.text(*at, text, fontsize=size, color=color, ha="center", va="center")


@paper_style()
def cosines_vs_correlation(
    panels: Sequence[tuple[str, Float[np.ndarray, " _pairs"], Float[np.ndarray, " _pairs"]]],
) -> Figure:
    """How much of one feature is in the latent of another, against how the two fire together.

    A dot is an ordered pair of features, of which a panel has the correlations and the cosines. A
    line joins the means over tenths of the pairs, in the order of their correlation.
    """
    parts.check_panels(panels)
    figure = Figure(figsize=(_PANEL_WIDTH * len(panels) + 0.4, _PANEL_WIDTH))
    all_axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, x, y) in zip(all_axes, panels, strict=True):
        axes.axhline(0, color=GREY, linewidth=0.5, zorder=1)
        axes.axvline(0, color=GREY, linewidth=0.5, zorder=1)
        axes.scatter(x, y, s=2, color=BLUE, alpha=0.25, linewidths=0, rasterized=True, zorder=2)
        tenths = np.array_split(np.argsort(x, kind="stable"), min(10, x.size))
        means = [[values[tenth].mean() for tenth in tenths] for values in (x, y)]
        look = {"color": "black", "marker": "o", "markersize": 2, "linewidth": 0.8}
        axes.plot(*means, **look, label="Mean of a tenth", zorder=3)
        axes.set_title(title)
        axes.grid(True, alpha=0.3)
    all_axes[0].set_ylabel("Cosine of latent $i$\nwith feature $j$")
    size = 0.8 * matplotlib.rcParams["font.size"]
    all_axes[0].legend(loc="upper left", handlelength=1.2, fontsize=size)
    label = "Correlation of the firings of features $i$ and $j$"
    figure.supxlabel(label, fontsize=matplotlib.rcParams["axes.labelsize"])
    return figure


@paper_style()
def firing_probabilities(probabilities: Values) -> Figure:
    """A bar for each feature's probability of firing, features numbered from 0."""
    values = to_array(probabilities)
    if values.size == 0:
        raise ValueError("there are no probabilities: pass one for each feature.")
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if bad.size:
        raise ValueError(
            f"probabilities[{bad[0]}] is {values[bad[0]]}, which is no probability: "
            "pass values between 0 and 1."
        )
    figure = Figure(figsize=(3, 2))
    axes = figure.add_subplot()
    axes.bar(np.arange(values.size), values, width=0.8, color=BLUE)
    axes.set_xticks(tick_positions(values.size, at_most=10))
    axes.margins(x=0.01)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="Feature", ylabel="$P_i$", title="Feature firing probabilities $P_i$")
    return figure
