"""What holds for every figure, whatever it shows, and what none can be drawn of."""

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
from sparse_but_wrong.figures.recommendation import plot_recommendation
from sparse_but_wrong.figures.style import write_figure
from sparse_but_wrong.l0.recommend import recommend_l0
from tests.figures.conftest import CURVES, MIXED, PROJECTIONS, SEED_PROJECTIONS, SEEDS, SWEEP
from tests.l0 import evidence

MODELS = pd.DataFrame({"model": ["a_b", "a_b", "c"], "l0": [10, 200, 30], "elbow": [200, 2, None]})
SCHEDULES = pd.DataFrame({"sae_id": ["a", "b"], "schedule": "down", "mcc": 0.9})
X = np.linspace(-0.3, 0.3, 12)
NAN = np.array([[0.5, np.nan], [0.0, 1.0]])
K_CURVES, DOWN = CURVES.assign(k=3.0), {"down": "from 20 down"}

DRAWN: dict[str, Callable[[], Figure]] = {
    "decoder_cosines": lambda: heatmaps.decoder_cosines([("k = 5", np.eye(4))]),
    "cosines_vs_correlation": lambda: heatmaps.cosines_vs_correlation([("k = 5", X, X / 2)]),
    "components": lambda: heatmaps.feature_components_heatmaps([("k = 1.8", np.eye(3))]),
    "firing_probabilities": lambda: heatmaps.firing_probabilities(np.array([0.4, 0.1])),
    "correlation_heatmap": lambda: heatmaps.correlation_heatmap(np.eye(4)),
    "l0_by_model": lambda: distributions.l0_by_model(MODELS, 200),
    "histograms": lambda: distributions.projection_histograms([("right", X)], [0.2], 3),
    "mixing_vs_correlation": lambda: mixing.mixing_vs_correlation(MIXED),
    "mixing_vs_k": lambda: mixing.mixing_vs_k(MIXED),
    "over_seeds": lambda: sweep.over_seeds(SEEDS, "mse", 1.5, ylabel="a", title="b"),
    "over_seeds_all": lambda: sweep.overview_over_seeds(SEEDS, SEED_PROJECTIONS, 3.1, ns=(1, 2)),
    "tradeoff": lambda: sweep.tradeoff({"trained": SEEDS, "true": SEEDS}, SEEDS, 1.5),
    "projection_vs_l0": lambda: sweep.projection_vs_l0(SWEEP, PROJECTIONS, 12, 10.95),
    "l0_vs_coefficient": lambda: sweep.l0_vs_coefficient(SWEEP, 10.95),
    "overview": lambda: sweep.overview(SWEEP, PROJECTIONS, 10.95, ns=(12, 14)),
    "training_curves": lambda: training.training_curves(CURVES, 10.95),
    "transitions": lambda: training.transitions(K_CURVES, SCHEDULES, DOWN, 10.95, 0.99),
    "recommendation": lambda: plot_recommendation(recommend_l0(evidence.sweep())),
}


@pytest.mark.parametrize("name", DRAWN)
def test_it_is_the_same_whatever_style_is_set_and_latex_could_set_its_text(
    name: str, tmp_path: Path
) -> None:
    def draw(file: str) -> bytes:
        figure = DRAWN[name]()
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
    assert plt.get_fignums() == []


def of_seeds(table: pd.DataFrame, ns: tuple[int, ...] = (1,)) -> Figure:
    return sweep.overview_over_seeds(table, SEED_PROJECTIONS, 3.1, ns=ns)


