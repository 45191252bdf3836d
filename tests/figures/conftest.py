"""A small sweep to draw, and a watch on what drawing must leave alone."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
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
    """Six SAEs of 30 latents out of order, two of them added to the grid; true L0 10.95."""
    l0 = [22.0, 5.0, 10.9, 12.5, 8.0, 14.9]
    table = pd.DataFrame(
        {
            "sae_id": [f"sae_{index}" for index in range(6)],
            "added": [False, True, False, False, True, False],
            "l0": l0,
            "l0_coefficient": [0.05, 3.0, 1.0, 0.7, 2.0, 0.3],
            "c_dec": [0.20, 0.25, 0.02, 0.04, 0.12, 0.10],
            "mcc": [0.50, 0.60, 0.99, 0.95, 0.80, 0.85],
        }
    )
    n = np.arange(30)
    slope = pd.DataFrame(
        {
            f"s_{k}": [(1 - k / 15) if value != 10.9 else float(k < 11) + 1e-3 for value in l0]
            for k in n
        }
    )
    return pd.concat([table, slope], axis=1)


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


@pytest.fixture
def render() -> Callable[[Figure], bytes]:
    def to_png(figure: Figure) -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        return buffer.getvalue()

    return to_png
