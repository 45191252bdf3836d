"""k over training, and where each SAE ended."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from sparse_but_wrong.figures.transitions import transitions

Render = Callable[[Figure], bytes]

CURVES = pd.DataFrame(
    {"sae_id": ["a", "a", "b", "b"], "step": [10, 0, 0, 10], "k": [11.0, 20.0, 2.0, 11.0]}
)
TABLE = pd.DataFrame(
    {
        "sae_id": ["a", "a2", "b"],
        "schedule": ["down", "down", "up"],
        "mcc": [0.995, np.nan, 0.9],
    }
)


def test_what_is_drawn(render: Render) -> None:
    figure = transitions(CURVES, TABLE, {"down": "20 to 11", "up": "2 to 11"}, 10.9, 0.99)
    left, right = figure.axes
    assert np.asarray(left.get_lines()[0].get_ydata()).tolist() == [20.0, 11.0]
    assert np.asarray(left.get_lines()[1].get_ydata()).tolist() == [2.0, 11.0]
    dots = {line.get_label(): np.asarray(line.get_ydata()) for line in right.get_lines()}
    assert dots["_down"].tolist() == pytest.approx([0.995, np.nan], nan_ok=True)
    assert dots["_up"].tolist() == [0.9]
    assert [text.get_text() for text in right.get_xticklabels()] == ["20 to 11", "2 to 11"]
    assert right.get_ylim()[0] < 0.9 < 1 < right.get_ylim()[1]
    assert len(render(figure)) > 2000


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="there are 0 schedules"):
        transitions(CURVES, TABLE, {}, 10.9, 0.99)
    with pytest.raises(ValueError, match="lacks the columns schedule"):
        transitions(CURVES, TABLE.drop(columns="schedule"), {"up": "up"}, 10.9, 0.99)
