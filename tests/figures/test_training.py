from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from sparse_but_wrong.figures.training import training_curves, transitions
from tests.figures.conftest import CURVES, labels, lines, rendered


def test_each_sae_has_its_two_curves_and_the_colour_of_its_last_l0() -> None:
    l0_axes, mse_axes, bar = training_curves(CURVES, 10.95).axes
    drawn = lines(l0_axes)
    assert drawn["_a"] == ([0, 100, 200], [25, 15, 10])
    assert drawn["_b"][1] == [30, 22, 20]
    assert drawn["True L0 = 10.95"][1] == [10.95, 10.95]
    assert lines(mse_axes)["_a"][1] == [3, 1, 0.25]
    assert mse_axes.get_yscale() == "log"
    assert bar.get_ylim() == (10, 20)
    viridis = matplotlib.colormaps["viridis"]
    colors = {line.get_label(): to_rgba(line.get_color()) for line in l0_axes.get_lines()}
    np.testing.assert_allclose(colors["_a"], viridis(0.0), atol=0.01)
    np.testing.assert_allclose(colors["_b"], viridis(0.9), atol=0.01)


def test_saes_that_diverge_or_end_at_one_l0_can_be_drawn() -> None:
    alone = training_curves(CURVES.loc[CURVES["sae_id"] == "a"])
    assert alone.axes[2].get_ylim() == (9.5, 10.5)
    curves = CURVES.copy()
    curves.loc[(curves["sae_id"] == "b") & (curves["step"] == 200), ["l0", "mse_loss"]] = np.nan
    figure = training_curves(curves)
    assert figure.axes[2].get_ylim() == (10, 22)
    assert rendered(figure)


def test_transitions() -> None:
    curves = pd.DataFrame(
        {"sae_id": ["a", "a", "b", "b"], "step": [10, 0, 0, 10], "k": [11.0, 20.0, 2.0, 11.0]}
    )
    schedules, mcc = ["down", "down", "up"], [0.995, np.nan, 0.9]
    table = pd.DataFrame({"sae_id": ["a", "a2", "b"], "schedule": schedules, "mcc": mcc})
    figure = transitions(curves, table, {"down": "20 to 11", "up": "2 to 11"}, 10.9, 0.99)
    left, right = figure.axes
    assert lines(left)["20 to 11"][1] == [20.0, 11.0]
    assert lines(left)["2 to 11"][1] == [2.0, 11.0]
    assert lines(right)["_down"][1] == pytest.approx([0.995, np.nan], nan_ok=True)
    assert lines(right)["_up"][1] == [0.9]
    assert labels(figure, 1) == ["20 to 11", "2 to 11"]
    assert right.get_ylim()[0] < 0.9 < 1 < right.get_ylim()[1]
    assert rendered(figure)
