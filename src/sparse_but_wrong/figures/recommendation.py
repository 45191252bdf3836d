"""A recommendation and its evidence: the curves of the sweep, the interval, and the count."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FormatStrFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from sparse_but_wrong.figures.style import BLUE, GREEN, GREY, VERMILLION, paper_style
from sparse_but_wrong.figures.sweep_axes import numbers
from sparse_but_wrong.l0.curves import useful_n
from sparse_but_wrong.l0.presence import HISTOGRAM_TOP
from sparse_but_wrong.l0.recommend import L0Recommendation

_LINEAR_BELOW = 1e-3
_ONE_SIZE = 0.05


def recommendation_figure(recommendation: L0Recommendation) -> Figure:
    """s_n^dec and c_dec over the sweep's L0 with the interval, and the codes that were counted.

    SAEs that started from the learned directions are hollow. Without a recommendation the count, if
    there is one, is a line without a band.
    """
    table = recommendation.sweep.table
    with paper_style():
        figure = Figure(figsize=(9, 2.5))
        projections, similarity, codes = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
        _draw_projections(projections, recommendation)
        _draw_curve(similarity, table, "c_dec", GREY, "o", label="")
        similarity.set_ylim(bottom=0)
        similarity.set_ylabel(r"$c_\mathrm{dec}$")
        similarity.set_title("Similarity of decoder rows")
        for axes in (projections, similarity):
            _mark(axes, recommendation)
            _mark_elbows(axes, recommendation, of_projections=axes is projections)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("SAE L0")
            axes.grid(True, alpha=0.3)
        if projections.get_legend_handles_labels()[1]:
            projections.legend(loc="best", ncols=2, handlelength=1.5)
        _draw_codes(codes, recommendation)
    return figure


def _draw_projections(axes: Axes, recommendation: L0Recommendation) -> None:
    sweep = recommendation.sweep
    ns = useful_n(recommendation.counted or 0.0, sweep.d_sae)[::2]
    if not ns:
        axes.text(0.5, 0.5, "no n is of use", transform=axes.transAxes, ha="center")
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.8, max(1, len(ns))))
    for i, (n, color) in enumerate(zip(ns, map(tuple, colors), strict=False)):
        _draw_curve(axes, sweep.table, f"s_{n}", color, "os^D"[i % 4], label=f"$n = {n}$")
    drawn = np.concatenate([numbers(sweep.table, f"s_{n}") for n in ns] or [np.zeros(0)])
    drawn = drawn[np.isfinite(drawn)]
    # At the right L0 of a toy world s_n is a thousandth of what it is elsewhere; in language models
    # all are of one size, and a logarithmic axis would have no mark.
    if drawn.min(initial=np.inf) < _ONE_SIZE * drawn.max(initial=0.0):
        axes.set_yscale("symlog", linthresh=_LINEAR_BELOW, linscale=0.4)
        axes.yaxis.set_major_locator(FixedLocator([0, *(10.0**i for i in range(-3, 7))]))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.margins(y=0.3)  # room for the legend
    axes.set_ylabel("$s_n$")
    axes.set_title("$n$-th decoder projection")


def _draw_curve(
    axes: Axes,
    table: pd.DataFrame,
    column: str,
    color: str | tuple[float, ...],
    marker: str,
    label: str,
) -> None:
    started = (table["group"] == "directions").to_numpy(bool)
    for rows, face, name in ((~started, color, label), (started, "white", "")):
        axes.plot(
            numbers(table, "l0")[rows],
            numbers(table, column)[rows],
            linestyle="",
            marker=marker,
            markersize=3,
            markerfacecolor=face,
            markeredgecolor=color,
            markeredgewidth=0.7,
            label=name or "_",
            zorder=2,
        )


def _mark(axes: Axes, recommendation: L0Recommendation) -> None:
    if recommendation.interval is not None:
        axes.axvspan(*recommendation.interval, color=GREEN, alpha=0.25, linewidth=0, zorder=0)
    if recommendation.counted is not None:
        named = "L0" if recommendation.l0 is not None else "counted, not recommended"
        axes.axvline(
            recommendation.counted,
            color=GREEN if recommendation.l0 is not None else VERMILLION,
            linewidth=0.8,
            label=f"{named}: {recommendation.counted:.4g}",
            zorder=1,
        )


def _mark_elbows(axes: Axes, recommendation: L0Recommendation, *, of_projections: bool) -> None:
    """A line for every L0 at which a curve has its elbow: several show that the n disagree."""
    elbows = {
        curve.elbow
        for curve in recommendation.curves
        if (curve.metric != "c_dec") == of_projections and np.isfinite(curve.elbow)
    }
    for i, elbow in enumerate(sorted(elbows)):
        label = ("elbow" if len(elbows) == 1 else "elbows") if i == 0 else "_"
        axes.axvline(elbow, color=GREY, linestyle=":", linewidth=0.8, label=label, zorder=1)


def _draw_codes(axes: Axes, recommendation: L0Recommendation) -> None:
    axes.set_title("Codes along the learned directions")
    axes.set_xlabel("code / usual magnitude")
    axes.set_ylabel("density per sample")
    if not recommendation.sweep.counts:
        axes.text(0.5, 0.5, "nothing was counted", transform=axes.transAxes, ha="center")
        return
    presence = recommendation.sweep.counts[0].presence
    density = presence.histogram.numpy()
    edges = np.linspace(0, HISTOGRAM_TOP, len(density) + 1)
    axes.stairs(density, edges, color=BLUE, fill=True, alpha=0.5)
    axes.axvline(presence.cut, color=VERMILLION, linewidth=0.8, label="cut")
    # The small codes beside the cut may be many times what is counted.
    above = density[edges[:-1] >= presence.cut]
    axes.set_ylim(0, 1.4 * float(above.max(initial=1e-9)))
    axes.legend(loc="upper right", handlelength=1.5)
