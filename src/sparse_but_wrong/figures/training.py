"""What happened in training: L0 and error of every SAE, and the paths of a k that moves."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from sparse_but_wrong.figures import parts
from sparse_but_wrong.figures.style import BLUE, GREY, VERMILLION, Number, paper_style
from sparse_but_wrong.runs.sweep import Sweep

_COLORS = (BLUE, VERMILLION, GREY)


@paper_style()
def training_curves(curves: pd.DataFrame, true_l0: Number | None = None) -> Figure:
    """L0 and mean squared error of every SAE against the training step, coloured by its last L0.

    An SAE whose training diverged has gaps where its values are not finite, and its colour is that
    of its last finite L0; one that never had a finite L0 is left out.

    Args:
        curves: a row per SAE and logged step with columns `sae_id`, `step`, `l0` and `mse_loss`.
    Raises:
        ValueError: missing columns, or no finite L0 at all.
    """
    finite = parts.rows_to_draw(curves, ["step", "l0"], ["sae_id", "mse_loss"])
    # In order of the step, so that the last of an SAE stays.
    last_l0 = dict(zip(finite["sae_id"], parts.numbers(finite, "l0"), strict=True))
    lowest, highest = min(last_l0.values()), max(last_l0.values())
    around = 0.5 if lowest == highest else 0
    norm = Normalize(lowest - around, highest + around)
    # The palest end of viridis does not show on white.
    colors = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.9, 256)))
    figure = Figure(figsize=(5.5, 2.2))
    l0_axes, mse_axes = figure.subplots(1, 2, sharex=True)
    for sae_id, rows in curves.sort_values("step").groupby("sae_id", sort=False):
        if sae_id in last_l0:
            color = colors(norm(last_l0[sae_id]))
            look = {"color": color, "linewidth": 0.8, "alpha": 0.9, "label": f"_{sae_id}"}
            l0_axes.plot(rows["step"], rows["l0"], **look)
            mse_axes.plot(rows["step"], rows["mse_loss"], **look)
    parts.mark_true_l0(l0_axes, true_l0, horizontal=True)
    if true_l0 is not None:
        l0_axes.legend(handlelength=1.5)
    # The first steps are orders of magnitude above the rest.
    errors = parts.numbers(curves, "mse_loss")
    errors = errors[np.isfinite(errors) & (errors > 0)]
    if errors.size:
        mse_axes.set_yscale("log")
        # Over many decades their powers are labels enough.
        few = errors.max() < 300 * errors.min()
        mse_axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        mse_axes.yaxis.set_major_formatter("{x:g}")
        mse_axes.yaxis.set_minor_locator(NullLocator())
    parts.finish(l0_axes, "Training step", "L0", "SAE L0")
    parts.finish(mse_axes, "Training step", "MSE", "Reconstruction error")
    scale, both = ScalarMappable(norm, colors), [l0_axes, mse_axes]
    figure.colorbar(scale, ax=both, label="Last L0", pad=0.02, aspect=25)
    return figure


def sweep_curves(sweep: Sweep) -> Figure:
    """The training curves of a sweep."""
    curves = sweep.log.to_frame()
    return training_curves(curves.assign(sae_id=curves["sae"]))


@paper_style()
def transitions(
    curves: pd.DataFrame,
    table: pd.DataFrame,
    labels: Mapping[str, str],
    true_l0: Number,
    recovered: Number,
) -> Figure:
    """k over training of each schedule, and the recovery of the true features of each SAE.

    Args:
        curves: a row per SAE and logged step with columns `sae_id`, `step` and `k`.
        table: a row per SAE with columns `sae_id`, `schedule` and `mcc`; without a mark where `mcc`
            is not finite.
        labels: what each schedule is called, in the order they are drawn; one to three.
        recovered: matched cosine above which an SAE counts as recovered, drawn as a line.
    """
    parts.require_columns(curves, ["sae_id", "step", "k"])
    parts.require_columns(table, ["sae_id", "schedule", "mcc"])
    if not 1 <= len(labels) <= len(_COLORS):
        raise ValueError(f"there are {len(labels)} schedules; pass 1 to {len(_COLORS)}.")
    figure = Figure(figsize=(6, 2.3))
    left, right = figure.subplots(1, 2)
    for place, ((schedule, label), color) in enumerate(zip(labels.items(), _COLORS, strict=False)):
        rows = table.loc[table["schedule"] == schedule]
        path = curves.loc[curves["sae_id"].isin(rows["sae_id"].iloc[:1])].sort_values("step")
        left.plot(path["step"], path["k"], color=color, label=label)
        values = parts.numbers(rows, "mcc")
        # Side by side, so that equal values do not hide each other.
        spread = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(len(values))
        right.plot(place + spread, values, **parts.marks(color, size=3.5), label=f"_{schedule}")
    parts.mark_true_l0(left, true_l0, horizontal=True)
    parts.finish(left, "Training step", "$k$", "Schedules of $k$")
    left.set_ylim(bottom=0)
    left.legend(handlelength=1.5)
    label = f"recovered: above {recovered:g}"
    right.axhline(recovered, color=GREY, linestyle=":", linewidth=0.8, label=label)
    parts.finish(right, "", "matched cosine", "Recovery of the true features, by seed")
    right.set_xticks(range(len(labels)), list(labels.values()))
    right.set_xlim(-0.5, len(labels) - 0.5)
    # Room for the legend below the marks.
    mcc = parts.numbers(table, "mcc")
    lowest = min([recovered, *mcc[np.isfinite(mcc)]])
    right.set_ylim(lowest - 0.35 * (1.02 - lowest), 1.02)
    right.legend(loc="lower center", handlelength=1.8)
    return figure
