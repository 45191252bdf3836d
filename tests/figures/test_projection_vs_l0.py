from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_but_wrong.figures.projection_vs_l0 import projection_vs_l0


def points(axes: Axes, label: str) -> list[tuple[float, float]]:
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]
    return list(zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True))


def legend_texts(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_saes_are_joined_in_order_of_l0_and_added_ones_are_hollow(
    sweep: pd.DataFrame, render: Callable[[Figure], bytes]
) -> None:
    figure = projection_vs_l0(sweep, 12, 10.95)
    axes = figure.axes[0]
    slope = pytest.approx(0.2)  # 1 − 12/15
    assert points(axes, "_line") == [
        (5.0, slope),
        (8.0, slope),
        (10.9, 1e-3),
        (12.5, slope),
        (14.9, slope),
        (22.0, slope),
    ]
    assert [l0 for l0, _ in points(axes, "_added")] == [5.0, 8.0]
    assert [l0 for l0, _ in points(axes, "_grid")] == [10.9, 12.5, 14.9, 22.0]
    (added,) = [line for line in axes.get_lines() if line.get_label() == "_added"]
    assert added.get_markerfacecolor() == "white"
    assert points(axes, "True L0 = 10.95")[0][0] == 10.95
    assert legend_texts(axes) == ["Published grid", "Added", "True L0 = 10.95"]
    assert axes.get_title() == "N=12 Decoder Projection vs SAE L0"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("SAE L0", "$s_n$")
    assert tuple(figure.get_size_inches()) == (3, 1.5)
    assert render(figure).startswith(b"\x89PNG")


def test_the_legend_hides_no_sae(sweep: pd.DataFrame, render: Callable[[Figure], bytes]) -> None:
    figure = projection_vs_l0(sweep, 12, 10.95)
    axes = figure.axes[0]
    render(figure)
    legend = axes.get_legend()
    assert legend is not None
    box = legend.get_window_extent()
    on_screen = axes.transData.transform(points(axes, "_line"))
    assert not any(box.contains(x, y) for x, y in on_screen)


def test_an_unknown_truth_and_a_sweep_without_additions_need_no_legend(
    sweep: pd.DataFrame,
) -> None:
    axes = projection_vs_l0(sweep.loc[~sweep["added"]], 12).axes[0]
    assert legend_texts(axes) == []


def test_saes_that_diverged_are_left_out_and_counted(sweep: pd.DataFrame) -> None:
    sweep.loc[0, "s_12"] = np.nan
    sweep.loc[1, "l0"] = np.inf
    axes = projection_vs_l0(sweep, 12, 10.95).axes[0]
    assert len(points(axes, "_line")) == 4
    assert axes.get_xlabel() == "SAE L0 (2 not finite, left out)"


def test_a_single_sae_is_drawn(sweep: pd.DataFrame, render: Callable[[Figure], bytes]) -> None:
    assert render(projection_vs_l0(sweep.iloc[:1], 12, 10.95))


def test_a_projection_the_table_lacks_is_named(sweep: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="lacks the columns s_99"):
        projection_vs_l0(sweep, 99, 10.95)


def test_a_table_without_rows_is_refused(sweep: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="none of the table's 0 rows"):
        projection_vs_l0(sweep.iloc[:0], 12, 10.95)
