"""The figure of all signals."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.figures.signals import Signals, plot_signals


def sweep(title: str, interval: tuple[float, float] | None = None, **columns: object) -> Signals:
    l0 = np.array([4.0, 4.01, 8.0, 8.02, 16.0, np.nan])
    table = pd.DataFrame({"l0": l0, "c_dec": [0.1, 0.12, 0.05, 0.05, 0.04, 0.5], **columns})
    return Signals(title, table, table.assign(c_dec=0.2), interval)


def test_a_column_per_sweep_and_a_row_per_signal_that_was_measured() -> None:
    errors = {"auc_16": 0.8, "auc_16_standard_error": 0.01, "s_0.25H": np.nan}
    figure = plot_signals([sweep("A", (5.0, 9.0), **errors), sweep("B")])
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == [r"$c_\mathrm{dec}$", "", "probing, AUC", ""]
    assert [axes.get_title() for axes in figure.axes] == ["A", "B", "", ""]
    # The mean of two seeds is a point of the line; the SAE that diverged is none.
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    drawn = figure.axes[0].get_lines()[-1].get_ydata()
    np.testing.assert_allclose(np.asarray(drawn, float), [0.11, 0.05, 0.04])
    assert "_means" in lines
    figure.savefig(io.BytesIO(), format="png")


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no signal"):
        plot_signals([Signals("A", pd.DataFrame({"l0": [1.0]}))])
