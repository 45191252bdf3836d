"""Curves of sweeps: the numbers that are drawn, and what cannot be."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection

from sparse_but_wrong.figures.sweep import (
    l0_vs_coefficient,
    over_seeds,
    overview_over_seeds,
    plot_projections,
    projection_over_seeds,
    projection_vs_l0,
    tradeoff,
)
from tests.figures.conftest import legend_texts, lines, rendered


def test_saes_are_joined_in_order_of_l0_and_added_ones_are_hollow(
    sweep: pd.DataFrame, projections: pd.DataFrame
) -> None:
    figure = projection_vs_l0(sweep, projections, 12, 10.95)
    axes = figure.axes[0]
    drawn = lines(axes)
    x, y = drawn["_line"]
    assert x == [5.0, 8.0, 10.9, 12.5, 14.9, 22.0]
    assert y == pytest.approx([0.2, 0.2, 1e-3, 0.2, 0.2, 0.2])  # 1 − 12/15
    assert (drawn["_added"][0], drawn["_grid"][0]) == ([5.0, 8.0], [10.9, 12.5, 14.9, 22.0])
    assert axes.get_lines()[2].get_markerfacecolor() == "white"
    assert drawn["True L0 = 10.95"][0] == [10.95, 10.95]
    assert legend_texts(axes) == ["Published grid", "Added", "True L0 = 10.95"]
    assert axes.get_title() == "N=12 Decoder Projection vs SAE L0"
    assert tuple(figure.get_size_inches()) == (3, 1.5)
    assert rendered(figure)
    legend = axes.get_legend()
    assert legend is not None
    box = legend.get_window_extent()
    assert not any(box.contains(*at) for at in axes.transData.transform(np.array([x, y]).T))


def test_an_unknown_truth_and_a_sweep_without_additions_need_no_legend(
    sweep: pd.DataFrame, projections: pd.DataFrame
) -> None:
    figure = projection_vs_l0(sweep.drop(columns="added").iloc[:1], projections, 12)
    assert legend_texts(figure.axes[0]) == []
    assert rendered(figure)


def test_saes_that_diverged_are_left_out_and_counted(
    sweep: pd.DataFrame, projections: pd.DataFrame
) -> None:
    projections.loc[0, 12] = np.nan
    sweep.loc[1, "l0"] = np.inf
    axes = projection_vs_l0(sweep, projections, 12, 10.95).axes[0]
    assert len(lines(axes)["_line"][0]) == 4
    assert "2 not finite" in axes.get_xlabel()


def test_what_cannot_be_drawn_is_refused(sweep: pd.DataFrame, projections: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="99"):
        projection_vs_l0(sweep, projections, 99, 10.95)
    with pytest.raises(ValueError, match="none of the table's 0 rows"):
        projection_vs_l0(sweep.iloc[:0], projections, 12, 10.95)


def test_plot_projections_takes_a_table_with_its_s_n_and_evaluations(
    sweep: pd.DataFrame, projections: pd.DataFrame
) -> None:
    expected = lines(projection_vs_l0(sweep, projections, 12).axes[0])

    class Evaluations:
        def __init__(self) -> None:
            self.projections = projections

        def to_frame(self) -> pd.DataFrame:
            return sweep

    for saes in (sweep.join(projections.add_prefix("s_")), Evaluations()):
        assert lines(plot_projections(saes, n=12).axes[0]) == expected


def test_every_sae_is_a_point_and_none_are_joined(sweep: pd.DataFrame) -> None:
    figure = l0_vs_coefficient(sweep, 10.95)
    drawn = lines(figure.axes[0])
    assert "_line" not in drawn
    assert drawn["_grid"] == ([10.9, 12.5, 14.9, 22.0], [1.0, 0.7, 0.3, 0.05])
    assert drawn["_added"][1] == [3.0, 2.0]
    assert "True L0 = 10.95" in drawn
    assert rendered(figure)
    with pytest.raises(ValueError, match="none of the table's 6 rows"):
        l0_vs_coefficient(sweep.assign(l0_coefficient=None))


@pytest.mark.parametrize(
    ("at", "coefficient", "scale"), [(1, 5.0, "linear"), (1, 5.1, "log"), (0, 0.0, "linear")]
)
def test_coefficients_over_more_than_two_decades_get_a_log_axis(
    sweep: pd.DataFrame, at: int, coefficient: float, scale: str
) -> None:
    sweep.loc[at, "l0_coefficient"] = coefficient  # the smallest is 0.05
    assert l0_vs_coefficient(sweep).axes[0].get_yscale() == scale


@pytest.fixture
def seeds() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two seeds of k = 2 and 4, one finite seed of k = 3; rows out of order."""
    table = pd.DataFrame(
        {
            "k": [4, 2, 3, 2, 3, 4],
            "c_dec": [0.5, 0.1, 0.2, 0.3, np.nan, 0.5],
            "c_enc": [0.5, 0.1, 0.2, 0.3, 0.2, 0.5],
            "mcc": [0.5, 0.9, 0.8, 0.7, 0.8, 0.5],
        }
    )
    s_1 = [0.5, 0.001, -0.2, 0.3, 0.2, 0.5]
    return table, pd.DataFrame({1: s_1, 2: [0.8 * s for s in s_1]})


