"""Curves of sweeps: the numbers that are drawn, and that nothing hides them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection

from sparse_but_wrong.figures import sweep
from tests.figures.conftest import (
    PROJECTIONS,
    SEED_PROJECTIONS,
    SEEDS,
    SWEEP,
    legend_texts,
    lines,
    rendered,
)
from tests.metrics.evaluated import evaluated


def test_saes_are_joined_in_order_of_l0_and_added_ones_are_hollow() -> None:
    figure = sweep.projection_vs_l0(SWEEP, PROJECTIONS, 12, 10.95)
    axes = figure.axes[0]
    drawn = lines(axes)
    x, y = drawn["_line"]
    assert x == [5.0, 8.0, 10.9, 12.5, 14.9, 22.0]
    assert y == pytest.approx([0.2, 0.2, 1e-3, 0.2, 0.2, 0.2])  # 1 − 12/15
    assert (drawn["_added"][0], drawn["_grid"][0]) == ([5.0, 8.0], [10.9, 12.5, 14.9, 22.0])
    faces = {line.get_label(): line.get_markerfacecolor() for line in axes.get_lines()}
    assert faces["_added"] == faces["Added"] == "white"
    assert drawn["True L0 = 10.95"][0] == [10.95, 10.95]
    assert legend_texts(axes) == ["Published grid", "Added", "True L0 = 10.95"]
    assert axes.get_title() == "N=12 Decoder Projection vs SAE L0"
    assert tuple(figure.get_size_inches()) == (3, 1.5)
    rendered(figure)
    assert not hidden(axes, np.array([x, y]).T)


def hidden(axes: Axes, points: np.ndarray) -> bool:
    """Whether the legend covers any of the points, which have data coordinates."""
    legend = axes.get_legend()
    assert legend is not None
    box = legend.get_window_extent()
    return any(box.contains(*at) for at in axes.transData.transform(points))


def test_saes_that_diverged_are_left_out_and_one_without_truth_needs_no_legend() -> None:
    projections, table = PROJECTIONS.copy(), SWEEP.copy()
    projections.loc[0, 12] = np.nan
    table.loc[1, "l0"] = np.inf
    axes = sweep.projection_vs_l0(table, projections, 12, 10.95).axes[0]
    assert len(lines(axes)["_line"][0]) == 4
    assert "2 not finite" in axes.get_xlabel()
    figure = sweep.projection_vs_l0(SWEEP.drop(columns="added").iloc[:1], PROJECTIONS, 12)
    assert legend_texts(figure.axes[0]) == []
    assert rendered(figure)


def test_plot_projections_takes_a_table_with_its_s_n_and_evaluations() -> None:
    expected = lines(sweep.projection_vs_l0(SWEEP, PROJECTIONS, 12).axes[0])
    joined = SWEEP.join(PROJECTIONS.add_prefix("s_"))
    assert lines(sweep.plot_projections(joined, n=12).axes[0]) == expected
    found = evaluated()
    x, y = lines(sweep.plot_projections(found, n=2).axes[0])["_line"]
    assert sorted(zip(x, y, strict=True)) == sorted((e.l0, e.projections[2]) for e in found)


def test_every_sae_is_a_point_and_none_are_joined() -> None:
    drawn = lines(sweep.l0_vs_coefficient(SWEEP, 10.95).axes[0])
    assert "_line" not in drawn
    assert drawn["_grid"] == ([10.9, 12.5, 14.9, 22.0], [1.0, 0.7, 0.3, 0.05])
    assert drawn["_added"][1] == [3.0, 2.0]
    assert "True L0 = 10.95" in drawn


@pytest.mark.parametrize(
    ("at", "coefficient", "scale"), [(1, 5.0, "linear"), (1, 5.1, "log"), (0, 0.0, "linear")]
)
def test_coefficients_over_more_than_two_decades_get_a_log_axis(
    at: int, coefficient: float, scale: str
) -> None:
    table = SWEEP.copy()
    table.loc[at, "l0_coefficient"] = coefficient  # the smallest is 0.05
    assert sweep.l0_vs_coefficient(table).axes[0].get_yscale() == scale


def test_mean_and_standard_deviation_over_seeds() -> None:
    (axes,) = sweep.over_seeds(SEEDS, "c_dec", 3.1, ylabel="c", title="t").axes
    x, y = lines(axes)["Mean over seeds"]
    assert x == [2, 3, 4]
    assert y == pytest.approx([0.2, 0.2, 0.5])
    (band,) = (c for c in axes.collections if isinstance(c, PolyCollection))
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert heights.max() == pytest.approx(0.5)
    assert heights.min() == pytest.approx(0.2 - 0.02**0.5)
    assert "1 not finite" in axes.get_xlabel()
    assert legend_texts(axes) == ["Mean over seeds", "True L0 = 3.1"]
    single = sweep.projection_over_seeds(SEEDS, SEED_PROJECTIONS, 1).axes[0]
    assert lines(single)["Mean over seeds"][1] == pytest.approx([0.1, 0.1, 0.4])
    figure = sweep.overview_over_seeds(SEEDS, SEED_PROJECTIONS, 3.1, ns=(1, 2))
    assert len(figure.axes) == 4
    assert lines(figure.axes[0])["$n = 2$"][1] == pytest.approx([0.3, 0.3, 0.9])


def test_the_tradeoff() -> None:
    recovery = pd.DataFrame({"k": [3, 1, 2], "mcc": [0.9, 0.5, 0.7]})
    curves = {
        "trained": pd.DataFrame({"k": [2, 1, 3], "mse": [1.0, 2.0, np.nan]}),
        "true": pd.DataFrame({"k": [1, 2, 3], "mse": [3.0, 2.5, 0.0]}),
    }
    left, right = sweep.tradeoff(curves, recovery, 2.2).axes
    drawn = lines(left)
    assert drawn["trained"] == ([1, 2], [2.0, 1.0])
    assert drawn["true"] == ([1, 2, 3], [3.0, 2.5, 0.0])
    assert "True L0 = 2.2" in drawn
    assert np.asarray(right.get_lines()[0].get_ydata()).tolist() == [0.5, 0.7, 0.9]


def test_what_the_panels_of_the_overview_show() -> None:
    figure = sweep.overview(SWEEP, PROJECTIONS, 10.95, ns=(12, 14))
    left, middle, similarity, recovery = figure.axes
    of_14 = lines(left)["_line"][1]
    np.testing.assert_allclose(of_14, [1 / 15, 1 / 15, 1e-3, 1 / 15, 1 / 15, 1 / 15])
    assert left.get_yscale() == "symlog"
    assert legend_texts(left) == ["$n = 12$", "$n = 14$", "True L0 = 10.95"]
    assert [text.get_text() for text in left.texts] == [sweep.TOO_LOW, sweep.TOO_HIGH]
    best = "L0 10.90: best near the truth"
    shown = ["L0 5.00: too low", best, "L0 22.00: too high"]
    assert legend_texts(middle) == [*shown, "True L0 = 10.95"]
    # n = 1 … 14, below half of the 30 latents
    np.testing.assert_allclose(lines(middle)[best][1], [1.001] * 10 + [0.001] * 4)
    assert lines(similarity)["_line"][1] == [0.25, 0.12, 0.02, 0.04, 0.10, 0.20]
    assert lines(recovery)["_line"][1] == [0.60, 0.80, 0.99, 0.95, 0.85, 0.50]
    assert legend_texts(similarity) == ["Published grid", "Added"]
    words = {"too_low": "a", "too_high": "b", "cliff": ""}
    said = sweep.overview(SWEEP, PROJECTIONS, 10.95, ns=(12,), **words)
    assert [text.get_text() for axes in said.axes for text in axes.texts] == ["a", "b", ""]


@pytest.mark.parametrize(
    ("above", "first", "says"),
    [(10, "L0 10.90: best near the truth", ["a cliff"]), (20, "L0 22.00: too high", [])],
)
def test_a_sweep_on_one_side_of_the_truth(above: float, first: str, says: list[str]) -> None:
    table = SWEEP.loc[SWEEP["l0"] > above]
    figure = sweep.overview(table, PROJECTIONS, 10.95, ns=(12,), cliff="a cliff")
    assert legend_texts(figure.axes[1])[0] == first
    assert [text.get_text() for text in figure.axes[1].texts] == says
    assert rendered(figure)


def test_the_published_sweep_is_legible_and_remarks_and_legend_hide_no_sae(data_dir: Path) -> None:
    """The reference sweep, with stand-ins for the two columns that it does not record."""
    saes = json.loads((data_dir / "jumprelu_sweep.json").read_text())["6.54.12"]
    l0 = pd.Series([sae["l0"] for sae in saes])
    distance = (l0 - 10.95).abs()
    table = pd.DataFrame({"l0": l0, "c_dec": distance / 50, "mcc": 1 - distance / 20})
    figure = sweep.overview(table, pd.DataFrame([sae["s_n"] for sae in saes]), 10.95)
    rendered(figure)
    axes = figure.axes[0]

    def height(s_n: float) -> float:
        return float(axes.transAxes.inverted().transform(axes.transData.transform((11, s_n)))[1])

    # The cliff below the truth and the differences of 1e-3 above it are both some pixels high.
    assert height(0.3) - height(0.003) > 0.2
    assert height(0.001) - height(0.0003) > 0.02
    grid = [line.get_xydata() for line in axes.get_lines() if line.get_label() == "_grid"]
    points = np.concatenate([np.asarray(line) for line in grid])
    assert not hidden(axes, points)
    inside, marks = axes.get_window_extent(), axes.transData.transform(points)
    boxes = [text.get_window_extent() for text in axes.texts]
    for box in boxes:
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert not any(box.contains(x, y) for x, y in marks)
    truth = axes.transData.transform((10.95, 0))[0]
    assert boxes[0].x1 <= truth <= boxes[1].x0
