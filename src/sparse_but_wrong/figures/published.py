"""The published plot functions: how a toy model's SAE compares with the true features.

Showing: a matplotlib figure made here is pyplot's current one. Where pyplot can show figures (a
notebook, a window) `plt.show()` follows at once, as published: a notebook then displays it within
the cell and closes it, so that a `plt.savefig` after it finds nothing; `save_path` and the figure
returned do. Where nothing can be shown (Agg, PDF: scripts, workers) the figure stays open for
`plt.savefig`; whoever draws many closes each by `plt.close(figure)`. A figure returned to the very
cell that has shown it is not displayed again. No function changes rc parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.backends.registry import BackendFilter, backend_registry
from matplotlib.figure import Figure
from torch import Tensor

from sparse_but_wrong.atomic import write_bytes
from sparse_but_wrong.figures.heatmaps import (
    Matrix,
    Panel,
    correlation_heatmap,
    draw_heatmaps,
    to_array,
)
from sparse_but_wrong.figures.style import (
    SEABORN_RC_CONTEXT,
    Number,
    check_suffix,
    paper_style,
    write_figure,
)
from sparse_but_wrong.tensors import cos_sims

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "SEABORN_RC_CONTEXT",
    "find_best_index_reordering_for_saes",
    "plot_correlation_matrix",
    "plot_sae_feat_cos_sims",
    "plot_sae_feat_cos_sims_seaborn",
]

# Of pictures whose size is given in pixels; sets how large letters are beside the heatmaps.
_PIXELS_PER_INCH = 100

Ordering = bool | Sequence[int] | Int[Tensor, " d_sae"]


def plot_sae_feat_cos_sims_seaborn(
    sae: Any,
    model: Any,
    title_suffix: str | None = None,
    title: str | None = None,
    height: Number = 8,
    width: Number = 16,
    show_values: bool = False,
    save_path: str | Path | None = None,
    one_based_indexing: bool = False,
    reorder_features: Ordering = False,
    decoder_only: bool = False,
    dtick: int | None = 1,
    decoder_title: str = "SAE decoder",
    adjust_for_superposition: bool = False,
) -> Figure:
    """Heatmaps of the cosine similarity of every latent with every true feature, row 0 lowest.

    Args:
        sae: anything with columns `W_enc` [d_in, d_sae] and rows `W_dec` [d_sae, d_in].
        model: anything whose `embed.weight` [d_in, n_features] has the true directions as columns.
        title_suffix: written in brackets after the figure's own title.
        title: replaces the figure's title, and then the suffix is not used.
        height, width: in inches, of a figure with both heatmaps.
        show_values: write each value into its cell.
        save_path: where to write the figure, in the format of the suffix; folders are made.
        one_based_indexing: number features and latents from 1.
        reorder_features: True puts the latent that best matches feature j (see
            `find_best_index_reordering_for_saes`) into row j. An ordering [d_sae] names the latent
            of each row itself.
        decoder_only: leave the encoder's heatmap out; the figure is then half as wide.
        dtick: label every how many latents and features; chosen to fit if None.
        decoder_title: the title of the decoder's heatmap.
        adjust_for_superposition: subtract what is due to the true features not being orthogonal.
            Where m is the feature most similar to latent h in absolute value, entry (h, j ≠ m)
            becomes cos(h, j) − cos(h, m) · cos(m, j). A latent equal to a true feature then shows
            exactly one 1 and otherwise zeros.
    Returns:
        The figure; see the module for how it is shown.
    Raises:
        ValueError: an SAE and a model of different width, an ordering that is no permutation of
            the latents, a dtick below 1, or a path without a known suffix.
    """
    panels, _ = _cosine_panels(
        sae, model, reorder_features, decoder_only, decoder_title, adjust_for_superposition
    )
    how = _how(title, title_suffix, reorder_features, dtick, one_based_indexing, show_values)
    size = (width / 2 * len(panels), height)
    with _published_figure(size, save_path, _font_scale(width / 2, height)) as figure:
        draw_heatmaps(figure, panels, **how)
    return figure


def plot_sae_feat_cos_sims(
    sae: Any,
    model: Any,
    title_suffix: str | None = None,
    height: int = 400,
    width: int = 800,
    show_values: bool = False,
    reorder_features: Ordering = False,
    show_plot: bool = True,
    save_path: str | Path | None = None,
    dtick: int | None = 1,
    scale: Number = 1.0,
    *,
    title: str | None = None,
    one_based_indexing: bool = False,
    decoder_only: bool = False,
    decoder_title: str = "SAE decoder",
    adjust_for_superposition: bool = False,
) -> go.Figure:
    """As `plot_sae_feat_cos_sims_seaborn`, but a plotly figure whose cells tell what they are.

    Args:
        height, width: in pixels.
        show_plot: show the figure, by plotly's default renderer: in a notebook's cell, in a
            browser, or not at all where there is neither.
        save_path: where to write the figure. A path that ends in .html becomes a self-contained
            page. Pictures (.png, .pdf, .svg, …) are drawn by matplotlib with the same values,
            because plotly's own need another program, a browser.
        dtick: label every how many latents and features; plotly chooses if None.
        scale: multiplies the pixels of a picture made of them; `width` × `height` at 1.
    Raises:
        ValueError: as the sibling, or a scale that is not positive.
    """
    from plotly.subplots import make_subplots

    if save_path is not None:
        check_suffix(save_path, "html")
    if dtick is not None and dtick < 1:
        raise ValueError(f"dtick is {dtick}: label every 1, 2, … latents, or leave it out.")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale is {scale}: it multiplies the size in pixels; 1 leaves it.")
    panels, ordering = _cosine_panels(
        sae, model, reorder_features, decoder_only, decoder_title, adjust_for_superposition
    )
    how = _how(title, title_suffix, reorder_features, dtick, one_based_indexing, show_values)
    first = how["first_index"]
    figure = make_subplots(1, len(panels), subplot_titles=[name for name, _ in panels])
    for column, (_, matrix) in enumerate(panels, start=1):
        d_sae, n_features = matrix.shape
        figure.add_heatmap(
            z=matrix,
            x=np.arange(n_features) + first,
            y=np.arange(d_sae) + first,
            # A reordered row still tells which latent it is.
            customdata=np.repeat(ordering[:, None] + first, n_features, axis=1),
            hovertemplate="latent %{customdata}<br>feature %{x}<br>cosine %{z:.3f}<extra></extra>",
            texttemplate="%{z:.2f}" if show_values else None,
            coloraxis="coloraxis",
            row=1,
            col=column,
        )
    ticks = {} if dtick is None else {"tick0": first, "dtick": dtick}
    figure.update_xaxes(title_text=how["xlabel"], **ticks)
    figure.update_yaxes(title_text=how["ylabel"], **ticks)
    colors = {"colorscale": "RdBu", "cmin": -1, "cmax": 1}
    figure.update_layout(title=how["title"], height=height, width=width, coloraxis=colors)
    if save_path is not None:
        if Path(save_path).suffix.lower() == ".html":
            page = figure.to_html(config={"showSendToCloud": False})
            write_bytes(Path(save_path), page.encode())
        else:
            inches = (width / _PIXELS_PER_INCH, height / _PIXELS_PER_INCH)
            with paper_style(_font_scale(inches[0] / len(panels), inches[1])):
                picture = Figure(figsize=inches, layout="constrained", facecolor="white")
                draw_heatmaps(picture, panels, **how)
            write_figure(picture, save_path, dpi=_PIXELS_PER_INCH * scale)
    if show_plot:
        figure.show()
        _display_elsewhere_only(figure, figure.show)
    return figure


def find_best_index_reordering_for_saes(saes: Any, model: Any) -> Int[Tensor, " d_sae"]:
    """One ordering of latents that lines them up with the true features over several SAEs.

    They are matched one to one so that the absolute cosine similarity between decoder rows and
    true features, summed over the SAEs, is as large as it can be.

    Args:
        saes: any number of SAEs of the same d_sae, whose latents correspond by index; or one.
    Returns:
        A permutation of the latents, on the CPU: those matched to a feature in the order of their
        features, then the others as they were. With at least as many latents as features,
        `sae.W_dec[ordering][j]` is the match of feature j.
    Raises:
        ValueError: no SAEs, SAEs of different d_sae, or of another width than the model.
    Source: Kuhn's assignment problem, solved by `scipy.optimize.linear_sum_assignment`.
    """
    from scipy.optimize import linear_sum_assignment

    several = [saes] if hasattr(saes, "W_dec") else list(saes)
    if not several:
        raise ValueError("saes is empty: pass at least one SAE to order the latents of.")
    sizes = [sae.W_dec.shape[0] for sae in several]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"one ordering needs SAEs with equally many latents, and these have {sizes}: "
            "order SAEs of different d_sae in separate calls."
        )
    agreement = torch.stack([_cosines(sae.W_dec.T, model, "W_dec").abs() for sae in several])
    latents, matches = linear_sum_assignment(agreement.sum(0).numpy(), maximize=True)
    matched = latents[np.argsort(matches)]
    unmatched = np.setdiff1d(np.arange(sizes[0]), matched)
    return torch.from_numpy(np.concatenate([matched, unmatched]).astype(np.int64))


def plot_correlation_matrix(
    correlation_matrix: Matrix,
    save_path: str | Path | None = None,
    dtick: int = 1,
    title: str | None = None,
    size: tuple[Number, Number] = (2.5, 2),
) -> Figure:
    """A heatmap of the correlations between features.

    Args:
        save_path: where to write the figure, in the format of the suffix; folders are made.
        dtick: label every how many features.
        title: "Feature correlation matrix" if left out.
        size: width and height in inches.
    Returns:
        The figure; see the module for how it is shown.
    Raises:
        ValueError: values outside [−1, 1], a dtick below 1, or a path without a known suffix.
    """
    if title is None:
        title = "Feature correlation matrix"
    with _published_figure(size, save_path) as figure:
        correlation_heatmap(correlation_matrix, title=title, dtick=dtick, figure=figure)
    return figure


@contextmanager
def _published_figure(
    size: tuple[Number, Number], save_path: str | Path | None, font_scale: Number = 1
) -> Iterator[Figure]:
    """An empty figure to draw on in the paper's style, saved and shown; closed if that fails."""
    import matplotlib.pyplot as plt

    if save_path is not None:
        check_suffix(save_path)
    # Before the style: pyplot starts its backend with the first figure, and what a notebook's
    # backend then sets among the rc parameters would be undone at the end of the style.
    figure = plt.figure(figsize=size, layout="constrained", facecolor="white")
    try:
        with paper_style(font_scale):
            yield figure
            if save_path is not None:
                write_figure(figure, save_path)
    except BaseException:
        plt.close(figure)
        raise
    # Elsewhere matplotlib warns that it cannot.
    if _backend_shows_figures():
        plt.show()
        _display_elsewhere_only(figure, _as_any_figure)


