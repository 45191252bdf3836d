"""Decoders against the true features, and mixing against correlation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from sparse_but_wrong.figures.decoder_cosines import cosines_vs_correlation, decoder_cosines

Render = Callable[[Figure], bytes]


def test_a_panel_for_each_sae(render: Render) -> None:
    figure = decoder_cosines([("one", np.eye(4)), ("two", -np.eye(4))])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["one", "two", ""]  # the last is the colour bar
    assert figure.axes[0].get_ylabel() == "Latent (matched)"
    assert figure.axes[1].get_ylabel() == ""
    values = figure.axes[1].collections[0].get_array()
    assert values is not None
    assert np.asarray(values).reshape(4, 4).tolist() == (-np.eye(4)).tolist()
    assert len(render(figure)) > 2000


def test_every_pair_and_the_means_of_tenths(render: Render) -> None:
    x = np.linspace(-1, 1, 40)[::-1].copy()
    figure = cosines_vs_correlation([("one", x, 2 * x), ("two", x[:3], x[:3])])
    first = figure.axes[0]
    (dots,) = (c for c in first.collections if isinstance(c, PathCollection))
    assert np.asarray(dots.get_offsets()).tolist() == np.column_stack([x, 2 * x]).tolist()
    means = [line for line in first.get_lines() if line.get_label() == "Mean of a tenth"]
    xs, ys = (np.asarray(data) for data in means[0].get_data())
    assert xs.tolist() == pytest.approx(np.linspace(-1, 1, 40).reshape(10, 4).mean(1).tolist())
    assert ys.tolist() == pytest.approx((2 * xs).tolist())
    assert len(render(figure)) > 2000


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="no panels"):
        decoder_cosines([])
    with pytest.raises(ValueError, match="not finite"):
        decoder_cosines([("broken", np.full((2, 2), np.nan))])
    with pytest.raises(ValueError, match="no panels"):
        cosines_vs_correlation([])
    with pytest.raises(ValueError, match="'broken' has no pairs"):
        cosines_vs_correlation([("broken", np.zeros(2), np.array([0.0, np.nan]))])
