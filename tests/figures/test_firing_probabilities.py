from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sparse_but_wrong.figures.firing_probabilities import firing_probabilities


def test_a_bar_for_each_feature(render: Callable[[Figure], bytes]) -> None:
    probabilities = 0.345 * (49 - torch.arange(50)) / 50 + 0.05
    figure = firing_probabilities(probabilities)
    axes = figure.axes[0]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    np.testing.assert_allclose([bar.get_height() for bar in bars], probabilities)
    np.testing.assert_allclose([bar.get_center()[0] for bar in bars], range(50))
    assert axes.get_xticks().tolist() == list(range(0, 50, 5))
    assert axes.get_ylabel() == "$P_i$"
    assert axes.get_title() == "Feature firing probabilities $P_i$"
    assert render(figure).startswith(b"\x89PNG")


def test_zero_and_one_are_probabilities() -> None:
    assert len(firing_probabilities(np.array([0.0, 1.0])).axes[0].patches) == 2


@pytest.mark.parametrize("bad", [-0.1, 1.5, float("nan")])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"probabilities\[1\] is {bad}"):
        firing_probabilities(np.array([0.5, bad]))


def test_no_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match="no probabilities"):
        firing_probabilities(np.array([]))
