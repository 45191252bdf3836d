from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sparse_but_wrong.figures.heatmaps import (
    correlation_heatmap,
    cosines_vs_correlation,
    decoder_cosines,
    draw_heatmaps,
    feature_components_heatmaps,
    firing_probabilities,
    tick_positions,
)
from tests.figures.conftest import cells, labels, lines, rendered


def test_correlations_are_drawn_on_a_scale_from_minus_one_to_one() -> None:
    matrix = torch.tensor([[1.0, -0.5, 0.0], [-0.5, 1.0, 0.25], [0.0, 0.25, 1.0]])
    figure = correlation_heatmap(matrix)
    axes = figure.axes[0]
    np.testing.assert_array_equal(cells(figure), matrix.numpy())
    assert axes.collections[0].get_clim() == (-1, 1)
    assert axes.get_title() == "Feature correlation matrix"
    bottom, top = axes.get_ylim()
    assert bottom > top  # row 0 on top
    assert tuple(figure.get_size_inches()) == (2.5, 2)


@pytest.mark.parametrize(
    ("dtick", "expected"), [(None, ["0", "10", "20", "30", "40"]), (25, ["0", "25"])]
)
def test_labels_stand_in_the_middle_of_their_cells(dtick: int | None, expected: list[str]) -> None:
    figure = correlation_heatmap(np.eye(50), dtick=dtick)
    assert labels(figure) == expected
    at = [int(label) + 0.5 for label in expected]
    np.testing.assert_array_equal(figure.axes[0].get_yticks(), at)


def test_values_are_written_into_their_cells() -> None:
    figure = Figure()
    panel = ("t", np.array([[0.1, -0.987]]))
    how = {"first_index": 1, "show_values": True, "row_0_on_top": False, "title": "both"}
    draw_heatmaps(figure, [panel, panel], "x", "y", **how)
    assert len(figure.axes) == 3  # two panels and one colour bar
    texts = figure.axes[1].texts
    assert [text.get_text() for text in texts] == ["0.10", "-0.99"]
    assert [text.get_position() for text in texts] == [(0.5, 0.5), (1.5, 0.5)]
    assert labels(figure, 1) == ["1", "2"]
    assert figure.axes[0].get_ylim() == (0, 1)
    assert figure.get_suptitle() == "both"
    rendered(figure)
    assert texts[0].get_window_extent().x1 < texts[1].get_window_extent().x0


def test_a_panel_for_each_sae() -> None:
    figure = decoder_cosines([("one", np.eye(4)), ("two", -np.eye(5))])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["one", "two", ""]  # the last is the colour bar
    assert [axes.get_ylabel() for axes in figure.axes[:2]] == ["Latent (matched)", ""]
    np.testing.assert_array_equal(cells(figure, 1), -np.eye(5))
    matrix = np.array([[1.0, -0.251], [-0.001, 0.97]])
    small = feature_components_heatmaps([("a", matrix), ("b", -matrix)])
    texts = [text.get_text() for text in small.axes[0].texts]
    assert texts == ["1.00", "-0.25", "0.00", "0.97"]
    # Many features leave no room for values.
    assert not feature_components_heatmaps([("wide", np.eye(20))]).axes[0].texts


def test_every_pair_and_the_means_of_tenths() -> None:
    x = np.linspace(-1, 1, 40)[::-1].copy()
    figure = cosines_vs_correlation([("one", x, 2 * x), ("two", x[:3], x[:3])])
    first = figure.axes[0]
    (dots,) = (c for c in first.collections if isinstance(c, PathCollection))
    assert np.asarray(dots.get_offsets()).tolist() == np.column_stack([x, 2 * x]).tolist()
    xs, ys = lines(first)["Mean of a tenth"]
    assert xs == pytest.approx(np.linspace(-1, 1, 40).reshape(10, 4).mean(1).tolist())
    assert ys == pytest.approx([2 * x for x in xs])


def test_a_bar_for_each_feature() -> None:
    probabilities = 0.345 * (49 - torch.arange(50)) / 50 + 0.05
    axes = firing_probabilities(probabilities).axes[0]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    np.testing.assert_allclose([bar.get_height() for bar in bars], probabilities)
    np.testing.assert_allclose([bar.get_center()[0] for bar in bars], range(50))
    assert axes.get_xticks().tolist() == list(range(0, 50, 5))
    assert len(firing_probabilities(np.array([0.0, 1.0])).axes[0].patches) == 2


@pytest.mark.parametrize(
    ("count", "at_most", "expected"),
    [(5, 6, [0, 1, 2, 3, 4]), (7, 6, [0, 2, 4, 6]), (50, 10, list(range(0, 50, 5))), (1, 6, [0])],
)
def test_tick_positions_are_round_and_few(count: int, at_most: int, expected: list[int]) -> None:
    assert tick_positions(count, at_most=at_most).tolist() == expected
