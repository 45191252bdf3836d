from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from sparse_but_wrong.figures.mixing import mixing_vs_correlation, mixing_vs_k
from tests.figures.conftest import lines, rendered


@pytest.fixture
def table() -> pd.DataFrame:
    """Two seeds at two correlations and two k each, and one SAE added."""
    rows = [
        (0.4, 1.8, 0.2, False),
        (0.4, 1.8, 0.4, False),
        (0.4, 2.0, 0.0, False),
        (-0.4, 1.8, -0.3, False),
        (-0.4, 2.0, 0.0, False),
        (-0.4, 1.8, -0.5, True),
    ]
    table = pd.DataFrame(rows, columns=["correlation", "k", "mixing", "added"])
    return table.assign(
        firing_correlation=0.65 * table["correlation"],
        true_l0=2.0,
        component_1=table["mixing"] - 0.1,
        component_2=table["mixing"] + 0.1,
    )


def means(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    found = {}
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        line = container.lines[0]
        xy = zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)
        found[str(container.get_label())] = list(xy)
    return found


def latents(axes: Axes) -> list[float]:
    dots = [line for line in axes.get_lines() if line.get_label() == "_latents"]
    return sorted(float(y) for line in dots for y in np.asarray(line.get_ydata()))


def test_means_over_seeds_and_a_dot_per_latent(table: pd.DataFrame) -> None:
    figure = mixing_vs_correlation(table.loc[(table["k"] == 1.8) & ~table["added"]])
    axes = figure.axes[0]
    assert means(axes) == {"_means": [(-0.4, pytest.approx(-0.3)), (0.4, pytest.approx(0.3))]}
    assert latents(axes) == pytest.approx([-0.4, -0.2, 0.1, 0.3, 0.3, 0.5])
    (top,) = axes.child_axes
    assert [label.get_text() for label in top.get_xticklabels()] == ["$-0.26$", "$0.26$"]
    assert rendered(figure)


def test_each_correlation_has_a_line_and_added_saes_one_of_their_own(table: pd.DataFrame) -> None:
    figure = mixing_vs_k(table, "from above")
    axes = figure.axes[0]
    assert means(axes) == {
        "Correlation $+0.4$": [(1.8, pytest.approx(0.3)), (2.0, 0.0)],
        "Correlation $-0.4$": [(1.8, pytest.approx(-0.3)), (2.0, 0.0)],
        "Correlation $-0.4$, from above": [(1.8, -0.5)],
    }
    assert len(latents(axes)) == 10  # two for each SAE of the published grid
    assert lines(axes)["True L0 = 2"][0] == [2.0, 2.0]
    assert rendered(figure)


def test_saes_that_diverged_are_left_out_and_counted(table: pd.DataFrame) -> None:
    table.loc[0, "mixing"] = np.nan
    assert "(1 SAEs diverged" in mixing_vs_k(table).axes[0].get_xlabel()
    with pytest.raises(ValueError, match="none of the table's 6 rows"):
        mixing_vs_correlation(table.assign(mixing=np.nan))
    with pytest.raises(ValueError, match="lacks the columns firing_correlation"):
        mixing_vs_correlation(table.drop(columns="firing_correlation"))
