from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
import plotly.io
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from sparse_but_wrong.figures import published as plotting
from sparse_but_wrong.figures.published import (
    SEABORN_RC_CONTEXT,
    find_best_index_reordering_for_saes,
    plot_correlation_matrix,
    plot_sae_feat_cos_sims,
    plot_sae_feat_cos_sims_seaborn,
)

matplotlib.use("agg")


@dataclass
class StandInSAE:
    W_enc: Tensor
    W_dec: Tensor


@dataclass
class Embedding:
    weight: Tensor


@dataclass
class StandInModel:
    embed: Embedding


def sae_with_decoder(rows: list[list[float]]) -> StandInSAE:
    """An SAE whose encoder is minus its decoder, so that the two can be told apart."""
    W_dec = torch.tensor(rows).requires_grad_()
    return StandInSAE(W_enc=-W_dec.T, W_dec=W_dec)


def model_with_features(columns: list[list[float]]) -> StandInModel:
    return StandInModel(Embedding(torch.tensor(columns).T.contiguous().requires_grad_()))


ORTHOGONAL = model_with_features([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def size_and_colours(path: Path) -> tuple[tuple[int, int], int]:
    """Of a picture; an empty one has a single colour."""
    with Image.open(path) as picture:
        return picture.size, len(picture.convert("RGB").getcolors(1 << 24) or [])


def cells(figure: Figure, index: int) -> np.ndarray:
    return np.asarray(figure.axes[index].collections[0].get_array())


@pytest.fixture(autouse=True)
def matplotlib_left_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    before = dict(matplotlib.rcParams)
    # Plotly opens a browser where there is one.
    monkeypatch.setattr(plotly.io.renderers, "default", "")
    yield
    assert dict(matplotlib.rcParams) == before
    plt.close("all")
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_style_can_be_used_as_notebooks_use_it(tmp_path: Path) -> None:
    with plt.rc_context(SEABORN_RC_CONTEXT):
        figure = plt.figure(figsize=(3, 1.5))
        plt.title("N=12 Decoder Projection vs SAE L0, $s_n$")
        plt.savefig(tmp_path / "figure.pdf")
        plt.close(figure)
    assert (tmp_path / "figure.pdf").stat().st_size > 0


class TestCosineHeatmaps:
    def test_shows_encoder_and_decoder_latents_by_features(self) -> None:
        sae = sae_with_decoder([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
        figure = plot_sae_feat_cos_sims_seaborn(sae, ORTHOGONAL)
        expected = [[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]
        np.testing.assert_allclose(cells(figure, 0), -np.array(expected), atol=1e-6)
        np.testing.assert_allclose(cells(figure, 1), expected, atol=1e-6)
        encoder, decoder = figure.axes[:2]
        assert (encoder.get_title(), decoder.get_title()) == ("SAE encoder", "SAE decoder")
        assert (decoder.get_xlabel(), decoder.get_ylabel()) == ("True feature", "SAE latent")
        assert tuple(figure.get_size_inches()) == (16, 8)
        # As published: row 0 at the bottom, every latent and feature labelled.
        assert decoder.get_ylim() == (0, 2)
        assert [label.get_text() for label in decoder.get_xticklabels()] == ["0", "1", "2"]

    def test_titles(self) -> None:
        sae = sae_with_decoder([[1.0, 0.0, 0.0]])
        suffixed = plot_sae_feat_cos_sims_seaborn(sae, ORTHOGONAL, "L0 11", decoder_title="Learnt")
        assert suffixed.get_suptitle() == "Cosine similarity with the true features (L0 11)"
        assert suffixed.axes[1].get_title() == "Learnt"
        titled = plot_sae_feat_cos_sims_seaborn(sae, ORTHOGONAL, "L0 11", title="Mine")
        assert titled.get_suptitle() == "Mine"

    def test_decoder_only_numbered_from_one_with_values(self) -> None:
        sae = sae_with_decoder([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
        figure = plot_sae_feat_cos_sims_seaborn(
            sae, ORTHOGONAL, decoder_only=True, one_based_indexing=True, show_values=True, dtick=2
        )
        assert len(figure.axes) == 2  # the heatmap and its colour bar
        axes = figure.axes[0]
        assert tuple(figure.get_size_inches()) == (8, 8)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "3"]
        values = [text.get_text() for text in axes.texts]
        assert values == ["0.60", "0.80", "0.00", "0.00", "0.00", "1.00"]

    def test_with_the_decoder_alone_the_figure_is_half_as_wide(self) -> None:
        figure = plot_sae_feat_cos_sims_seaborn(
            sae_with_decoder([[1.0, 0.0, 0.0]]), ORTHOGONAL, decoder_only=True, width=5, height=2
        )
        assert tuple(figure.get_size_inches()) == (2.5, 2)

    def test_reordering_puts_the_match_of_each_feature_into_its_row(self) -> None:
        sae = sae_with_decoder([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        figure = plot_sae_feat_cos_sims_seaborn(sae, ORTHOGONAL, reorder_features=True)
        np.testing.assert_allclose(cells(figure, 1), np.eye(3), atol=1e-6)
        np.testing.assert_allclose(cells(figure, 0), -np.eye(3), atol=1e-6)
        assert figure.axes[1].get_ylabel() == "SAE latent (reordered)"

    @pytest.mark.parametrize("ordering", [[2, 0, 1], torch.tensor([2, 0, 1])])
    def test_an_ordering_names_the_latent_of_each_row(self, ordering: list[int] | Tensor) -> None:
        sae = sae_with_decoder([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        figure = plot_sae_feat_cos_sims_seaborn(sae, ORTHOGONAL, reorder_features=ordering)
        np.testing.assert_allclose(cells(figure, 1), np.eye(3)[[2, 0, 1]], atol=1e-6)

    @pytest.mark.parametrize("ordering", [[0, 0, 1], [0, 1], [1, 2, 3]])
    def test_an_ordering_that_is_no_permutation_is_refused(self, ordering: list[int]) -> None:
        sae = sae_with_decoder([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        with pytest.raises(ValueError, match="each of the 3 latents once"):
            plot_sae_feat_cos_sims_seaborn(sae, ORTHOGONAL, reorder_features=ordering)

    def test_adjusting_subtracts_what_the_nearest_feature_shares_with_the_others(self) -> None:
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
        np.testing.assert_allclose(cells(figure, 0), expected, atol=1e-6)

    def test_saves_into_a_new_folder(self, tmp_path: Path) -> None:
        sae = sae_with_decoder([[1.0, 0.0, 0.0]])
        path = tmp_path / "plots" / "cosines.pdf"
        plot_sae_feat_cos_sims_seaborn(sae, ORTHOGONAL, save_path=path, width=4, height=2)
        assert path.read_bytes().startswith(b"%PDF")
        assert list(path.parent.iterdir()) == [path]

    def test_half_precision_and_a_gradient_are_no_obstacle(self) -> None:
        sae = sae_with_decoder([[1.0, 0.0, 0.0]])
        half = StandInSAE(sae.W_enc.bfloat16(), sae.W_dec.bfloat16())
        figure = plot_sae_feat_cos_sims_seaborn(half, ORTHOGONAL)
        np.testing.assert_array_equal(cells(figure, 1), [[1, 0, 0]])

    def test_an_sae_of_another_width_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"W_enc is for .* width 2, the toy model's are 3"):
            plot_sae_feat_cos_sims_seaborn(sae_with_decoder([[1.0, 0.0]]), ORTHOGONAL)


class TestPlotly:
    def test_has_the_same_numbers_and_tells_latents_by_their_own_index(self) -> None:
        sae = sae_with_decoder([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        figure = plot_sae_feat_cos_sims(
            sae, ORTHOGONAL, title="Mine", reorder_features=True, one_based_indexing=True, dtick=2
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

    def test_the_published_arguments_by_position(self, tmp_path: Path) -> None:
        path = tmp_path / "cosines.png"
        figure = plot_sae_feat_cos_sims(
            sae_with_decoder([[1.0, 0.0, 0.0]]),
            ORTHOGONAL,
            "L0 11",
            200,
            600,
            True,
            False,
            False,
            path,
            2,
            0.5,
        )
        layout = figure.to_plotly_json()["layout"]
        assert "(L0 11)" in layout["title"]["text"]
        assert (layout["height"], layout["width"]) == (200, 600)
        assert layout["xaxis"]["dtick"] == 2
        assert figure.to_plotly_json()["data"][0]["texttemplate"]
        assert size_and_colours(path)[0] == (300, 100)

    def test_the_published_defaults(self) -> None:
        parameters = list(inspect.signature(plot_sae_feat_cos_sims).parameters.values())
        published = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
        del published["sae"], published["model"], published["title_suffix"]
        assert published == {
            "height": 400,
            "width": 800,
            "show_values": False,
            "reorder_features": False,
            "show_plot": True,
            "save_path": None,
            "dtick": 1,
            "scale": 1.0,
        }

    def test_is_shown_unless_told_otherwise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shown = []
        monkeypatch.setattr(go.Figure, "show", lambda figure: shown.append(figure))
        sae = sae_with_decoder([[1.0, 0.0, 0.0]])
        plot_sae_feat_cos_sims(sae, ORTHOGONAL, "s", show_plot=False)
        assert shown == []
        figure = plot_sae_feat_cos_sims(sae, ORTHOGONAL, title_suffix="s")
        assert shown == [figure]

    def test_is_saved_as_a_page(self, tmp_path: Path) -> None:
        sae = sae_with_decoder([[1.0, 0.0, 0.0]])
        path = tmp_path / "plots" / "cosines.html"
        figure = plot_sae_feat_cos_sims(sae, ORTHOGONAL, decoder_only=True, save_path=path)
        assert len(figure.to_plotly_json()["data"]) == 1
        assert "SAE decoder" in path.read_text()

    @pytest.mark.parametrize("suffix", ["png", "pdf", "svg", "jpg"])
    def test_is_saved_as_a_picture(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / "plots" / f"cosines.{suffix}"
        sae = sae_with_decoder([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
        plot_sae_feat_cos_sims(sae, ORTHOGONAL, "s", save_path=str(path), scale=2.0)
        assert list(path.parent.iterdir()) == [path]
        if suffix in ("png", "jpg"):
            size, n_colours = size_and_colours(path)
            assert size == (1600, 800)
            assert n_colours > 10
        assert plt.get_fignums() == []

    @pytest.mark.parametrize(
        ("arguments", "culprit"),
        [
            ({"save_path": "cosines.docx"}, "docx.*html"),
            ({"dtick": 0}, "dtick is 0"),
            ({"scale": 0.0}, "scale is 0"),
        ],
    )
    def test_what_it_cannot_do_is_refused(self, arguments: dict, culprit: str) -> None:
        with pytest.raises(ValueError, match=culprit):
            plot_sae_feat_cos_sims(sae_with_decoder([[1.0, 0.0, 0.0]]), ORTHOGONAL, **arguments)


class TestReordering:
    def test_matches_one_to_one_where_two_latents_prefer_one_feature(self) -> None:
        sae = sae_with_decoder([[0.8, 0.6, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
        ordering = find_best_index_reordering_for_saes([sae], ORTHOGONAL)
        assert ordering.tolist() == [1, 0, 2]
        assert ordering.dtype == torch.int64

    def test_one_ordering_serves_all_saes_together(self) -> None:
        # Alone the first would keep its order (0.8 + 0.8 against 0.6 + 0.6); the second has the
        # opposite preference more strongly (1 + 1 against 0 + 0).
        model = model_with_features([[1.0, 0.0], [0.0, 1.0]])
        weak = sae_with_decoder([[0.8, 0.6], [0.6, 0.8]])
        strong = sae_with_decoder([[0.0, 1.0], [1.0, 0.0]])
        assert find_best_index_reordering_for_saes([weak], model).tolist() == [0, 1]
        assert find_best_index_reordering_for_saes([weak, strong], model).tolist() == [1, 0]
        by_l0 = {5.0: weak, 11.0: strong}
        assert find_best_index_reordering_for_saes(by_l0.values(), model).tolist() == [1, 0]
        assert find_best_index_reordering_for_saes(strong, model).tolist() == [1, 0]

    def test_more_latents_than_features(self) -> None:
        sae = sae_with_decoder(
            [[0.5, 0.5, 0.5], [0.0, 0.0, 1.0], [0.1, 0.1, 0.1], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
        )
        ordering = find_best_index_reordering_for_saes([sae], ORTHOGONAL)
        assert ordering.tolist() == [4, 3, 1, 0, 2]

    def test_fewer_latents_than_features(self) -> None:
        sae = sae_with_decoder([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
        assert find_best_index_reordering_for_saes([sae], ORTHOGONAL).tolist() == [1, 0]

    def test_no_saes_and_unlike_saes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="saes is empty"):
            find_best_index_reordering_for_saes([], ORTHOGONAL)
        one, two = sae_with_decoder([[1.0, 0, 0]]), sae_with_decoder([[1.0, 0, 0], [0, 1.0, 0]])
        with pytest.raises(ValueError, match=r"equally many latents, and these have \[1, 2\]"):
            find_best_index_reordering_for_saes([one, two], ORTHOGONAL)


class TestCorrelationMatrix:
    def test_draws_the_matrix_and_labels_every_feature(self) -> None:
        matrix = torch.tensor([[1.0, -0.4], [-0.4, 1.0]])
        figure = plot_correlation_matrix(correlation_matrix=matrix)
        np.testing.assert_array_equal(cells(figure, 0), matrix)
        axes = figure.axes[0]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1"]
        assert axes.get_title() == "Feature correlation matrix"
        assert tuple(figure.get_size_inches()) == (2.5, 2)

    def test_title_size_and_dtick(self) -> None:
        figure = plot_correlation_matrix(np.eye(10), dtick=5, title="C", size=(4, 3))
        axes = figure.axes[0]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "5"]
        assert axes.get_title() == "C"
        assert tuple(figure.get_size_inches()) == (4, 3)

    @pytest.mark.parametrize("suffix", ["pdf", "png", "svg"])
    def test_saves_into_a_new_folder(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / "plots" / "toy" / f"correlations.{suffix}"
        plot_correlation_matrix(np.eye(3), save_path=str(path))
        assert list(path.parent.iterdir()) == [path]

    def test_an_unknown_format_is_refused_before_drawing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(plt, "figure", lambda **_: pytest.fail("drew a figure"))
        with pytest.raises(ValueError, match="does not end in a format"):
            plot_correlation_matrix(np.eye(3), save_path=tmp_path / "figure.docx")


class TestShowing:
    def test_the_figure_is_pyplots_current_one(self, tmp_path: Path) -> None:
        plt.figure()
        sae = sae_with_decoder([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]])
        figure = plot_sae_feat_cos_sims_seaborn(sae, ORTHOGONAL)
        assert plt.gcf() is figure
        plt.savefig(tmp_path / "current.png", dpi=20)
        assert size_and_colours(tmp_path / "current.png")[1] > 10
        figure = plot_correlation_matrix(np.eye(2))
        assert plt.gcf() is figure
        assert len(plt.get_fignums()) == 3

    def test_matplotlib_warns_of_many_open_figures(self) -> None:
        with plt.rc_context(rc={"figure.max_open_warning": 2}):
            for _ in range(2):
                plot_correlation_matrix(np.eye(2))
            with pytest.warns(RuntimeWarning, match="More than 2 figures"):
                plot_correlation_matrix(np.eye(2))

    def test_is_shown_by_itself_where_it_can_be(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shown = []
        monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
        plot_correlation_matrix(np.eye(2))
        assert shown == []  # matplotlib would warn that Agg shows nothing
        monkeypatch.setattr(plotting, "_backend_shows_figures", lambda: True)
        figures = [
            plot_correlation_matrix(np.eye(2)),
            plot_sae_feat_cos_sims_seaborn(sae_with_decoder([[1.0, 0.0, 0.0]]), ORTHOGONAL),
        ]
        assert shown == figures

    def test_drawing_that_fails_leaves_no_half_drawn_figure(self) -> None:
        with pytest.raises(ValueError, match="entry"):
            plot_correlation_matrix(np.eye(2) * 3)
        assert plt.get_fignums() == []

    def test_agg_shows_nothing_and_a_notebook_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert not plotting._backend_shows_figures()
        for backend in ("module://matplotlib_inline.backend_inline", "inline", "QtAgg"):
            monkeypatch.setattr(plotting.matplotlib, "get_backend", lambda name=backend: name)
            assert plotting._backend_shows_figures()