def _backend_shows_figures() -> bool:
    backend = matplotlib.get_backend().lower()
    return backend not in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)


def _display_elsewhere_only(figure: Any, display: Callable[[], None]) -> None:
    """Keep the cell that has shown a figure from displaying it again as its value."""
    figure._ipython_display_ = partial(_display_unless_in, _running_cell(), display)


def _display_unless_in(cell: int | None, display: Callable[[], None]) -> None:
    if _running_cell() != cell:
        display()


def _as_any_figure() -> None:
    raise NotImplementedError  # IPython's word for it


def _running_cell() -> int | None:
    """The number of the cell that is running, if this is a notebook or an IPython shell."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell.execution_count if shell else None


def _font_scale(panel_width: Number, height: Number) -> float:
    """Letters that grow with panels larger than the paper's, about 4 inches a side."""
    return max(1.0, min(panel_width, height) / 4)


def _how(
    title: str | None,
    suffix: str | None,
    reordered: Ordering,
    dtick: int | None,
    one_based: bool,
    show_values: bool,
) -> dict[str, Any]:
    """How `draw_heatmaps` draws them."""
    if title is None:
        title = "Cosine similarity with the true features" + (f" ({suffix})" if suffix else "")
    ylabel = "SAE latent" if reordered is False else "SAE latent (reordered)"
    how = {"xlabel": "True feature", "ylabel": ylabel, "title": title, "row_0_on_top": False}
    return {**how, "dtick": dtick, "first_index": int(one_based), "show_values": show_values}


