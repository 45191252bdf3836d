"""The figure of a recommendation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from sparse_but_wrong.figures.recommendation import plot_recommendation
from sparse_but_wrong.l0.recommend import recommend_l0
from tests.figures.conftest import lines, rendered
from tests.l0.evidence import count, presence, sweep, table


def test_the_figure_shows_the_numbers() -> None:
    found = recommend_l0(sweep())
    projections, similarity, _, codes = plot_recommendation(found).axes
    labels = projections.get_legend_handles_labels()[1]
    assert labels == ["$n = 12$", "$n = 17$", "$n = 22$", "L0: 10", "elbow"]
    measured = found.sweep.wide()
    for axes, column in ((projections, "s_12"), (similarity, "c_dec")):
        drawn = np.asarray(axes.get_lines()[0].get_xydata())
        np.testing.assert_allclose(drawn, measured[["l0", column]].to_numpy(float))
    # SAEs of 9.9 and 10 stand for one L0, of which the best counts.
    (line,) = [line for line in similarity.get_lines() if line.get_linestyle() == ":"]
    assert np.asarray(line.get_xdata()).tolist() == [found.curves[0].bottom.elbow] * 2 == [9.9] * 2
    (band,) = similarity.patches
    assert isinstance(band, Rectangle)
    assert found.interval is not None
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx(found.interval)
    assert np.asarray(codes.get_lines()[0].get_xdata())[0] == 0.3


def test_saes_that_started_from_the_directions_are_hollow() -> None:
    measured = sweep()
    groups = ["directions", *measured.table["group"][1:]]
    found = recommend_l0(replace(measured, table=measured.table.assign(group=groups)))
    drawn = lines(plot_recommendation(found).axes[1])
    assert (len(drawn["_added"][0]), len(drawn["_grid"][0])) == (1, len(groups) - 1)


def test_what_is_not_recommended() -> None:
    figure = plot_recommendation(recommend_l0(sweep([count(presence(n_directions=60))])))
    assert not figure.axes[0].patches
    assert "counted, not recommended: 10" in figure.axes[0].get_legend_handles_labels()[1]
    dense = recommend_l0(sweep([count(presence(30.0))], table([20, 30, 40], truth=30)))
    assert rendered(figure)
    assert rendered(plot_recommendation(dense))
