"""The sparsity–reconstruction tradeoff of several kinds of SAE on the same samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sparse_but_wrong.figures.style import BLUE, GREEN, GREY, VERMILLION, paper_style
from sparse_but_wrong.figures.sweep_axes import mark_true_l0, numbers, require_columns

_LOOKS = ((VERMILLION, "o"), ("black", "s"), (BLUE, "^"), (GREY, "D"))


def tradeoff(
    curves: Mapping[str, pd.DataFrame], recovery: pd.DataFrame, true_l0: float | int
) -> Figure:
    """Reconstruction error against k, and beside it how well the trained SAEs are the truth.

    Args:
        curves: by label, a row per k with columns `k` and `mse`; up to four. Errors that are not
            finite are left out.
        recovery: a row per trained SAE with columns `k` and `mcc`.
        true_l0: active features per sample of the world, drawn as vertical lines.
    Raises:
        ValueError: no curves or more than four, missing columns, or no error that can be drawn.
    """
    if not 1 <= len(curves) <= len(_LOOKS):
        raise ValueError(f"there are {len(curves)} curves; pass 1 to {len(_LOOKS)}.")
    require_columns(recovery, ["k", "mcc"])
    with paper_style():
        figure = Figure(figsize=(7, 2.6))
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        n_drawn = 0
        for (label, curve), (color, marker) in zip(curves.items(), _LOOKS, strict=False):
            require_columns(curve, ["k", "mse"])
            k, mse = (numbers(curve.sort_values("k"), name) for name in ("k", "mse"))
            there = np.isfinite(mse)
            n_drawn += int(there.sum())
            left.plot(
                k[there],
                mse[there],
                color=color,
                marker=marker,
                markersize=3,
                linewidth=0.9,
                label=label,
            )
        if n_drawn == 0:
            raise ValueError("none of the curves has a finite error: nothing to draw.")
        mark_true_l0(left, true_l0)
        # Linear, because what sets the curves apart is below the true L0; above it all are near 0.
        left.set_ylim(bottom=0)
        left.set_ylabel("MSE (summed over dimensions)")
        left.set_title("Reconstruction at the same L0")
        left.legend(handlelength=1.8)

        of_sae = recovery.sort_values("k")
        right.plot(
            numbers(of_sae, "k"),
            numbers(of_sae, "mcc"),
            color=GREEN,
            marker="o",
            markersize=3,
            linewidth=0.9,
        )
        mark_true_l0(right, true_l0)
        right.set_ylim(0, 1.05)
        right.set_ylabel("matched cosine")
        right.set_title("Recovery of the true features")
        for axes in (left, right):
            axes.set_xlabel("$k$ (latents kept per sample)")
            axes.grid(True, alpha=0.3)
    return figure
