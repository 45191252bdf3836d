"""The published plot functions: their arguments, the numbers they draw, how they are shown."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
import plotly.io
import pytest
import torch
from PIL import Image

from sparse_but_wrong.figures import published
from sparse_but_wrong.figures.published import (
    SEABORN_RC_CONTEXT,
    find_best_index_reordering_for_saes,
    plot_correlation_matrix,
    plot_sae_feat_cos_sims,
    plot_sae_feat_cos_sims_seaborn,
)
from tests.figures.conftest import cells, labels


def sae_with_decoder(rows: list[list[float]]) -> Any:
    """An SAE whose encoder is minus its decoder, so that the two can be told apart."""
    W_dec = torch.tensor(rows).requires_grad_()
    return SimpleNamespace(W_enc=-W_dec.T, W_dec=W_dec)


def model_with_features(columns: list[list[float]]) -> Any:
    weight = torch.tensor(columns).T.contiguous().requires_grad_()
    return SimpleNamespace(embed=SimpleNamespace(weight=weight))


EYE = torch.eye(3).tolist()
ORTHOGONAL = model_with_features(EYE)
SAE = sae_with_decoder([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
SHUFFLED = sae_with_decoder([EYE[2], EYE[0], EYE[1]])


def size_and_colours(path: Path) -> tuple[tuple[int, int], int]:
    """Of a picture; an empty one has a single colour."""
    with Image.open(path) as picture:
        return picture.size, len(picture.convert("RGB").getcolors(1 << 24) or [])


@pytest.fixture(autouse=True)
def no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plotly opens one where there is one."""
    monkeypatch.setattr(plotly.io.renderers, "default", "")


