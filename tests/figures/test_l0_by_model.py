from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from sparse_but_wrong.figures.l0_by_model import l0_by_model


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": ["large", "small", "large", "small", "small"],
            "l0": [300.0, 10.0, 500.0, 20.0, 40.0],
            "elbow": [200.0, np.nan, np.nan, np.nan, np.nan],
        }
    )


def test_a_dot_per_sae_and_models_in_the_order_of_their_medians(
    table: pd.DataFrame, render: Callable[[Figure], bytes]
) -> None:
    figure = l0_by_model(table, 200)
    axes = figure.axes[0]
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert set(lines) == {"SAE", "SAE where an elbow is reported", "Median", "L0 = 200"}
    assert np.asarray(lines["SAE"].get_xdata()).tolist() == [10, 500, 20, 40]
    assert np.asarray(lines["SAE where an elbow is reported"].get_xdata()).tolist() == [300]
    assert np.asarray(lines["SAE"].get_ydata()).round().tolist() == [0, 1, 0, 0]
    assert np.asarray(lines["Median"].get_xdata()).tolist() == [20, 400]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["small (3)", "large (2)"]
    assert axes.get_xscale() == "log"
    assert render(figure) == render(l0_by_model(table, 200))


def test_what_cannot_be_drawn_is_refused(table: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="lacks the columns elbow"):
        l0_by_model(table.drop(columns="elbow"))
    with pytest.raises(ValueError, match="each with a positive L0"):
        l0_by_model(table.assign(l0=np.nan))
    with pytest.raises(ValueError, match="each with a positive L0"):
        l0_by_model(table.iloc[:0])
