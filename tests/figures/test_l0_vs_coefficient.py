from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from sparse_but_wrong.figures.l0_vs_coefficient import l0_vs_coefficient


def test_every_sae_is_a_point_and_none_are_joined(
    sweep: pd.DataFrame, render: Callable[[Figure], bytes]
) -> None:
    figure = l0_vs_coefficient(sweep, 10.95)
    axes = figure.axes[0]
    drawn = {line.get_label(): line for line in axes.get_lines()}
    assert "_line" not in drawn
    np.testing.assert_array_equal(drawn["_grid"].get_xdata(), [10.9, 12.5, 14.9, 22.0])
    np.testing.assert_array_equal(drawn["_grid"].get_ydata(), [1.0, 0.7, 0.3, 0.05])
    np.testing.assert_array_equal(drawn["_added"].get_ydata(), [3.0, 2.0])
    assert "True L0 = 10.95" in drawn
    assert axes.get_yscale() == "linear"
    assert axes.get_title() == "SAE L0 vs L0 Coefficient for JumpReLU SAEs"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("SAE L0", "L0 Coefficient")
    assert tuple(figure.get_size_inches()) == (3, 2)
    assert render(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(("largest", "scale"), [(5.0, "linear"), (5.1, "log")])
def test_coefficients_over_more_than_two_decades_get_a_log_axis(
    sweep: pd.DataFrame, largest: float, scale: str
) -> None:
    sweep.loc[1, "l0_coefficient"] = largest  # the smallest is 0.05
    assert l0_vs_coefficient(sweep).axes[0].get_yscale() == scale


def test_a_coefficient_of_zero_keeps_the_linear_axis(sweep: pd.DataFrame) -> None:
    sweep.loc[0, "l0_coefficient"] = 0.0
    assert l0_vs_coefficient(sweep).axes[0].get_yscale() == "linear"


def test_saes_without_coefficients_are_refused(sweep: pd.DataFrame) -> None:
    sweep["l0_coefficient"] = None
    with pytest.raises(ValueError, match=r"none of the table's 6 rows .* l0_coefficient"):
        l0_vs_coefficient(sweep)
