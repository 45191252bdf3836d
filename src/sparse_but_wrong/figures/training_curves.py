"""L0 and reconstruction error over the course of a sweep's training."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from sparse_but_wrong.figures.style import paper_style
from sparse_but_wrong.figures.sweep_axes import mark_true_l0, numbers, require_columns


def training_curves(curves: pd.DataFrame, true_l0: float | int | None = None) -> Figure:
    """L0 and mean squared error of every SAE against the training step, coloured by its last L0.

    An SAE whose training diverged has gaps where its values are not finite, and its colour is that
    of its last finite L0; one that never had a finite L0 is left out.

    Args:
        curves: a row per SAE and logged step with columns `sae_id`, `step`, `l0` and `mse_loss`.
        true_l0: active features per sample of the world, drawn as a horizontal line; left out
            where nobody knows it.
    Raises:
        ValueError: missing columns, or no finite L0 at all.
    """
    require_columns(curves, ["sae_id", "step", "l0", "mse_loss"])
    finite = curves.loc[np.isfinite(numbers(curves, "l0"))]
    if finite.empty:
        raise ValueError(f"none of the {len(curves)} rows of the training curves has a finite l0.")
    last = finite.sort_values("step").drop_duplicates("sae_id", keep="last")
    last_l0 = dict(zip(last["sae_id"], numbers(last, "l0"), strict=True))
    lowest, highest = min(last_l0.values()), max(last_l0.values())
    if lowest == highest:
        lowest, highest = lowest - 0.5, highest + 0.5
    norm = Normalize(lowest, highest)
    # The palest end of viridis does not show on white.
    colors = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, 256)))

    with paper_style():
        figure = Figure(figsize=(5.5, 2.2))
        l0_axes, mse_axes = figure.subplots(1, 2, sharex=True)
        for sae_id, of_sae in curves.sort_values("step").groupby("sae_id", sort=False):
            if sae_id not in last_l0:
                continue
            color = colors(norm(last_l0[sae_id]))
            for axes, column in ((l0_axes, "l0"), (mse_axes, "mse_loss")):
                axes.plot(
                    of_sae["step"],
                    of_sae[column],
                    color=color,
                    linewidth=0.8,
                    alpha=0.9,
                    label=f"_{sae_id}",
                )
        if true_l0 is not None:
            mark_true_l0(l0_axes, true_l0, horizontal=True)
            l0_axes.legend(handlelength=1.5)
        l0_axes.set_title("SAE L0")
        l0_axes.set_ylabel("L0")
        mse_axes.set_title("Reconstruction error")
        mse_axes.set_ylabel("MSE")
        # The first steps are orders of magnitude above the rest.
        errors = numbers(curves, "mse_loss")
        errors = errors[np.isfinite(errors) & (errors > 0)]
        if errors.size:
            mse_axes.set_yscale("log")
            # Over many decades their powers are labels enough.
            few = errors.max() < 300 * errors.min()
            mse_axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
            mse_axes.yaxis.set_major_formatter("{x:g}")
            mse_axes.yaxis.set_minor_locator(NullLocator())
        for axes in (l0_axes, mse_axes):
            axes.set_xlabel("Training step")
            axes.grid(True, alpha=0.3)
        figure.colorbar(
            ScalarMappable(norm, colors),
            ax=[l0_axes, mse_axes],
            label="Last L0",
            pad=0.02,
            aspect=25,
        )
    return figure
