from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from sparse_but_wrong.figures.heatmaps import (
    HeatmapPanel,
    correlation_heatmap,
    draw_heatmaps,
    tick_positions,
)


def cells(figure: Figure, index: int = 0) -> np.ndarray:
    mesh = figure.axes[index].collections[0]
    assert isinstance(mesh, QuadMesh)
    return np.asarray(mesh.get_array())


def test_correlations_are_drawn_on_a_scale_from_minus_one_to_one(
    render: Callable[[Figure], bytes],
) -> None:
    matrix = torch.tensor([[1.0, -0.5, 0.0], [-0.5, 1.0, 0.25], [0.0, 0.25, 1.0]])
    figure = correlation_heatmap(matrix)
    axes = figure.axes[0]
    np.testing.assert_array_equal(cells(figure), matrix.numpy())
    assert axes.collections[0].get_clim() == (-1, 1)
    assert axes.get_title() == "Feature correlation matrix"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Feature", "Feature")
    bottom, top = axes.get_ylim()
    assert bottom > top  # row 0 on top
    lower = Figure()
    panel = HeatmapPanel(matrix.numpy(), title="t", ylabel="y", xlabel="x")
    draw_heatmaps(lower, [panel], origin="lower")
    np.testing.assert_array_equal(cells(lower), matrix.numpy())
    assert lower.axes[0].get_ylim() == (0, 3)
    assert tuple(figure.get_size_inches()) == (2.5, 2)
    assert render(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("dtick", "labels"), [(None, ["0", "10", "20", "30", "40"]), (25, ["0", "25"])]
)
def test_labels_stand_in_the_middle_of_their_cells(dtick: int | None, labels: list[str]) -> None:
    axes = correlation_heatmap(np.eye(50), dtick=dtick).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == labels
    np.testing.assert_array_equal(axes.get_yticks(), [int(label) + 0.5 for label in labels])


def test_values_are_written_into_their_cells(render: Callable[[Figure], bytes]) -> None:
    figure = Figure()
    panel = HeatmapPanel(np.array([[0.1, -0.987]]), title="t", ylabel="y", xlabel="x")
    draw_heatmaps(figure, [panel, panel], show_values=True, first_index=1)
    assert len(figure.axes) == 3  # two panels and one colour bar
    texts = figure.axes[1].texts
    assert [text.get_text() for text in texts] == ["0.10", "-0.99"]
    assert [text.get_position() for text in texts] == [(0.5, 0.5), (1.5, 0.5)]
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["1", "2"]
    render(figure)
    fitted = [text.get_window_extent() for text in texts]
    assert fitted[0].x1 < fitted[1].x0


@pytest.mark.parametrize(
    ("matrix", "culprit"),
    [
        (np.array([[1.0, 2.0], [0.0, 1.0]]), r"entry \(0, 1\) .* is 2.0"),
        (np.array([[1.0, 0.0], [np.nan, 1.0]]), r"entry \(1, 0\) .* is nan"),
        (np.zeros((0, 0)), "empty"),
    ],
)
def test_what_is_no_correlation_matrix_is_refused(matrix: np.ndarray, culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit):
        correlation_heatmap(matrix)


def test_a_dtick_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="dtick is 0"):
        correlation_heatmap(np.eye(3), dtick=0)


@pytest.mark.parametrize(
    ("count", "at_most", "expected"),
    [(5, 6, [0, 1, 2, 3, 4]), (7, 6, [0, 2, 4, 6]), (50, 10, list(range(0, 50, 5))), (1, 6, [0])],
)
def test_tick_positions_are_round_and_few(count: int, at_most: int, expected: list[int]) -> None:
    assert tick_positions(count, at_most=at_most).tolist() == expected
