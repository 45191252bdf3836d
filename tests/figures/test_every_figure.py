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

from sparse_but_wrong.figures.decoder_cosines import cosines_vs_correlation, decoder_cosines
from sparse_but_wrong.figures.feature_components import ComponentsPanel, feature_components_heatmaps
from sparse_but_wrong.figures.firing_probabilities import firing_probabilities
from sparse_but_wrong.figures.heatmaps import correlation_heatmap
from sparse_but_wrong.figures.l0_by_model import l0_by_model
from sparse_but_wrong.figures.l0_vs_coefficient import l0_vs_coefficient
from sparse_but_wrong.figures.mixing import mixing_vs_correlation, mixing_vs_k
from sparse_but_wrong.figures.over_seeds import over_seeds
from sparse_but_wrong.figures.overview import overview
from sparse_but_wrong.figures.projection_histograms import ProjectionPanel, projection_histograms
from sparse_but_wrong.figures.projection_vs_l0 import projection_vs_l0
from sparse_but_wrong.figures.save import save_figure
from sparse_but_wrong.figures.tradeoff import tradeoff
from sparse_but_wrong.figures.training_curves import training_curves
from sparse_but_wrong.figures.transitions import transitions

Draw = Callable[[], Figure]


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
NAMES = (
    "firing_probabilities",
    "correlation_heatmap",
    "projection_vs_l0",
    "l0_vs_coefficient",
    "training_curves",
    "overview",
    "decoder_cosines",
    "cosines_vs_correlation",
    "feature_components",
    "l0_by_model",
    "mixing_vs_correlation",
    "mixing_vs_k",
    "over_seeds",
    "projection_histograms",
    "tradeoff",
    "transitions",
)


@pytest.fixture(params=NAMES)
def draw(request: pytest.FixtureRequest, sweep: pd.DataFrame, curves: pd.DataFrame) -> Draw:
    ids = list(dict.fromkeys(curves["sae_id"]))
    of_schedules = pd.DataFrame({"sae_id": ids, "schedule": "down", "mcc": 0.9})
    draws: dict[str, Draw] = {
        "decoder_cosines": lambda: decoder_cosines([("k = 5", np.eye(4))]),
        "cosines_vs_correlation": lambda: cosines_vs_correlation(
            [("k = 5", np.linspace(-0.3, 0.3, 12), np.linspace(-0.1, 0.2, 12))]
        ),
        "feature_components": lambda: feature_components_heatmaps(
            [ComponentsPanel(np.eye(3), "k = 1.8")]
        ),
        "l0_by_model": lambda: l0_by_model(MODELS, 200),
        "mixing_vs_correlation": lambda: mixing_vs_correlation(MIXED),
        "mixing_vs_k": lambda: mixing_vs_k(MIXED),
        "over_seeds": lambda: over_seeds(KS, "mse", 1.5, ylabel="MSE", title="MSE vs k"),
        "projection_histograms": lambda: projection_histograms(
            [ProjectionPanel(np.linspace(0, 1, 40), 0.2, 3, "right")]
        ),
        "tradeoff": lambda: tradeoff({"trained": KS, "true": KS}, KS, 1.5),
        "transitions": lambda: transitions(
            curves.assign(k=3.0), of_schedules, {"down": "from 20 down"}, 10.95, 0.99
        ),
        "firing_probabilities": lambda: firing_probabilities(np.array([0.4, 0.1])),
        "correlation_heatmap": lambda: correlation_heatmap(np.eye(4)),
        "projection_vs_l0": lambda: projection_vs_l0(sweep, 12, 10.95),
        "l0_vs_coefficient": lambda: l0_vs_coefficient(sweep, 10.95),
        "training_curves": lambda: training_curves(curves, 10.95),
        "overview": lambda: overview(sweep, 10.95, ns=(12, 14)),
    }
    return draws[request.param]


def test_it_is_saved_the_same_whatever_style_the_user_has_set(draw: Draw, tmp_path: Path) -> None:
    plain = save_figure(draw(), tmp_path / "plain")
    with plt.rc_context():
        sns.set_theme(context="talk", palette="pastel")
        plt.rcParams.update({"figure.dpi": 150, "figure.constrained_layout.use": False})
        themed = save_figure(draw(), tmp_path / "themed")
    assert [path.read_bytes() for path in plain] == [path.read_bytes() for path in themed]


def test_latex_could_set_its_text(draw: Draw) -> None:
    """LaTeX takes neither bare Unicode nor its own special characters outside of formulas."""
    for text in draw().findobj(Text):
        assert isinstance(text, Text)
        outside_formulas = re.sub(r"\$[^$]*\$", "", text.get_text().replace("\N{MINUS SIGN}", "-"))
        assert outside_formulas.isascii()
        assert not re.search(r"[%#&_<>~^\\{}$]", outside_formulas)
