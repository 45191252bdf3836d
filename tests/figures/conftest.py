"""A small sweep to draw, and a watch on what drawing must leave alone."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("agg")

# Six SAEs out of order, two of them added to the grid; true L0 10.95.
SWEEP = pd.DataFrame(
    {
        "sae_id": [f"sae_{index}" for index in range(6)],
        "added": [False, True, False, False, True, False],
        "l0": [22.0, 5.0, 10.9, 12.5, 8.0, 14.9],
        "l0_coefficient": [0.05, 3.0, 1.0, 0.7, 2.0, 0.3],
        "c_dec": [0.20, 0.25, 0.02, 0.04, 0.12, 0.10],
        "mcc": [0.50, 0.60, 0.99, 0.95, 0.80, 0.85],
    }
)
# s_n of them, of 30 latents: a cliff at n = 11 at L0 10.9, else a slope.
_N, _AT_TRUTH = np.arange(30), (SWEEP["l0"] == 10.9).to_numpy()[:, None]
PROJECTIONS = pd.DataFrame(np.where(_AT_TRUTH, (_N < 11) + 1e-3, 1 - _N / 15), columns=_N)
# Two SAEs logged at three steps, rows out of order; they end at L0 10 and 20.
CURVES = pd.DataFrame(
    {
        "sae_id": ["b", "a", "a", "b", "a", "b"],
        "step": [0, 100, 0, 200, 200, 100],
        "l0": [30.0, 15.0, 25.0, 20.0, 10.0, 22.0],
        "mse_loss": [4.0, 1.0, 3.0, 0.5, 0.25, 2.0],
    }
)
# Two seeds of k = 2 and 4, one finite seed of k = 3; rows out of order.
SEEDS = pd.DataFrame(
    {
        "k": [4, 2, 3, 2, 3, 4],
        "c_dec": [0.5, 0.1, 0.2, 0.3, np.nan, 0.5],
        "c_enc": [0.5, 0.1, 0.2, 0.3, 0.2, 0.5],
        "mcc": [0.5, 0.9, 0.8, 0.7, 0.8, 0.5],
        "mse": [1.0, 3.0, 2.0, 2.5, 1.5, 0.9],
    }
)
SEED_PROJECTIONS = pd.DataFrame({n: n * SEEDS["c_enc"] - 0.1 for n in (1, 2)})
# Two seeds at two correlations and two k each, and one SAE added.
MIXED = pd.DataFrame(
    {
        "correlation": [0.4, 0.4, 0.4, -0.4, -0.4, -0.4],
        "firing_correlation": [0.26, 0.26, 0.26, -0.26, -0.26, -0.26],
        "k": [1.8, 1.8, 2.0, 1.8, 2.0, 1.8],
        "mixing": [0.2, 0.4, 0.0, -0.3, 0.0, -0.5],
        "added": [False, False, False, False, False, True],
        "true_l0": 2.0,
        "component_1": [0.1, 0.3, -0.1, -0.4, -0.1, -0.6],
        "component_2": [0.3, 0.5, 0.1, -0.2, 0.1, -0.4],
    }
)


@pytest.fixture(autouse=True)
def matplotlib_left_alone(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


def rendered(figure: Figure) -> bool:
    """Whether a figure can be drawn; its texts have a size from then on."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return buffer.getvalue().startswith(b"\x89PNG")


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """x and y of every line, by its label; the last one of a label."""
    found = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.get_lines()}
    return {label: (xy[:, 0].tolist(), xy[:, 1].tolist()) for label, xy in found.items()}


def legend_texts(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def cells(figure: Figure, index: int = 0) -> np.ndarray:
    """The values of a heatmap."""
    return np.asarray(figure.axes[index].collections[0].get_array())


def labels(figure: Figure, index: int = 0) -> list[str]:
    """What stands at the x axis of one of its axes."""
    return [label.get_text() for label in figure.axes[index].get_xticklabels()]