def _cosine_panels(
    sae: Any,
    model: Any,
    reorder_features: Ordering,
    decoder_only: bool,
    decoder_title: str,
    adjust_for_superposition: bool,
) -> tuple[list[Panel], Int[np.ndarray, " d_sae"]]:
    """The matrices to draw, and which latent each of their rows is."""
    d_sae = sae.W_dec.shape[0]
    if reorder_features is True:
        ordering = find_best_index_reordering_for_saes([sae], model).numpy()
    elif reorder_features is False:
        ordering = np.arange(d_sae)
    else:
        ordering = np.array([int(latent) for latent in reorder_features], dtype=np.int64)
    if not np.array_equal(np.sort(ordering), np.arange(d_sae)):
        raise ValueError(
            f"reorder_features must name each of the {d_sae} latents once, from 0 to "
            f"{d_sae - 1}; it is {ordering.tolist()}."
        )
    sources = [] if decoder_only else [("SAE encoder", sae.W_enc, "W_enc")]
    sources.append((decoder_title, sae.W_dec.T, "W_dec"))
    panels = []
    for title, directions, name in sources:
        cosines = _cosines(directions, model, name)
        if adjust_for_superposition:
            # Not a one-to-one match: of two latents that copy one feature, both are to show it.
            nearest = cosines.abs().argmax(dim=1)
            in_common = _cosines(model.embed.weight, model, "embed").fill_diagonal_(0)
            cosines = cosines - cosines.gather(1, nearest[:, None]) * in_common[nearest]
        panels.append((title, to_array(cosines)[ordering]))
    return panels, ordering


def _cosines(
    directions: Float[Tensor, "_ d_sae"], model: Any, name: str
) -> Float[Tensor, "d_sae n_features"]:
    features = model.embed.weight
    if directions.shape[0] != features.shape[0]:
        raise ValueError(
            f"the SAE's {name} is for activations of width {directions.shape[0]}, the toy model's "
            f"are {features.shape[0]} wide: pass the model that the SAE was trained on."
        )
    return cos_sims(directions.detach().cpu().float(), features.detach().cpu().float())
