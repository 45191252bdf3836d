from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from sparse_but_wrong.figures.mixing import mixing_vs_correlation, mixing_vs_k
from tests.figures.conftest import MIXED, lines


def means(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    found = {}
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        xy = np.asarray(container.lines[0].get_xydata()).tolist()
        found[str(container.get_label())] = [tuple(point) for point in xy]
    return found


def latents(axes: Axes) -> list[float]:
    dots = [line for line in axes.get_lines() if line.get_label() == "_latents"]
    return sorted(float(y) for line in dots for y in np.asarray(line.get_ydata()))


def test_means_over_seeds_and_a_dot_per_latent() -> None:
    axes = mixing_vs_correlation(MIXED.loc[(MIXED["k"] == 1.8) & ~MIXED["added"]]).axes[0]
    assert means(axes) == {"_means": [(-0.4, pytest.approx(-0.3)), (0.4, pytest.approx(0.3))]}
    assert latents(axes) == pytest.approx([-0.4, -0.2, 0.1, 0.3, 0.3, 0.5])
    (top,) = axes.child_axes
    assert [label.get_text() for label in top.get_xticklabels()] == ["$-0.26$", "$0.26$"]


def test_each_correlation_has_a_line_and_added_saes_one_of_their_own() -> None:
    axes = mixing_vs_k(MIXED, "from above").axes[0]
    assert means(axes) == {
        "Correlation $+0.4$": [(1.8, pytest.approx(0.3)), (2.0, 0.0)],
        "Correlation $-0.4$": [(1.8, pytest.approx(-0.3)), (2.0, 0.0)],
        "Correlation $-0.4$, from above": [(1.8, -0.5)],
    }
    assert len(latents(axes)) == 10  # two for each SAE of the published grid
    assert lines(axes)["True L0 = 2"][0] == [2.0, 2.0]
    diverged = MIXED.assign(mixing=[np.nan, *MIXED["mixing"][1:]])
    assert "(1 not finite" in mixing_vs_k(diverged).axes[0].get_xlabel()
