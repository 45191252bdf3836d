from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.patches import Rectangle, StepPatch

from sparse_but_wrong.figures.distributions import (
    SHARES,
    l0_by_model,
    plot_evaluations,
    projection_histograms,
)
from sparse_but_wrong.metrics.evaluation import Evaluation
from tests.figures.conftest import legend_texts, lines, rendered
from tests.metrics.evaluated import evaluated

H = 40


def evaluation(l0: float, d_sae: int = H) -> Evaluation:
    """All 100 samples have `l0` active latents; one latent is dead."""
    return replace(
        evaluated()[0],
        n_samples=100,
        d_sae=d_sae,
        l0=l0,
        l0_counts=np.bincount([int(l0)] * 100, minlength=d_sae + 1),
        densities=np.linspace(0, 0.5, d_sae),
        c_dec=0.1 + l0 / 100,
        c_enc=0.2,
        projections=np.linspace(5, -5, d_sae) / (1 + l0),
        projection_standard_errors=np.full(d_sae, 0.01),
    )


def test_curves_hold_the_numbers_in_order_of_l0() -> None:
    figure = plot_evaluations([evaluation(8.0), evaluation(2.0)])
    all_n, over_l0, similarity, l0, density, _ = figure.axes
    assert [line.get_label() for line in all_n.get_lines()] == ["2", "8"]
    drawn = all_n.get_lines()[0]
    at = np.asarray(drawn.get_xdata(), dtype=int)
    assert at[0] == 1
    assert at[-1] == H // 2
    assert np.allclose(drawn.get_ydata(), evaluation(2.0).projections[at])
    (first, *_) = cast(ErrorbarContainer, over_l0.containers[0]).lines
    assert np.allclose(first.get_xdata(), [2.0, 8.0])
    n = int(SHARES[0] * H)
    assert np.allclose(first.get_ydata(), [evaluation(x).projections[n] for x in (2.0, 8.0)])
    assert np.allclose(similarity.get_lines()[0].get_ydata(), [0.12, 0.18])
    # All samples have two active latents: one bar, from 2 to 3.
    values, edges, _ = cast(StepPatch, l0.patches[0]).get_data()
    assert values.tolist() == [1.0]
    assert edges.tolist() == [2.0, 3.0]
    values, _, _ = cast(StepPatch, density.patches[0]).get_data()
    assert values.sum() == H - 1  # the dead one has no place on the axis


@pytest.mark.parametrize(
    ("evaluations", "scale"),
    [
        ([evaluation(3.0), evaluation(4.0, 12)], "log"),  # of two widths
        ([evaluation(0.0)], "linear"),  # all its latents are silent
        ([evaluation(0.0), evaluation(3.0)], "log"),
    ],
)
def test_is_drawn_whatever_there_is(evaluations: list[Evaluation], scale: str) -> None:
    figure = plot_evaluations(evaluations)
    assert figure.axes[1].get_xscale() == scale
    assert rendered(figure)


def test_similarities_close_to_each_other_keep_off_the_frame() -> None:
    similarity = plot_evaluations([evaluation(l0) for l0 in (10.0, 10.1)]).axes[2]
    low, high = similarity.get_ylim()
    assert low == 0
    assert high > 1.05 * 0.201


def test_histograms_share_their_bins_and_mark_s_n() -> None:
    panels = [
        ("right", np.array([0.0] * 6 + [1.0] * 2)),
        ("wrong", np.array([-1.0, 0.5, 1.5, 3.0])),
    ]
    figure = projection_histograms(panels, [0.0, 0.5], 18)
    for axes, s_n in zip(figure.axes, (0.0, 0.5), strict=True):
        bars = cast(list[Rectangle], axes.patches)
        assert sum(bar.get_height() for bar in bars) == pytest.approx(1)
        assert bars[0].get_x() == -1
        (line,) = lines(axes).values()
        assert line[0] == [s_n, s_n]
        assert axes.get_yscale() == "log"
    assert legend_texts(figure.axes[1]) == ["$s_{18} = 0.500$"]


def test_a_dot_per_sae_and_models_in_the_order_of_their_medians() -> None:
    table = pd.DataFrame(
        {
            "model": ["large", "small", "large", "small", "small"],
            "l0": [300.0, 10.0, 500.0, 20.0, 40.0],
            "elbow": [200.0, np.nan, np.nan, np.nan, np.nan],
        }
    )
    axes = l0_by_model(table, 200).axes[0]
    drawn = lines(axes)
    assert drawn["SAE"][0] == [10, 500, 20, 40]
    assert np.round(drawn["SAE"][1]).tolist() == [0, 1, 0, 0]
    assert drawn["SAE where an elbow is reported"][0] == [300]
    assert drawn["Median"][0] == [20, 400]
    assert "L0 = 200" in drawn
    assert [label.get_text() for label in axes.get_yticklabels()] == ["small (3)", "large (2)"]
