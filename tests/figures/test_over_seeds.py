"""Means and bands over seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from sparse_but_wrong.figures.over_seeds import over_seeds, overview_over_seeds, seed_statistics

Render = Callable[[Figure], bytes]


@pytest.fixture
def seeds() -> pd.DataFrame:
    """Two seeds of k = 2 and 4, one finite seed of k = 3; rows out of order."""
    return pd.DataFrame(
        {
            "k": [4, 2, 3, 2, 3, 4],
            "c_dec": [0.5, 0.1, 0.2, 0.3, np.nan, 0.5],
            "c_enc": [0.5, 0.1, 0.2, 0.3, 0.2, 0.5],
            "mcc": [0.5, 0.9, 0.8, 0.7, 0.8, 0.5],
            "s_1": [0.5, 0.001, -0.2, 0.3, 0.2, 0.5],
            "s_2": [0.4, 0.001, -0.1, 0.2, 0.2, 0.4],
        }
    )


def test_statistics(seeds: pd.DataFrame) -> None:
    found = seed_statistics(seeds, "c_dec")
    assert found["k"].tolist() == [2, 3, 4]
    assert found["mean"].tolist() == pytest.approx([0.2, 0.2, 0.5])
    assert found["std"].tolist() == pytest.approx([0.02**0.5, 0, 0])


def test_what_is_drawn(seeds: pd.DataFrame, render: Render) -> None:
    figure = over_seeds(seeds, "c_dec", 3.1, ylabel="c", title="t")
    (axes,) = figure.axes
    line = axes.get_lines()[0]
    assert np.asarray(line.get_xdata()).tolist() == [2, 3, 4]
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([0.2, 0.2, 0.5])
    (band,) = (c for c in axes.collections if isinstance(c, PolyCollection))
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert heights.max() == pytest.approx(0.5)
    assert heights.min() == pytest.approx(0.2 - 0.02**0.5)
    assert axes.get_xlabel() == "$k$ in training (1 not finite, left out)"
    assert axes.get_legend_handles_labels()[1] == ["Mean over seeds", "True L0 = 3.1"]
    assert len(render(figure)) > 2000


def test_the_overview(seeds: pd.DataFrame, render: Render) -> None:
    figure = overview_over_seeds(seeds, 3.1, ns=(1, 2))
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "$s_n$",
        r"$c_\mathrm{dec}$",
        r"$c_\mathrm{enc}$",
        "matched cosine",
    ]
    lines = [line for line in figure.axes[0].get_lines() if str(line.get_label()).startswith("$n")]
    assert np.asarray(lines[0].get_ydata()).tolist() == pytest.approx([0.1505, 0.0, 0.5])
    assert figure.axes[0].get_xlabel() == "$k$ in training"
    assert len(render(figure)) > 5000


def test_what_cannot_be_drawn_is_refused(seeds: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="lacks the columns k"):
        seed_statistics(seeds.drop(columns="k"), "c_dec")
    with pytest.raises(ValueError, match="none of the table's 6 rows has a finite c_dec"):
        over_seeds(seeds.assign(c_dec=np.nan), "c_dec", ylabel="c", title="t")
    with pytest.raises(ValueError, match="ns is empty"):
        overview_over_seeds(seeds, 3.1, ns=())
