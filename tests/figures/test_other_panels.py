"""Panels side by side: what latents hold of features, and histograms of projections."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure

from sparse_but_wrong.figures.feature_components import (
    ComponentsPanel,
    feature_components_heatmaps,
)
from sparse_but_wrong.figures.projection_histograms import (
    ProjectionPanel,
    projection_histograms,
)

Render = Callable[[Figure], bytes]


def test_a_heatmap_per_sae_with_its_values(render: Render) -> None:
    matrix = np.array([[1.0, -0.251], [-0.001, 0.97]])
    figure = feature_components_heatmaps(
        [ComponentsPanel(matrix, "$k = 2$"), ComponentsPanel(-matrix, "$k = 1.8$")]
    )
    first, second = figure.axes[:2]
    assert [text.get_text() for text in first.texts] == ["1.00", "-0.25", "0.00", "0.97"]
    assert [text.get_text() for text in second.texts] == ["-1.00", "0.25", "0.00", "-0.97"]
    assert (first.get_title(), second.get_title()) == ("$k = 2$", "$k = 1.8$")
    assert (first.get_xlabel(), first.get_ylabel()) == ("True feature", "SAE latent")
    assert render(figure).startswith(b"\x89PNG")


def test_many_features_leave_no_room_for_values() -> None:
    figure = feature_components_heatmaps([ComponentsPanel(np.eye(20), "wide")])
    assert not figure.axes[0].texts


def test_nothing_to_show_is_refused() -> None:
    with pytest.raises(ValueError, match="got no panels"):
        feature_components_heatmaps([])
    with pytest.raises(ValueError, match="got no panels"):
        projection_histograms([])
    panel = ProjectionPanel(np.array([np.nan]), s_n=0.0, n=1, title="broken")
    with pytest.raises(ValueError, match="'broken' are missing or not finite"):
        projection_histograms([panel])


def test_histograms_share_their_bins_and_mark_s_n(render: Render) -> None:
    right = ProjectionPanel(np.array([0.0] * 6 + [1.0] * 2), s_n=0.0, n=18, title="right")
    wrong = ProjectionPanel(np.array([-1.0, 0.5, 1.5, 3.0]), s_n=0.5, n=18, title="wrong")
    figure = projection_histograms([right, wrong])
    for axes, panel in zip(figure.axes, (right, wrong), strict=True):
        bars = [patch for patch in axes.patches if patch.get_height() > 0]  # pyright: ignore[reportAttributeAccessIssue]
        assert sum(bar.get_height() for bar in bars) == pytest.approx(1)  # pyright: ignore[reportAttributeAccessIssue]
        assert axes.patches[0].get_x() == -1  # pyright: ignore[reportAttributeAccessIssue]
        (line,) = axes.get_lines()
        assert list(np.asarray(line.get_xdata())) == [panel.s_n, panel.s_n]
        assert axes.get_yscale() == "log"
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == [  # pyright: ignore[reportOptionalMemberAccess]
        "$s_{18} = 0.500$"
    ]
    assert render(figure).startswith(b"\x89PNG")
