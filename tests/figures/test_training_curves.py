from __future__ import annotations

from collections.abc import Callable

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from sparse_but_wrong.figures.training_curves import training_curves


def test_each_sae_has_its_two_curves_in_order_of_step(
    curves: pd.DataFrame, render: Callable[[Figure], bytes]
) -> None:
    figure = training_curves(curves, 10.95)
    l0_axes, mse_axes, bar = figure.axes
    l0 = {line.get_label(): line for line in l0_axes.get_lines()}
    mse = {line.get_label(): line for line in mse_axes.get_lines()}
    np.testing.assert_array_equal(l0["_a"].get_xdata(), [0, 100, 200])
    np.testing.assert_array_equal(l0["_a"].get_ydata(), [25, 15, 10])
    np.testing.assert_array_equal(l0["_b"].get_ydata(), [30, 22, 20])
    np.testing.assert_array_equal(mse["_a"].get_ydata(), [3, 1, 0.25])
    assert mse_axes.get_yscale() == "log"
    np.testing.assert_array_equal(l0["True L0 = 10.95"].get_ydata(), [10.95, 10.95])
    assert bar.get_ylabel() == "Last L0"
    assert render(figure).startswith(b"\x89PNG")


def test_the_colour_is_that_of_the_last_l0(curves: pd.DataFrame) -> None:
    figure = training_curves(curves)
    l0_axes, _, bar = figure.axes
    assert bar.get_ylim() == (10, 20)
    viridis = matplotlib.colormaps["viridis"]
    colors = {line.get_label(): to_rgba(line.get_color()) for line in l0_axes.get_lines()}
    np.testing.assert_allclose(colors["_a"], viridis(0.0), atol=0.01)
    np.testing.assert_allclose(colors["_b"], viridis(0.9), atol=0.01)


def test_an_sae_that_diverges_keeps_its_finite_part_and_its_colour(
    curves: pd.DataFrame, render: Callable[[Figure], bytes]
) -> None:
    diverged = (curves["sae_id"] == "b") & (curves["step"] == 200)
    curves.loc[diverged, ["l0", "mse_loss"]] = np.nan
    figure = training_curves(curves)
    assert figure.axes[2].get_ylim() == (10, 22)
    assert render(figure)


def test_saes_that_end_at_one_l0_can_be_drawn(
    curves: pd.DataFrame, render: Callable[[Figure], bytes]
) -> None:
    figure = training_curves(curves.loc[curves["sae_id"] == "a"])
    assert figure.axes[2].get_ylim() == (9.5, 10.5)
    assert render(figure)


def test_missing_columns_and_missing_values_are_refused(curves: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="lacks the columns l0, mse_loss"):
        training_curves(curves.loc[:, ["sae_id", "step"]])
    curves["l0"] = np.nan
    with pytest.raises(ValueError, match="none of the 6 rows"):
        training_curves(curves)
