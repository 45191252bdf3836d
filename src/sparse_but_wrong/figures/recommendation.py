"""A recommendation and its evidence: the curves of the sweep, the interval, and the count."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_but_wrong.figures import parts
from sparse_but_wrong.figures.style import BLUE, GREEN, GREY, VERMILLION, paper_style
from sparse_but_wrong.l0.curves import useful_n
from sparse_but_wrong.l0.presence import HISTOGRAM_TOP
from sparse_but_wrong.l0.recommend import L0Recommendation

_ONE_SIZE = 0.05


@paper_style()
def plot_recommendation(recommendation: L0Recommendation) -> Figure:
    """s_n^dec, c_dec and agreement over the sweep's L0 with the interval, and codes.

    SAEs that started from the learned directions are hollow. Without a recommendation the count, if
    there is one, is a line without a band.
    """
    sweep = recommendation.sweep
    table = sweep.wide().assign(added=sweep.table["group"] == "directions")
    figure = Figure(figsize=(11, 2.5))
    projections, similarity, alike, codes = figure.subplots(1, 4, width_ratios=(1.5, 1, 1, 1))
    ns = useful_n(recommendation.counted or 0.0, sweep.d_sae)[::2]
    if not ns:
        projections.text(0.5, 0.5, "no n is of use", transform=projections.transAxes, ha="center")
    for i, (n, color) in enumerate(zip(ns, parts.shades(len(ns), end=0.8), strict=True)):
        look = {"color": color, "marker": "os^D"[i % 4], "label": f"$n = {n}$"}
        parts.draw_saes(projections, table, f"s_{n}", line=False, **look)
    drawn = np.concatenate([parts.numbers(table, f"s_{n}") for n in ns] or [np.zeros(0)])
    drawn = drawn[np.isfinite(drawn)]
    # At the right L0 of a toy world s_n is a thousandth of what it is elsewhere; in language models
    # all are of one size, and a logarithmic axis would have no mark.
    if drawn.min(initial=np.inf) < _ONE_SIZE * drawn.max(initial=0.0):
        parts.symlog_s_n_axis(projections, top=6)
    else:
        projections.margins(y=0.3)  # room for the legend
    parts.draw_saes(similarity, table, "c_dec", color=GREY, line=False)
    similarity.set_ylim(bottom=0)
    parts.finish(projections, "SAE L0", "$s_n$", "$n$-th decoder projection")
    parts.finish(similarity, "SAE L0", r"$c_\mathrm{dec}$", "Similarity of decoder rows")
    if np.isfinite(parts.numbers(table, "pw_mcc")).any():
        parts.draw_saes(alike, table, "pw_mcc", color=BLUE, line=False)
        alike.set_ylim(0, 1.05)
    else:
        alike.text(0.5, 0.5, "no second seed", transform=alike.transAxes, ha="center")
    parts.finish(alike, "SAE L0", "PW-MCC", "Agreement between seeds")
    for axes in (projections, similarity, alike):
        _mark(axes, recommendation, of_projections=axes is projections)
        parts.log_l0_axis(axes)
    if projections.get_legend_handles_labels()[1]:
        projections.legend(loc="best", ncols=2, handlelength=1.5)
    _draw_codes(codes, recommendation)
    return figure


def _mark(axes: Axes, recommendation: L0Recommendation, *, of_projections: bool) -> None:
    """The interval, what was counted, and a line for every L0 at which a curve has its elbow."""
    if recommendation.interval is not None:
        axes.axvspan(*recommendation.interval, color=GREEN, alpha=0.25, linewidth=0, zorder=0)
    lines = [(recommendation.l0, "L0", GREEN)]
    if recommendation.l0 is None or recommendation.basis == "agreement":
        lines.append((recommendation.counted, "counted, not recommended", VERMILLION))
    for l0, said, color in lines:
        if l0 is not None:
            label = f"{said}: {l0:.4g}"
            axes.axvline(l0, color=color, linewidth=0.8, label=label, zorder=1)
    elbows = {
        curve.bottom.elbow
        for curve in recommendation.curves
        if (curve.n is not None) == of_projections and np.isfinite(curve.bottom.elbow)
    }
    for i, elbow in enumerate(sorted(elbows)):  # several show that the n disagree
        label = ("elbow" if len(elbows) == 1 else "elbows") if i == 0 else "_"
        axes.axvline(elbow, color=GREY, linestyle=":", linewidth=0.8, label=label, zorder=1)


def _draw_codes(axes: Axes, recommendation: L0Recommendation) -> None:
    axes.set_title("Codes along the learned directions")
    axes.set(xlabel="code / usual magnitude", ylabel="density per sample")
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
