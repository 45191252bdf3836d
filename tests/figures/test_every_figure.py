"""What holds for every figure, whatever it shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.text import Text

from sparse_but_wrong.figures import distributions, heatmaps, mixing, sweep, training
from sparse_but_wrong.figures.overview import overview
from sparse_but_wrong.figures.recommendation import plot_recommendation
from sparse_but_wrong.figures.style import write_figure
from sparse_but_wrong.l0.recommend import recommend_l0
from tests.l0 import evidence

Draw = Callable[[pd.DataFrame, pd.DataFrame, pd.DataFrame], Figure]

KS = pd.DataFrame({"k": [1, 1, 2, 2], "mse": [3.0, 2.5, 1.0, 0.9], "mcc": [0.5, 0.6, 0.9, 1.0]})
MIXED = pd.DataFrame(
    {
        "k": [1.8, 1.8, 2.0],
        "correlation": [0.4, -0.4, 0.4],
        "firing_correlation": [0.26, -0.25, 0.26],
        "true_l0": 2.0,
        "added": [False, True, False],
        "mixing": [0.3, -0.2, 0.0],
        "component_1": [0.4, -0.3, 0.0],
    }
)
MODELS = pd.DataFrame(
    {"model": ["a_b", "a_b", "c"], "l0": [10, 200, 30], "elbow": [200, 200, None]}
)
SCHEDULES = pd.DataFrame({"sae_id": ["a", "b"], "schedule": "down", "mcc": 0.9})
PANEL = distributions.ProjectionPanel(np.linspace(0, 1, 40), 0.2, 3, "right")
X = np.linspace(-0.3, 0.3, 12)

DRAWN: dict[str, Draw] = {
    "decoder_cosines": lambda *_: heatmaps.decoder_cosines([("k = 5", np.eye(4))]),
    "cosines_vs_correlation": lambda *_: heatmaps.cosines_vs_correlation([("k = 5", X, X / 2)]),
    "components": lambda *_: heatmaps.feature_components_heatmaps([("k = 1.8", np.eye(3))]),
    "firing_probabilities": lambda *_: heatmaps.firing_probabilities(np.array([0.4, 0.1])),
    "correlation_heatmap": lambda *_: heatmaps.correlation_heatmap(np.eye(4)),
    "l0_by_model": lambda *_: distributions.l0_by_model(MODELS, 200),
    "projection_histograms": lambda *_: distributions.projection_histograms([PANEL]),
    "mixing_vs_correlation": lambda *_: mixing.mixing_vs_correlation(MIXED),
    "mixing_vs_k": lambda *_: mixing.mixing_vs_k(MIXED),
    "over_seeds": lambda *_: sweep.over_seeds(KS, "mse", 1.5, ylabel="a", title="b"),
    "tradeoff": lambda *_: sweep.tradeoff({"trained": KS, "true": KS}, KS, 1.5),
    "projection_vs_l0": lambda table, s_n, _: sweep.projection_vs_l0(table, s_n, 12, 10.95),
    "l0_vs_coefficient": lambda table, *_: sweep.l0_vs_coefficient(table, 10.95),
    "overview": lambda table, s_n, _: overview(table, s_n, 10.95, ns=(12, 14)),
    "training_curves": lambda _, __, curves: training.training_curves(curves, 10.95),
    "transitions": lambda _, __, curves: training.transitions(
        curves.assign(k=3.0), SCHEDULES, {"down": "from 20 down"}, 10.95, 0.99
    ),
    "recommendation": lambda *_: plot_recommendation(recommend_l0(evidence.sweep())),
}


@pytest.mark.parametrize("name", DRAWN)
def test_it_is_the_same_whatever_style_is_set_and_latex_could_set_its_text(
    name: str,
    sweep: pd.DataFrame,
    projections: pd.DataFrame,
    curves: pd.DataFrame,
    tmp_path: Path,
) -> None:
    def draw(file: str) -> bytes:
        figure = DRAWN[name](sweep, projections, curves)
        for text in figure.findobj(Text):
            assert isinstance(text, Text)
            # LaTeX takes neither bare Unicode nor its own special characters outside of formulas.
            bare = re.sub(r"\$[^$]*\$", "", text.get_text().replace("\N{MINUS SIGN}", "-"))
            assert bare.isascii()
            assert not re.search(r"[%#&_<>~^\\{}$]", bare)
        return write_figure(figure, tmp_path / file, dpi=50).read_bytes()

    plain = draw("plain.png")
    with plt.rc_context():
        sns.set_theme(context="talk", palette="pastel")
        plt.rcParams.update({"figure.dpi": 150, "figure.constrained_layout.use": False})
        assert draw("themed.png") == plain
