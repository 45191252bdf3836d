"""What a pass over a stream told of one or several SAEs, in six panels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from sparse_but_wrong.figures.style import BLUE, GREY, VERMILLION, paper_style
from sparse_but_wrong.metrics.stream import DENSE, StreamScore

SHARES = (0.25, 0.33, 0.4, 0.48)
"""The n of the curves, as shares of d_sae: well above the L0 of any sparse SAE, below a half."""

_MOST_NAMED = 12
_BINS = 60

_Color = tuple[float, ...]


def stream_scores(scores: Mapping[str, StreamScore]) -> Figure:
    """s_n^dec over n and over L0, similarity, L0 over samples, densities, all projections.

    SAEs are drawn in order of their L0, dark at the lowest. Bars at s_n are two standard errors.

    Args:
        scores: by the name of the SAE; at least one.
    Raises:
        ValueError: there are none.
    """
    if not scores:
        raise ValueError("there are no scores to draw; measure at least one SAE.")
    ordered = dict(sorted(scores.items(), key=lambda item: _last_if_nan(item[1].l0.value)))
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(ordered)))
    colors = dict(zip(ordered, map(tuple, shades), strict=True))
    with paper_style():
        figure = Figure(figsize=(9, 5), layout="constrained")
        (all_n, over_l0, similarity), (l0, density, projection) = figure.subplots(2, 3)
        _each(all_n, ordered, colors, _draw_all_n)
        all_n.set_xscale("log")
        all_n.set_xlabel("$n$")
        all_n.set_ylabel("$s_n$")
        all_n.set_title("Decoder projections, sorted")
        if len(ordered) <= _MOST_NAMED:
            all_n.legend(title="L0", loc="best", handlelength=1, ncols=2)
        _draw_over_l0(over_l0, ordered)
        _draw_similarity(similarity, ordered)
        _each(l0, ordered, colors, _draw_l0)
        l0.set_xscale("log")
        l0.set_xlabel("active latents of a sample")
        l0.set_ylabel("share of samples per number")
        l0.set_title("L0 over samples")
        _each(density, ordered, colors, _draw_density)
        density.axvline(DENSE, color=GREY, linewidth=0.6, linestyle=":")
        density.set_xscale("log")
        density.set_xlabel("share of samples on which a latent is active")
        density.set_ylabel("latents")
        density.set_title("Densities of latents")
        _each(projection, ordered, colors, _draw_projection)
        projection.set_yscale("log")
        projection.set_xlabel("projection on a decoder row")
        projection.set_ylabel("share")
        projection.set_title("All projections")
        for axes in figure.axes:
            axes.grid(True, alpha=0.3)
    return figure


def _last_if_nan(value: float) -> float:
    return value if np.isfinite(value) else np.inf


def _each(
    axes: Axes,
    scores: Mapping[str, StreamScore],
    colors: Mapping[str, _Color],
    draw: Callable[[Axes, StreamScore, _Color], None],
) -> None:
    for name, score in scores.items():
        draw(axes, score, colors[name])


def _draw_all_n(axes: Axes, score: StreamScore, color: _Color) -> None:
    half = max(2, score.d_sae // 2)
    # s_0, the largest projection of all, would set the scale alone.
    n = np.unique(np.geomspace(1, half, 200).astype(int))
    n = n[n < score.d_sae]
    values = score.projections.values.numpy()
    axes.plot(n, values[n], color=color, linewidth=0.9, label=f"{score.l0.value:.3g}")


def _draw_over_l0(axes: Axes, scores: Mapping[str, StreamScore]) -> None:
    shades = matplotlib.colormaps["plasma"](np.linspace(0, 0.8, len(SHARES)))
    l0 = np.array([score.l0.value for score in scores.values()])
    for share, shade, marker in zip(SHARES, map(tuple, shades), "os^D", strict=True):
        at = [int(share * score.d_sae) for score in scores.values()]
        pairs = list(zip(scores.values(), at, strict=True))
        axes.errorbar(
            l0,
            [float(score.projections.values[n]) for score, n in pairs],
            yerr=[2 * float(score.projections.standard_errors[n]) for score, n in pairs],
            color=shade,
            marker=marker,
            markersize=3,
            linewidth=0.8,
            elinewidth=0.8,
            label=f"$n = {at[0]}$" if len(set(at)) == 1 else f"$n = {share:g}\\,H$",
        )
    _log_l0(axes, l0)
    axes.set_ylabel("$s_n$")
    axes.set_title("$n$-th decoder projection")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    axes.legend(loc="upper center", handlelength=1.2, ncols=2)


def _draw_similarity(axes: Axes, scores: Mapping[str, StreamScore]) -> None:
    l0 = np.array([score.l0.value for score in scores.values()])
    for label, color, marker, values in (
        (r"$c_\mathrm{dec}$", BLUE, "o", [score.c_dec for score in scores.values()]),
        (r"$c_\mathrm{enc}$", VERMILLION, "s", [score.c_enc for score in scores.values()]),
    ):
        axes.plot(l0, values, color=color, marker=marker, markersize=3, linewidth=0.8, label=label)
    _log_l0(axes, l0)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])  # or values close to each other touch the frame
    axes.set_ylabel("mean |cosine|")
    axes.set_title("Similarity of latents")
    axes.legend(loc="best", handlelength=1.2)


def _log_l0(axes: Axes, l0: Float[np.ndarray, " saes"]) -> None:
    axes.set_xlabel("SAE L0")
    if not (l0 > 0).any():  # a logarithmic axis would have nothing on it
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_l0(axes: Axes, score: StreamScore, color: _Color) -> None:
    counts = score.l0_counts.numpy()
    edges = np.unique(np.geomspace(1, score.d_sae + 1, _BINS).astype(int)).astype(float)
    at = np.arange(len(counts))
    # What has no active latent has no place on a logarithmic axis, and is in the first bar.
    share, _ = np.histogram(np.maximum(at, 1), edges, weights=counts / max(1, score.n_samples))
    share = share / np.diff(edges)
    used = np.flatnonzero(share)
    if len(used):
        first, last = used[0], used[-1] + 1
        axes.stairs(share[first:last], edges[first : last + 1], color=color, linewidth=0.9)


def _draw_density(axes: Axes, score: StreamScore, color: _Color) -> None:
    densities = score.densities.numpy()
    alive = densities[np.isfinite(densities) & (densities > 0)]
    edges = np.geomspace(1 / max(2, score.n_samples), 1, _BINS // 2)
    counts, _ = np.histogram(alive, edges)
    axes.stairs(counts, edges, color=color, linewidth=0.9)


def _draw_projection(axes: Axes, score: StreamScore, color: _Color) -> None:
    counts = score.projections.counts.numpy()
    if counts.sum() > 0:
        # The outermost bars hold what lies beyond them, which is not there.
        share = counts[1:-1] / counts.sum()
        axes.stairs(
            np.where(share > 0, share, np.nan),
            score.projections.edges.numpy()[1:-1],
            color=color,
            linewidth=0.9,
        )