def test_style_can_be_used_as_notebooks_use_it(tmp_path: Path) -> None:
    with plt.rc_context(SEABORN_RC_CONTEXT):
        plt.figure(figsize=(3, 1.5))
        plt.title("N=12 Decoder Projection vs SAE L0, $s_n$")
        plt.savefig(tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").stat().st_size > 0


def test_shows_encoder_and_decoder_latents_by_features() -> None:
    figure = plot_sae_feat_cos_sims_seaborn(SAE, ORTHOGONAL, "L0 11", decoder_title="Learnt")
    expected = [[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]
    np.testing.assert_allclose(cells(figure, 0), -np.array(expected), atol=1e-6)
    np.testing.assert_allclose(cells(figure, 1), expected, atol=1e-6)
    encoder, decoder = figure.axes[:2]
    assert (encoder.get_title(), decoder.get_title()) == ("SAE encoder", "Learnt")
    assert (decoder.get_xlabel(), decoder.get_ylabel()) == ("True feature", "SAE latent")
    assert figure.get_suptitle() == "Cosine similarity with the true features (L0 11)"
    assert tuple(figure.get_size_inches()) == (16, 8)
    # As published: row 0 at the bottom, every latent and feature labelled.
    assert decoder.get_ylim() == (0, 2)
    assert labels(figure, 1) == ["0", "1", "2"]


def test_decoder_only_numbered_from_one_with_values_saved_into_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "plots/cosines.pdf"
    figure = plot_sae_feat_cos_sims_seaborn(
        SAE,
        ORTHOGONAL,
        "L0 11",
        "Mine",
        width=5,
        height=2,
        one_based_indexing=True,
        dtick=2,
        save_path=path,
        decoder_only=True,
        show_values=True,
    )
    assert len(figure.axes) == 2  # the heatmap and its colour bar
    assert tuple(figure.get_size_inches()) == (2.5, 2)
    assert labels(figure) == ["1", "3"]
    values = [text.get_text() for text in figure.axes[0].texts]
    assert values == ["0.60", "0.80", "0.00", "0.00", "0.00", "1.00"]
    assert figure.get_suptitle() == "Mine"
    assert path.read_bytes().startswith(b"%PDF")
    assert list(path.parent.iterdir()) == [path]


def test_reordering_puts_the_match_of_each_feature_or_the_latent_named_into_a_row() -> None:
    figure = plot_sae_feat_cos_sims_seaborn(SHUFFLED, ORTHOGONAL, reorder_features=True)
    np.testing.assert_allclose(cells(figure, 1), np.eye(3), atol=1e-6)
    np.testing.assert_allclose(cells(figure, 0), -np.eye(3), atol=1e-6)
    assert figure.axes[1].get_ylabel() == "SAE latent (reordered)"
    for ordering in ([2, 0, 1], torch.tensor([2, 0, 1])):
        figure = plot_sae_feat_cos_sims_seaborn(
            sae_with_decoder(EYE), ORTHOGONAL, reorder_features=ordering
        )
        np.testing.assert_allclose(cells(figure, 1), np.eye(3)[[2, 0, 1]], atol=1e-6)


def test_adjusting_subtracts_what_the_nearest_feature_shares_with_the_others() -> None:
    model = model_with_features([[1.0, 0.0], [0.6, 0.8]])  # cosine 0.6
    sae = sae_with_decoder([[2.0, 0.0], [0.6, 0.8], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    figure = plot_sae_feat_cos_sims_seaborn(
        sae, model, decoder_only=True, adjust_for_superposition=True
    )
    expected = [
        [1.0, 0.0],  # feature 0
        [0.0, 1.0],  # feature 1
        [-1.0, 0.0],  # minus feature 0
        [-0.48, 0.8],  # cosines (0, 0.8), nearest feature 1: 0 − 0.8 · 0.6
        [0.0, 0.0],  # a latent of zeros
    ]
    np.testing.assert_allclose(cells(figure), expected, atol=1e-6)


def test_half_precision_and_a_gradient_are_no_obstacle() -> None:
    sae = sae_with_decoder(EYE[:1])
    half = SimpleNamespace(W_enc=sae.W_enc.bfloat16(), W_dec=sae.W_dec.bfloat16())
    figure = plot_sae_feat_cos_sims_seaborn(half, ORTHOGONAL)
    np.testing.assert_array_equal(cells(figure, 1), [[1, 0, 0]])


def test_plotly_has_the_same_numbers_and_tells_latents_by_their_own_index() -> None:
    figure = plot_sae_feat_cos_sims(
        SHUFFLED, ORTHOGONAL, title="Mine", reorder_features=True, one_based_indexing=True, dtick=2
    )
    traces: Any = figure.data
    encoder, decoder = traces
    np.testing.assert_allclose(decoder.z, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(encoder.z, -np.eye(3), atol=1e-6)
    np.testing.assert_array_equal(decoder.customdata[:, 0], [2, 3, 1])
    np.testing.assert_array_equal(decoder.x, [1, 2, 3])
    layout = figure.to_plotly_json()["layout"]
    assert layout["title"]["text"] == "Mine"
    assert (layout["coloraxis"]["cmin"], layout["coloraxis"]["cmax"]) == (-1, 1)
    assert [note["text"] for note in layout["annotations"]] == ["SAE encoder", "SAE decoder"]
    assert "autorange" not in layout["yaxis2"]  # row 0 at the bottom
    assert (layout["xaxis"]["tick0"], layout["xaxis"]["dtick"]) == (1, 2)


def test_plotly_takes_the_published_arguments_by_position(tmp_path: Path) -> None:
    path = tmp_path / "cosines.png"
    given = ("L0 11", 200, 600, True, False, False, path, 2, 0.5)
    figure = plot_sae_feat_cos_sims(SAE, ORTHOGONAL, *given).to_plotly_json()
    assert "(L0 11)" in figure["layout"]["title"]["text"]
    assert (figure["layout"]["height"], figure["layout"]["width"]) == (200, 600)
    assert figure["layout"]["xaxis"]["dtick"] == 2
    assert figure["data"][0]["texttemplate"]
    assert size_and_colours(path)[0] == (300, 100)
    parameters = list(inspect.signature(plot_sae_feat_cos_sims).parameters.values())
    defaults = [p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][3:]
    assert defaults == [400, 800, False, False, True, None, 1, 1.0]


@pytest.mark.parametrize("suffix", ["html", "png", "pdf", "svg", "jpg"])
def test_plotly_is_saved_as_a_page_or_a_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "plots" / f"cosines.{suffix}"
    figure = plot_sae_feat_cos_sims(
        SAE, ORTHOGONAL, "s", decoder_only=True, save_path=str(path), scale=2.0
    )
    assert len(figure.to_plotly_json()["data"]) == 1
    assert list(path.parent.iterdir()) == [path]
    if suffix == "html":
        assert "SAE decoder" in path.read_text()
    if suffix in ("png", "jpg"):
        size, n_colours = size_and_colours(path)
        assert size == (1600, 800)
        assert n_colours > 10
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # One to one, where two latents prefer one feature.
        ([[0.8, 0.6, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]], [1, 0, 2]),
        ([[0.5, 0.5, 0.5], EYE[2], [0.1, 0.1, 0.1], EYE[1], EYE[0]], [4, 3, 1, 0, 2]),
        ([EYE[2], EYE[0]], [1, 0]),  # fewer latents than features
    ],
)
def test_latents_are_matched_to_features(rows: list[list[float]], expected: list[int]) -> None:
    ordering = find_best_index_reordering_for_saes([sae_with_decoder(rows)], ORTHOGONAL)
    assert ordering.tolist() == expected
    assert ordering.dtype == torch.int64


def test_one_ordering_serves_all_saes_together() -> None:
    # Alone the first would keep its order (0.8 + 0.8 against 0.6 + 0.6); the second has the
    # opposite preference more strongly (1 + 1 against 0 + 0).
    model = model_with_features([[1.0, 0.0], [0.0, 1.0]])
    weak = sae_with_decoder([[0.8, 0.6], [0.6, 0.8]])
    strong = sae_with_decoder([[0.0, 1.0], [1.0, 0.0]])
    for saes, expected in (
        ([weak], [0, 1]),
        ([weak, strong], [1, 0]),
        ({5.0: weak, 11.0: strong}.values(), [1, 0]),
        (strong, [1, 0]),
    ):
        assert find_best_index_reordering_for_saes(saes, model).tolist() == expected


@pytest.mark.parametrize("suffix", ["pdf", "png", "svg"])
def test_a_correlation_matrix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "plots" / "toy" / f"correlations.{suffix}"
    matrix = torch.tensor([[1.0, -0.4], [-0.4, 1.0]])
    figure = plot_correlation_matrix(correlation_matrix=matrix, save_path=str(path))
    np.testing.assert_array_equal(cells(figure), matrix)
    assert labels(figure) == ["0", "1"]
    assert figure.axes[0].get_title() == "Feature correlation matrix"
    assert tuple(figure.get_size_inches()) == (2.5, 2)
    assert list(path.parent.iterdir()) == [path]
    figure = plot_correlation_matrix(np.eye(10), dtick=5, title="C", size=(4, 3))
    assert labels(figure) == ["0", "5"]
    assert figure.axes[0].get_title() == "C"
    assert tuple(figure.get_size_inches()) == (4, 3)


@pytest.mark.parametrize(
    ("plot", "arguments", "culprit"),
    [
        (plot_sae_feat_cos_sims, {"save_path": "cosines.docx"}, "docx.*html"),
        (plot_sae_feat_cos_sims, {"dtick": 0}, "dtick is 0"),
        (plot_sae_feat_cos_sims, {"scale": 0.0}, "scale is 0"),
        (plot_sae_feat_cos_sims_seaborn, {"reorder_features": [0, 0]}, "the 2 latents once"),
        (plot_sae_feat_cos_sims_seaborn, {"reorder_features": [0]}, "the 2 latents once"),
        (plot_sae_feat_cos_sims_seaborn, {"reorder_features": [1, 2]}, "the 2 latents once"),
        (
            plot_sae_feat_cos_sims_seaborn,
            {"sae": sae_with_decoder([[1.0, 0.0]])},
            "W_enc.* 2, .* 3",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(plot: Any, arguments: dict, culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit):
        plot(**{"sae": SAE, "model": ORTHOGONAL, **arguments})
    assert plt.get_fignums() == []


def test_unlike_saes_and_no_figure_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="saes is empty"):
        find_best_index_reordering_for_saes([], ORTHOGONAL)
    with pytest.raises(ValueError, match=r"equally many latents, and these have \[2, 3\]"):
        find_best_index_reordering_for_saes([SAE, SHUFFLED], ORTHOGONAL)
    with pytest.raises(ValueError, match="entry"):
        plot_correlation_matrix(np.eye(2) * 3)
    assert plt.get_fignums() == []  # nothing half-drawn
    monkeypatch.setattr(plt, "figure", lambda **_: pytest.fail("drew a figure"))
    with pytest.raises(ValueError, match="does not end in a format"):
        plot_correlation_matrix(np.eye(3), save_path="figure.docx")


def test_the_figure_is_pyplots_current_one_and_stays_open(tmp_path: Path) -> None:
    with plt.rc_context(rc={"figure.max_open_warning": 2}):
        plt.figure()
        figure = plot_sae_feat_cos_sims_seaborn(SAE, ORTHOGONAL)
        assert plt.gcf() is figure
        plt.savefig(tmp_path / "current.png", dpi=20)
        assert size_and_colours(tmp_path / "current.png")[1] > 10
        with pytest.warns(RuntimeWarning, match="More than 2 figures"):
            figure = plot_correlation_matrix(np.eye(2))
    assert plt.gcf() is figure
    assert len(plt.get_fignums()) == 3


def test_is_shown_by_itself_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(go.Figure, "show", lambda figure: shown.append(figure))
    plot_sae_feat_cos_sims(SAE, ORTHOGONAL, "s", show_plot=False)
    assert shown == []
    figures: list[Any] = [plot_sae_feat_cos_sims(SAE, ORTHOGONAL, title_suffix="s")]
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    plot_correlation_matrix(np.eye(2))
    assert shown == figures  # matplotlib would warn that Agg shows nothing
    for backend in ("module://matplotlib_inline.backend_inline", "inline", "QtAgg"):
        monkeypatch.setattr(published.matplotlib, "get_backend", lambda name=backend: name)
        figures.append(plot_correlation_matrix(np.eye(2)))
    figures.append(plot_sae_feat_cos_sims_seaborn(SAE, ORTHOGONAL))
    assert shown == figures
