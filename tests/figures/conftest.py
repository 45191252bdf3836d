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


@pytest.fixture(autouse=True)
def matplotlib_left_alone(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []
    logged = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert logged == []


@pytest.fixture
def sweep() -> pd.DataFrame:
    """Six SAEs out of order, two of them added to the grid; true L0 10.95."""
    return pd.DataFrame(
        {
            "sae_id": [f"sae_{index}" for index in range(6)],
            "added": [False, True, False, False, True, False],
            "l0": [22.0, 5.0, 10.9, 12.5, 8.0, 14.9],
            "l0_coefficient": [0.05, 3.0, 1.0, 0.7, 2.0, 0.3],
            "c_dec": [0.20, 0.25, 0.02, 0.04, 0.12, 0.10],
            "mcc": [0.50, 0.60, 0.99, 0.95, 0.80, 0.85],
        }
    )


@pytest.fixture
def projections(sweep: pd.DataFrame) -> pd.DataFrame:
    """s_n of the SAEs of `sweep`, of 30 latents: a cliff at n = 11 at L0 10.9, else a slope."""
    n = np.arange(30)
    at_truth = (sweep["l0"] == 10.9).to_numpy()[:, None]
    return pd.DataFrame(np.where(at_truth, (n < 11) + 1e-3, 1 - n / 15), columns=n)


@pytest.fixture
def curves() -> pd.DataFrame:
    """Two SAEs logged at three steps, rows out of order; they end at L0 10 and 20."""
    return pd.DataFrame(
        {
            "sae_id": ["b", "a", "a", "b", "a", "b"],
            "step": [0, 100, 0, 200, 200, 100],
            "l0": [30.0, 15.0, 25.0, 20.0, 10.0, 22.0],
            "mse_loss": [4.0, 1.0, 3.0, 0.5, 0.25, 2.0],
        }
    )


def rendered(figure: Figure) -> bool:
    """Whether a figure can be drawn; its texts have a size from then on."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=50)
    return buffer.getvalue().startswith(b"\x89PNG")


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """x and y of every line, by its label; the last one of a label."""
    return {
        str(line.get_label()): (
            np.asarray(line.get_xdata()).tolist(),
            np.asarray(line.get_ydata()).tolist(),
        )
        for line in axes.get_lines()
    }


def legend_texts(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]
