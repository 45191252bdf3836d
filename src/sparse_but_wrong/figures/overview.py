"""The finding in one figure: only at the true L0 does a sweep's SAE learn the true features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_but_wrong.figures.axes import (
    draw_saes,
    explain_marks,
    finish,
    is_added,
    left_out,
    mark_true_l0,
    numbers,
    rows_to_draw,
    shades,
    symlog_s_n_axis,
    with_projections,
)
from sparse_but_wrong.figures.style import BLUE, GREEN, GREY, VERMILLION, Number, paper_style

TOO_LOW = "too low:\nlatents mix\ncorrelated features"
TOO_HIGH = (
    "too high: flat near $10^{-3}$,\nover a wider range for larger $n$;\nthe argmin there is noise"
)
CLIFF = "at the true L0:\na cliff, because\nlatents are features"

# An SAE this far from the truth, as a share of it, is an example of too low or too high.
_CLEARLY_OFF = 0.2


@paper_style()
def overview(
    table: pd.DataFrame,
    projections: pd.DataFrame,
    true_l0: Number,
    *,
    ns: Sequence[int] = (12, 16, 20, 24),
    too_low: str = TOO_LOW,
    too_high: str = TOO_HIGH,
    cliff: str = CLIFF,
) -> Figure:
    """What a sweep shows, at a glance, for a world whose true L0 is known.

    Left, $s_n$ against L0 for several n on a scale that shows both its rise below the truth and
    how flat it is above. Middle, all projections of up to three SAEs: of those within 20 % of the
    truth the one that recovers most, of those below the nearest to half of it, of those above that
    nearest to twice. Right, decoder similarity and recovery of the true features against L0.

    Args:
        table: a row per SAE with columns `l0`, `c_dec`, `mcc` and perhaps `added`. SAEs with values
            that are not finite are left out, and the axis says how many.
        projections: the same rows, with a column for each n.
        ns: which projections the left panel shows; each above the true L0 and below d_sae / 2.
        too_low, too_high, cliff: what is written below the truth, above it, and beside the sorted
            projections. They hold for the JumpReLU sweep of the paper; for another table pass
            what holds there, or "".
    Raises:
        ValueError: missing columns, no ns, or no SAE that can be drawn.
    """
    if not ns:
        raise ValueError("ns is empty: name at least one projection to draw against L0.")
    every_n = sorted({*projections.columns, *ns})
    joined = with_projections(table, projections, every_n)
    rows = rows_to_draw(joined, ["c_dec", "mcc", *(f"s_{n}" for n in every_n)])
    figure = Figure(figsize=(10, 3.2))
    grid = figure.add_gridspec(2, 3, width_ratios=(1.25, 1.1, 1))
    left = figure.add_subplot(grid[:, 0])
    _projections_against_l0(left, rows, true_l0, ns, too_low, too_high)
    left.set_xlabel(f"SAE L0{left_out(table, rows)}")
    middle = figure.add_subplot(grid[:, 1])
    _sorted_projections(middle, rows, projections.loc[rows.index], true_l0, cliff)
    similarity = figure.add_subplot(grid[0, 2])
    recovery = figure.add_subplot(grid[1, 2], sharex=similarity)
    _similarity_and_recovery(similarity, recovery, rows, true_l0)
    return figure


def _projections_against_l0(
    axes: Axes, rows: pd.DataFrame, true_l0: Number, ns: Sequence[int], too_low: str, too_high: str
) -> None:
    for n, color, marker in zip(ns, shades(len(ns)), cycle("os^Dv"), strict=False):
        draw_saes(axes, rows, f"s_{n}", color=color, marker=marker)
        look = {"color": color, "marker": marker, "markersize": 3, "linewidth": 0.8}
        axes.plot([], [], **look, label=f"$n = {n}$")
    mark_true_l0(axes, true_l0)
    symlog_s_n_axis(axes)
    values = rows[[f"s_{n}" for n in ns]].to_numpy(dtype=float)
    # Room for the legend below the curves and for the two remarks above.
    axes.set_ylim(min(-5e-3, 5 * values.min()), max(1.0, values.max()) * 25)
    l0 = numbers(rows, "l0")
    low, high = l0.min(), l0.max()
    margin = 0.04 * max(high - low, 1.0)
    # Each side is wide enough for its remark, which takes about a third or half of the panel.
    left = min(low - margin, true_l0 - 0.47 * (high + margin - true_l0))
    right = max(high + margin, true_l0 + 0.85 * (true_l0 - left))
    axes.set_xlim(left, right)
    for words, start, end, color in (
        (too_low, left, true_l0, VERMILLION),
        (too_high, true_l0, right, BLUE),
    ):
        axes.axvspan(start, end, color=color, alpha=0.06, linewidth=0, zorder=0)
        place = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
        axes.text((start + end) / 2, 0.975, words, fontsize=7, color=color, **place)
    finish(axes, "", "$s_n$", "$n$-th decoder projection against L0")
    axes.legend(loc="lower center", ncols=3, handlelength=1.8, framealpha=1, columnspacing=1.5)


def _sorted_projections(
    axes: Axes, rows: pd.DataFrame, projections: pd.DataFrame, true_l0: Number, words: str
) -> None:
    # At n = d_sae / 2 the projection is the median and tells nothing.
    ns = [n for n in sorted(projections.columns) if 1 <= n < projections.shape[1] / 2]
    l0 = numbers(rows, "l0")
    below = l0 < (1 - _CLEARLY_OFF) * true_l0
    above = l0 > (1 + _CLEARLY_OFF) * true_l0
    at = ~below & ~above
    # Near the truth single runs land in poor minima, so there the best is shown, not the nearest.
    for candidates, merit, color, marker, verdict in (
        (below, -np.abs(l0 - true_l0 / 2), VERMILLION, "v", "too low"),
        (at, numbers(rows, "mcc"), "black", "o", "best near the truth"),
        (above, -np.abs(l0 - true_l0 * 2), BLUE, "^", "too high"),
    ):
        if not candidates.any():
            continue
        i = int(np.where(candidates, merit, -np.inf).argmax())
        values = projections.iloc[i][ns].to_numpy(dtype=float)
        look = {"color": color, "marker": marker, "markersize": 3, "linewidth": 0.9}
        axes.plot(ns, values, **look, label=f"L0 {l0[i]:.2f}: {verdict}")
    mark_true_l0(axes, true_l0)
    axes.set_ylim(bottom=min(-0.05, axes.get_ylim()[0]))
    if at.any():
        axes.text(0.04, 0.06, words, transform=axes.transAxes, fontsize=7, va="bottom")
    finish(axes, "$n$", "$s_n$", "All projections of single SAEs")
    axes.legend(loc="upper right", handlelength=1.5)


def _similarity_and_recovery(
    similarity: Axes, recovery: Axes, rows: pd.DataFrame, true_l0: Number
) -> None:
    for axes, column, color, label, title in (
        (similarity, "c_dec", GREY, r"$c_\mathrm{dec}$", "Similarity between decoder rows"),
        (recovery, "mcc", GREEN, "matched cosine", "Recovery of the true features"),
    ):
        draw_saes(axes, rows, column, color=color)
        mark_true_l0(axes, true_l0)
        finish(axes, "", label, title)
    similarity.tick_params(labelbottom=False)
    similarity.set_ylim(bottom=0)
    recovery.set_ylim(top=1.05)
    recovery.set_xlabel("SAE L0")
    if is_added(rows).any():
        explain_marks(similarity, rows, color=GREY)
        handles = similarity.get_lines()[-2:]
        similarity.legend(handles=handles, loc="upper center", handletextpad=0.2, framealpha=1)