@pytest.mark.parametrize(
    ("draw", "culprit"),
    [
        (lambda: heatmaps.correlation_heatmap(np.array([[1.0, 2], [0, 1]])), r"\(0, 1\) .* is 2.0"),
        (lambda: heatmaps.correlation_heatmap(NAN), r"\(0, 1\) .* is nan"),
        (lambda: heatmaps.correlation_heatmap(np.zeros((0, 0))), "missing"),
        (lambda: heatmaps.correlation_heatmap(np.eye(3), dtick=0), "dtick is 0"),
        (lambda: heatmaps.decoder_cosines([]), "no panels"),
        (lambda: heatmaps.decoder_cosines([("broken", NAN)]), "'broken'.*not finite"),
        (lambda: heatmaps.feature_components_heatmaps([]), "no panels"),
        (lambda: heatmaps.cosines_vs_correlation([]), "no panels"),
        (lambda: heatmaps.cosines_vs_correlation([("broken", np.zeros(2), NAN[0])]), "'broken'"),
        (lambda: heatmaps.firing_probabilities(np.array([0.5, 1.5])), r"probabilities\[1\] is 1.5"),
        (lambda: heatmaps.firing_probabilities(NAN[0]), r"probabilities\[1\] is nan"),
        (lambda: heatmaps.firing_probabilities(np.array([])), "no probabilities"),
        (lambda: distributions.plot_evaluations([]), "no evaluations"),
        (lambda: distributions.projection_histograms([], [], 1), "no panels"),
        (lambda: distributions.projection_histograms([("broken", NAN[0])], [0], 1), "'broken'"),
        (lambda: distributions.l0_by_model(MODELS.drop(columns="elbow")), "lacks .* elbow"),
        (lambda: distributions.l0_by_model(MODELS.assign(l0=np.nan)), "positive L0"),
        (lambda: distributions.l0_by_model(MODELS.iloc[:0]), "positive L0"),
        (lambda: mixing.mixing_vs_correlation(MIXED.assign(mixing=np.nan)), "none of .* 6 rows"),
        (lambda: mixing.mixing_vs_k(MIXED.drop(columns="true_l0")), "lacks .* true_l0"),
        (lambda: sweep.projection_vs_l0(SWEEP, PROJECTIONS, 99, 10.95), "99"),
        (lambda: sweep.projection_vs_l0(SWEEP.iloc[:0], PROJECTIONS, 12), "none of .* 0 rows"),
        (lambda: sweep.l0_vs_coefficient(SWEEP.assign(l0_coefficient=None)), "none of .* 6 rows"),
        (lambda: sweep.overview(SWEEP, PROJECTIONS, 10.95, ns=()), "ns is empty"),
        (lambda: sweep.overview(SWEEP, PROJECTIONS, 10.95, ns=(12, 40)), "lacks .* 40"),
        (
            lambda: sweep.overview(SWEEP.drop(columns="mcc"), PROJECTIONS, 9, ns=(1,)),
            "lacks .* mcc",
        ),
        (lambda: of_seeds(SEEDS, ns=()), "ns is empty"),
        (lambda: of_seeds(SEEDS.drop(columns="k")), "lacks the columns k"),
        (lambda: of_seeds(SEEDS.assign(c_dec=np.nan)), "none of .* 6 rows has a finite c_dec"),
        (lambda: sweep.tradeoff({}, SEEDS, 2.2), "0 curves"),
        (lambda: sweep.tradeoff({str(i): SEEDS for i in range(5)}, SEEDS, 2.2), "5 curves"),
        (lambda: sweep.tradeoff({"a": SEEDS.assign(mse=np.nan)}, SEEDS, 2.2), "none of"),
        (lambda: sweep.tradeoff({"a": SEEDS.drop(columns="mse")}, SEEDS, 2.2), "lacks .* mse"),
        (lambda: training.training_curves(CURVES.assign(l0=np.nan)), "none of .* 6 rows"),
        (
            lambda: training.training_curves(CURVES.loc[:, ["sae_id", "step"]]),
            "lacks .* l0, mse_loss",
        ),
        (lambda: training.transitions(K_CURVES, SCHEDULES, {}, 10.95, 0.99), "0 schedules"),
        (
            lambda: training.transitions(K_CURVES, SCHEDULES.loc[:, ["sae_id"]], DOWN, 10.95, 0.99),
            "lacks .* schedule, mcc",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Callable[[], Figure], culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit):
        draw()