def test_mean_and_standard_deviation_over_seeds(seeds: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    table, projections = seeds
    figure = over_seeds(table, "c_dec", 3.1, ylabel="c", title="t")
    (axes,) = figure.axes
    x, y = lines(axes)["Mean over seeds"]
    assert x == [2, 3, 4]
    assert y == pytest.approx([0.2, 0.2, 0.5])
    (band,) = (c for c in axes.collections if isinstance(c, PolyCollection))
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert heights.max() == pytest.approx(0.5)
    assert heights.min() == pytest.approx(0.2 - 0.02**0.5)
    assert "1 not finite" in axes.get_xlabel()
    assert legend_texts(axes) == ["Mean over seeds", "True L0 = 3.1"]
    single = projection_over_seeds(table, projections, 1).axes[0]
    assert lines(single)["Mean over seeds"][1] == pytest.approx([0.1505, 0.0, 0.5])
    figure = overview_over_seeds(table, projections, 3.1, ns=(1, 2))
    assert len(figure.axes) == 4
    assert lines(figure.axes[0])["$n = 1$"][1] == pytest.approx([0.1505, 0.0, 0.5])
    assert rendered(figure)
    with pytest.raises(ValueError, match="lacks the columns k"):
        overview_over_seeds(table.drop(columns="k"), projections, 3.1, ns=(1,))
    with pytest.raises(ValueError, match="none of the table's 6 rows has a finite c_dec"):
        over_seeds(table.assign(c_dec=np.nan), "c_dec", ylabel="c", title="t")
    with pytest.raises(ValueError, match="ns is empty"):
        overview_over_seeds(table, projections, 3.1, ns=())


def test_the_tradeoff() -> None:
    recovery = pd.DataFrame({"k": [3, 1, 2], "mcc": [0.9, 0.5, 0.7]})
    curves = {
        "trained": pd.DataFrame({"k": [2, 1, 3], "mse": [1.0, 2.0, np.nan]}),
        "true": pd.DataFrame({"k": [1, 2, 3], "mse": [3.0, 2.5, 0.0]}),
    }
    left, right = tradeoff(curves, recovery, 2.2).axes
    drawn = lines(left)
    assert drawn["trained"] == ([1, 2], [2.0, 1.0])
    assert drawn["true"] == ([1, 2, 3], [3.0, 2.5, 0.0])
    assert "True L0 = 2.2" in drawn
    assert np.asarray(right.get_lines()[0].get_ydata()).tolist() == [0.5, 0.7, 0.9]
    none = pd.DataFrame({"k": [1], "mse": [np.nan]})
    for bad, culprit in (
        ({}, "0 curves"),
        ({str(i): none for i in range(5)}, "5 curves"),
        ({"a": none}, "none of the curves"),
        ({"a": none.drop(columns="mse")}, "lacks the columns mse"),
    ):
        with pytest.raises(ValueError, match=culprit):
            tradeoff(bad, recovery, 2.2)
