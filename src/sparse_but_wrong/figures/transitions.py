"""SAEs whose k moves in training: the paths it took, and where they ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sparse_but_wrong.figures.style import BLUE, GREY, VERMILLION, paper_style
from sparse_but_wrong.figures.sweep_axes import mark_true_l0, numbers, require_columns

_COLORS = (BLUE, VERMILLION, GREY)


def transitions(
    curves: pd.DataFrame,
    table: pd.DataFrame,
    labels: Mapping[str, str],
    true_l0: float | int,
    recovered: float | int,
) -> Figure:
    """k over training of each schedule, and the recovery of the true features of each SAE.

    Args:
        curves: a row per SAE and logged step with columns `sae_id`, `step` and `k`.
        table: a row per SAE with columns `sae_id`, `schedule` and `mcc`. SAEs whose `mcc` is not
            finite have no mark.
        labels: what each schedule is called, in the order they are drawn; up to three.
        true_l0: active features per sample of the world.
        recovered: matched cosine above which an SAE counts as recovered, drawn as a line.
    Raises:
        ValueError: missing columns, or no schedules or more than three.
    """
    require_columns(curves, ["sae_id", "step", "k"])
    require_columns(table, ["sae_id", "schedule", "mcc"])
    if not 1 <= len(labels) <= len(_COLORS):
        raise ValueError(f"there are {len(labels)} schedules; pass 1 to {len(_COLORS)}.")
    with paper_style():
        figure = Figure(figsize=(6, 2.3))
        left, right = figure.subplots(1, 2)
        for place, ((schedule, label), color) in enumerate(
            zip(labels.items(), _COLORS, strict=False)
        ):
            of_schedule = table.loc[table["schedule"] == schedule]
            ids: Sequence[str] = of_schedule["sae_id"].tolist()
            path = curves.loc[curves["sae_id"].isin(ids[:1])].sort_values("step")
            left.plot(numbers(path, "step"), numbers(path, "k"), color=color, label=label)
            values = numbers(of_schedule, "mcc")
            # Side by side, so that equal values do not hide each other.
            spread = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(1)
            right.plot(
                place + spread[: len(values)],
                values,
                linestyle="",
                marker="o",
                markersize=3.5,
                color=color,
                label=f"_{schedule}",
            )
        mark_true_l0(left, true_l0, horizontal=True)
        left.set_ylim(bottom=0)
        left.set_xlabel("Training step")
        left.set_ylabel("$k$")
        left.set_title("Schedules of $k$")
        left.legend(handlelength=1.5)
        right.axhline(
            recovered,
            color=GREY,
            linestyle=":",
            linewidth=0.8,
            label=f"recovered: above {recovered:g}",
        )
        right.set_xticks(range(len(labels)), list(labels.values()))
        right.set_xlim(-0.5, len(labels) - 0.5)
        # Room for the legend below the marks.
        lowest = min([recovered, *numbers(table, "mcc")[np.isfinite(numbers(table, "mcc"))]])
        right.set_ylim(lowest - 0.35 * (1.02 - lowest), 1.02)
        right.set_ylabel("matched cosine")
        right.set_title("Recovery of the true features, by seed")
        right.legend(loc="lower center", handlelength=1.8)
        for axes in (left, right):
            axes.grid(True, alpha=0.3)
    return figure
