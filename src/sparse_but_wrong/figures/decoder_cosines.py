"""Decoders of SAEs against the true features, and what they mixed in against correlation."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from sparse_but_wrong.figures.heatmaps import HeatmapPanel, draw_heatmaps
from sparse_but_wrong.figures.style import BLUE, GREY, paper_style

Panel = tuple[str, Float[np.ndarray, "_d_sae _n_features"]]
"""A title, and the cosine of every latent with every feature, latents in the order of features.
Panels side by side may differ in size."""

_PANEL_WIDTH = 1.9


def decoder_cosines(panels: Sequence[Panel]) -> Figure:
    """Heatmaps side by side of how SAEs' latents lie to the true features.

    Args:
        panels: of each SAE a title and its `matched_cosines`.
    Raises:
        ValueError: no panels, an empty matrix, or values that are not finite.
    """
    if not panels:
        raise ValueError("there are no panels: pass at least one SAE to draw.")
    with paper_style():
        # One colour bar, for which there has to be room beside a single panel too.
        figure = Figure(figsize=(_PANEL_WIDTH * len(panels) + 0.8, _PANEL_WIDTH + 0.35))
        draw_heatmaps(
            figure,
            [
                HeatmapPanel(
                    matrix,
                    title=title,
                    ylabel="Latent (matched)" if first else "",
                    xlabel="True feature",
                )
                for (title, matrix), first in zip(
                    panels, [True] + [False] * (len(panels) - 1), strict=True
                )
            ],
        )
    return figure


def cosines_vs_correlation(
    panels: Sequence[tuple[str, Float[np.ndarray, " _pairs"], Float[np.ndarray, " _pairs"]]],
) -> Figure:
    """How much of one feature is in the latent of another, against how the two fire together.

    A dot is an ordered pair of features. A line joins the means over tenths of the pairs, in the
    order of their correlation.

    Args:
        panels: of each SAE a title, the correlations of the firings, and the cosines of the latent
            of one feature with the other.
    Raises:
        ValueError: no panels, or one without pairs or with values that are not finite.
    """
    if not panels:
        raise ValueError("there are no panels: pass at least one SAE to draw.")
    for title, x, y in panels:
        if x.size == 0 or not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError(
                f"the panel {title!r} has no pairs or values that are not finite: nothing sensible "
                "can be drawn."
            )
    with paper_style():
        figure = Figure(figsize=(_PANEL_WIDTH * len(panels) + 0.4, _PANEL_WIDTH))
        all_axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (title, x, y) in zip(all_axes, panels, strict=True):
            axes.axhline(0, color=GREY, linewidth=0.5, zorder=1)
            axes.axvline(0, color=GREY, linewidth=0.5, zorder=1)
            axes.scatter(x, y, s=2, color=BLUE, alpha=0.25, linewidths=0, rasterized=True, zorder=2)
            order = np.argsort(x, kind="stable")
            tenths = np.array_split(order, min(10, x.size))
            axes.plot(
                [x[tenth].mean() for tenth in tenths],
                [y[tenth].mean() for tenth in tenths],
                color="black",
                marker="o",
                markersize=2,
                linewidth=0.8,
                label="Mean of a tenth",
                zorder=3,
            )
            axes.set_title(title)
            axes.grid(True, alpha=0.3)
        all_axes[0].set_ylabel("Cosine of latent $i$\nwith feature $j$")
        all_axes[0].legend(
            loc="upper left",
            handlelength=1.2,
            fontsize=0.8 * matplotlib.rcParams["font.size"],
        )
        figure.supxlabel(
            "Correlation of the firings of features $i$ and $j$",
            fontsize=matplotlib.rcParams["axes.labelsize"],
        )
    return figure
