"""What each latent holds of each true feature, for several SAEs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from sparse_but_wrong.figures.heatmaps import HeatmapPanel, draw_heatmaps
from sparse_but_wrong.figures.style import paper_style

# Beyond this many cells to a side their values no longer have room.
_MOST_VALUES = 10


@dataclass(frozen=True, eq=False)
class ComponentsPanel:
    """The decoder of one SAE."""

    matrix: Float[np.ndarray, "d_sae n_features"]
    """What each latent holds of each feature (`diagnostics.mixing.feature_components`)."""

    title: str


def feature_components_heatmaps(panels: Sequence[ComponentsPanel]) -> Figure:
    """A heatmap per SAE, in one row, with the values written into the cells of small ones.

    Raises:
        ValueError: no panels, or a matrix that is empty or has values that are not finite.
    """
    if not panels:
        raise ValueError("feature_components_heatmaps got no panels: pass one for each SAE.")
    with paper_style():
        figure = Figure(figsize=(2.3 * len(panels) + 0.6, 2.3))
        draw_heatmaps(
            figure,
            [
                HeatmapPanel(panel.matrix, panel.title, ylabel="SAE latent", xlabel="True feature")
                for panel in panels
            ],
            show_values=max(max(panel.matrix.shape) for panel in panels) <= _MOST_VALUES,
        )
    return figure
