"""Reconstruction against k."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from sparse_but_wrong.figures.tradeoff import tradeoff

Render = Callable[[Figure], bytes]

RECOVERY = pd.DataFrame({"k": [3, 1, 2], "mcc": [0.9, 0.5, 0.7]})


def test_what_is_drawn(render: Render) -> None:
    curves = {
        "trained": pd.DataFrame({"k": [2, 1, 3], "mse": [1.0, 2.0, np.nan]}),
        "true": pd.DataFrame({"k": [1, 2, 3], "mse": [3.0, 2.5, 0.0]}),
    }
    figure = tradeoff(curves, RECOVERY, 2.2)
    left, right = figure.axes
    drawn = [[np.asarray(data).tolist() for data in line.get_data()] for line in left.get_lines()]
    assert drawn[:2] == [[[1, 2], [2.0, 1.0]], [[1, 2, 3], [3.0, 2.5, 0.0]]]
    assert left.get_legend_handles_labels()[1] == ["trained", "true", "True L0 = 2.2"]
    assert np.asarray(right.get_lines()[0].get_ydata()).tolist() == [0.5, 0.7, 0.9]
    assert len(render(figure)) > 2000


def test_what_cannot_be_drawn_is_refused() -> None:
    curve = pd.DataFrame({"k": [1], "mse": [np.nan]})
    with pytest.raises(ValueError, match="there are 0 curves"):
        tradeoff({}, RECOVERY, 2.2)
    with pytest.raises(ValueError, match="there are 5 curves"):
        tradeoff({str(i): curve for i in range(5)}, RECOVERY, 2.2)
    with pytest.raises(ValueError, match="none of the curves has a finite error"):
        tradeoff({"a": curve}, RECOVERY, 2.2)
    with pytest.raises(ValueError, match="lacks the columns mse"):
        tradeoff({"a": curve.drop(columns="mse")}, RECOVERY, 2.2)
