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

from sparse_but_wrong.figures.firing_probabilities import firing_probabilities
from sparse_but_wrong.figures.heatmaps import correlation_heatmap
from sparse_but_wrong.figures.l0_vs_coefficient import l0_vs_coefficient
from sparse_but_wrong.figures.overview import overview
from sparse_but_wrong.figures.projection_vs_l0 import projection_vs_l0
from sparse_but_wrong.figures.save import save_figure
from sparse_but_wrong.figures.training_curves import training_curves

Draw = Callable[[], Figure]


@pytest.fixture(
    params=[
        "firing_probabilities",
        "correlation_heatmap",
        "projection_vs_l0",
        "l0_vs_coefficient",
        "training_curves",
        "overview",
    ]
)
def draw(request: pytest.FixtureRequest, sweep: pd.DataFrame, curves: pd.DataFrame) -> Draw:
    draws: dict[str, Draw] = {
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
