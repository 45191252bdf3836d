"""Histograms of decoder projections, one SAE beside the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from sparse_but_wrong.figures.style import BLUE, VERMILLION, paper_style

_BINS = 80


@dataclass(frozen=True, eq=False)
class ProjectionPanel:
    """The decoder projections of one SAE."""

    projections: Float[np.ndarray, " samples_times_latents"]
    """Of all samples on all latents."""

    s_n: float
    """The n-th decoder projection."""

    n: int
    title: str


def projection_histograms(panels: Sequence[ProjectionPanel]) -> Figure:
    """A histogram per SAE on common axes, counts on a logarithmic scale, $s_n$ as a line.

    Raises:
        ValueError: no panels, or projections that are missing or not finite.
    """
    if not panels:
        raise ValueError("projection_histograms got no panels: pass one for each SAE.")
    for panel in panels:
        if panel.projections.size == 0 or not np.isfinite(panel.projections).all():
            raise ValueError(f"the projections of {panel.title!r} are missing or not finite.")
    lowest = min(panel.projections.min() for panel in panels)
    highest = max(panel.projections.max() for panel in panels)
    with paper_style():
        figure = Figure(figsize=(3.1 * len(panels), 2.1))
        grid = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
        for axes, panel in zip(grid, panels, strict=True):
            axes.hist(
                panel.projections,
                bins=np.linspace(lowest, highest + 1e-6, _BINS + 1).tolist(),
                weights=np.full(panel.projections.size, 1 / panel.projections.size),
                color=BLUE,
                alpha=0.8,
            )
            axes.axvline(
                panel.s_n,
                color=VERMILLION,
                linestyle="--",
                linewidth=1,
                label=f"$s_{{{panel.n}}} = {panel.s_n:.3f}$",
            )
            axes.set_yscale("log")
            axes.set_title(panel.title)
            axes.set_xlabel("Decoder projection")
            axes.legend(loc="upper right")
        grid[0].set_ylabel("Share of projections")
    return figure
