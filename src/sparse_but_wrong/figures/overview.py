"""The finding in one figure: only at the true L0 does a sweep's SAE learn the true features."""

from __future__ import annotations

import re
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from sparse_but_wrong.figures.style import BLUE, GREEN, GREY, VERMILLION, paper_style
from sparse_but_wrong.figures.sweep_axes import (
    draw_saes,
    explain_marks,
    is_added,
    l0_label,
    mark_true_l0,
    numbers,
    rows_to_draw,
)

TOO_LOW = "too low:\nlatents mix\ncorrelated features"
TOO_HIGH = (
    "too high: flat near $10^{-3}$,\nover a wider range for larger $n$;\nthe argmin there is noise"
)
CLIFF = "at the true L0:\na cliff, because\nlatents are features"

# An SAE this far from the truth, as a share of it, is an example of too low or too high.
_CLEARLY_OFF = 0.2
# Projections below this are drawn on a linear scale, above it on a logarithmic one.
_LINEAR_BELOW = 1e-3


def overview(
    table: pd.DataFrame,
    true_l0: float | int,
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
        table: a row per SAE with columns `l0`, `added`, `c_dec`, `mcc` and `s_0`, `s_1`, ….
            SAEs with values that are not finite are left out, and the axis says how many.
        true_l0: active features per sample of the world.
        ns: which projections the left panel shows; each above the true L0 and below d_sae / 2.
        too_low, too_high, cliff: what is written below the truth, above it, and beside the sorted
            projections. They hold for the JumpReLU sweep of the paper; for another table pass
            what holds there, or "".
    Raises:
        ValueError: missing columns, no ns, an n that the table does not have, or no SAE that can
            be drawn.
    """
    if not ns:
        raise ValueError("ns is empty: name at least one projection to draw against L0.")
    curve = sorted((name for name in table.columns if _is_projection(name)), key=_n_of)
    rows = rows_to_draw(table, ["c_dec", "mcc", *(f"s_{n}" for n in ns), *curve])
    with paper_style():
        figure = Figure(figsize=(10, 3.2))
        grid = figure.add_gridspec(2, 3, width_ratios=(1.25, 1.1, 1))
        left = figure.add_subplot(grid[:, 0])
        _projections_against_l0(left, rows, true_l0, ns, too_low, too_high)
        left.set_xlabel(l0_label(table, rows))
        _sorted_projections(figure.add_subplot(grid[:, 1]), rows, true_l0, curve, cliff)
        similarity = figure.add_subplot(grid[0, 2])
        recovery = figure.add_subplot(grid[1, 2], sharex=similarity)
        _similarity_and_recovery(similarity, recovery, rows, true_l0)
    return figure


def _projections_against_l0(
    axes: Axes,
    rows: pd.DataFrame,
    true_l0: float | int,
    ns: Sequence[int],
    too_low: str,
    too_high: str,
) -> None:
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(ns)))
    for n, color, marker in zip(ns, map(tuple, colors), _cycle("os^Dv", len(ns)), strict=True):
        draw_saes(axes, rows, "l0", f"s_{n}", color=color, marker=marker)
        axes.plot(
            [], [], color=color, marker=marker, markersize=3, linewidth=0.8, label=f"$n = {n}$"
        )
    mark_true_l0(axes, true_l0)
    axes.set_yscale("symlog", linthresh=_LINEAR_BELOW, linscale=0.4)
    values = rows[[f"s_{n}" for n in ns]].to_numpy(dtype=float)
    # Room for the legend below the curves and for the two remarks above.
    axes.set_ylim(min(-5e-3, 5 * values.min()), max(1.0, values.max()) * 25)
    axes.yaxis.set_major_locator(FixedLocator([0, 1e-3, 1e-2, 1e-1, 1]))
    axes.yaxis.set_minor_locator(NullLocator())
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
        axes.text(
            (start + end) / 2,
            0.975,
            words,
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="top",
            fontsize=7,
            color=color,
        )
    axes.set_ylabel("$s_n$")
    axes.set_title("$n$-th decoder projection against L0")
    axes.grid(True, alpha=0.3)
    axes.legend(loc="lower center", ncols=3, handlelength=1.8, framealpha=1, columnspacing=1.5)


def _sorted_projections(
    axes: Axes, rows: pd.DataFrame, true_l0: float | int, curve: Sequence[str], words: str
) -> None:
    # At n = d_sae / 2 the projection is the median and tells nothing.
    shown = [name for name in curve if 1 <= _n_of(name) < len(curve) / 2]
    ns = [_n_of(name) for name in shown]
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
        sae = rows.iloc[int(np.where(candidates, merit, -np.inf).argmax())]
        axes.plot(
            ns,
            sae[shown].to_numpy(dtype=float),
            color=color,
            marker=marker,
            markersize=3,
            linewidth=0.9,
            label=f"L0 {sae['l0']:.2f}: {verdict}",
        )
    mark_true_l0(axes, true_l0)
    axes.set_ylim(bottom=min(-0.05, axes.get_ylim()[0]))
    if at.any():
        axes.text(0.04, 0.06, words, transform=axes.transAxes, fontsize=7, va="bottom")
    axes.set_xlabel("$n$")
    axes.set_ylabel("$s_n$")
    axes.set_title("All projections of single SAEs")
    axes.grid(True, alpha=0.3)
    axes.legend(loc="upper right", handlelength=1.5)


def _similarity_and_recovery(
    similarity: Axes, recovery: Axes, rows: pd.DataFrame, true_l0: float | int
) -> None:
    for axes, column, color, label, title in (
        (similarity, "c_dec", GREY, r"$c_\mathrm{dec}$", "Similarity between decoder rows"),
        (recovery, "mcc", GREEN, "matched cosine", "Recovery of the true features"),
    ):
        draw_saes(axes, rows, "l0", column, color=color)
        mark_true_l0(axes, true_l0)
        axes.set_ylabel(label)
        axes.set_title(title)
        axes.grid(True, alpha=0.3)
    similarity.tick_params(labelbottom=False)
    similarity.set_ylim(bottom=0)
    recovery.set_ylim(top=1.05)
    recovery.set_xlabel("SAE L0")
    if is_added(rows).any():
        explain_marks(similarity, rows, color=GREY)
        similarity.legend(
            handles=[line for line in similarity.get_lines() if _explains(line.get_label())],
            loc="upper center",
            handletextpad=0.2,
            framealpha=1,
        )


def _explains(label: object) -> bool:
    return label in ("Published grid", "Added")


def _cycle(marks: str, count: int) -> str:
    return (marks * (count // len(marks) + 1))[:count]


def _is_projection(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"s_\d+", name) is not None


def _n_of(name: str) -> int:
    return int(name.removeprefix("s_"))
