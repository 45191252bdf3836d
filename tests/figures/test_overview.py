from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_but_wrong.figures.overview import TOO_HIGH, TOO_LOW, overview


def lines(axes: Axes, label: str) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata()) for line in axes.get_lines() if line.get_label() == label]


def legend_texts(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


@pytest.fixture(scope="module")
def published(request: pytest.FixtureRequest) -> pd.DataFrame:
    """The reference sweep, with stand-ins for the two columns that it does not record."""
    data: Path = request.getfixturevalue("data_dir")
    saes = json.loads((data / "jumprelu_sweep.json").read_text())["6.54.12"]
    table = pd.DataFrame([{"l0": sae["l0"], "added": False} for sae in saes])
    curves = pd.DataFrame([{f"s_{n}": s for n, s in enumerate(sae["s_n"])} for sae in saes])
    distance = (table["l0"] - 10.95).abs()
    return pd.concat([table.assign(c_dec=distance / 50, mcc=1 - distance / 20), curves], axis=1)


def test_left_panel_has_each_n_against_l0_and_says_both_things(
    sweep: pd.DataFrame, render: Callable[[Figure], bytes]
) -> None:
    figure = overview(sweep, 10.95, ns=(12, 14))
    axes = figure.axes[0]
    of_12, of_14 = lines(axes, "_line")
    np.testing.assert_allclose(of_12, [0.2, 0.2, 1e-3, 0.2, 0.2, 0.2])
    np.testing.assert_allclose(of_14, [1 / 15, 1 / 15, 1e-3, 1 / 15, 1 / 15, 1 / 15])
    assert axes.get_yscale() == "symlog"
    assert legend_texts(axes) == ["$n = 12$", "$n = 14$", "True L0 = 10.95"]
    assert [text.get_text() for text in axes.texts] == [TOO_LOW, TOO_HIGH]
    assert "flat" in TOO_HIGH
    assert render(figure).startswith(b"\x89PNG")


def test_middle_panel_has_an_sae_below_at_and_above_the_truth(sweep: pd.DataFrame) -> None:
    axes = overview(sweep, 10.95, ns=(12,)).axes[1]
    assert legend_texts(axes) == [
        "L0 5.00: too low",
        "L0 10.90: best near the truth",
        "L0 22.00: too high",
        "True L0 = 10.95",
    ]
    (at_truth,) = lines(axes, "L0 10.90: best near the truth")
    # n = 1 … 14, below half of the 30 latents
    np.testing.assert_allclose(at_truth, [1.001] * 10 + [0.001] * 4)


def test_a_sweep_without_low_saes_shows_none_as_too_low(
    sweep: pd.DataFrame, render: Callable[[Figure], bytes]
) -> None:
    figure = overview(sweep.loc[sweep["l0"] > 10], 10.95, ns=(12,))
    assert legend_texts(figure.axes[1])[0] == "L0 10.90: best near the truth"
    assert render(figure)


def test_a_sweep_that_never_comes_near_the_truth_shows_no_cliff(sweep: pd.DataFrame) -> None:
    figure = overview(sweep.loc[sweep["l0"] > 20], 10.95, ns=(12,), cliff="a cliff")
    assert legend_texts(figure.axes[1]) == ["L0 22.00: too high", "True L0 = 10.95"]
    assert list(figure.axes[1].texts) == []


def test_right_panels_have_similarity_and_recovery(sweep: pd.DataFrame) -> None:
    figure = overview(sweep, 10.95, ns=(12,))
    similarity, recovery = figure.axes[2:]
    (c_dec,), (mcc,) = lines(similarity, "_line"), lines(recovery, "_line")
    np.testing.assert_array_equal(c_dec, [0.25, 0.12, 0.02, 0.04, 0.10, 0.20])
    np.testing.assert_array_equal(mcc, [0.60, 0.80, 0.99, 0.95, 0.85, 0.50])
    assert legend_texts(similarity) == ["Published grid", "Added"]


def test_words_can_be_replaced(sweep: pd.DataFrame) -> None:
    figure = overview(sweep, 10.95, ns=(12,), too_low="a", too_high="b", cliff="")
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert words == ["a", "b", ""]


def test_both_sides_of_the_published_sweep_are_legible(
    published: pd.DataFrame, render: Callable[[Figure], bytes]
) -> None:
    """The cliff below the truth and the differences of 1e-3 above it are both some pixels high."""
    figure = overview(published, 10.95)
    render(figure)
    axes = figure.axes[0]

    def height(s_n: float) -> float:
        return float(axes.transAxes.inverted().transform(axes.transData.transform((11, s_n)))[1])

    assert height(0.3) - height(0.003) > 0.2
    assert height(0.001) - height(0.0003) > 0.02


def test_remarks_and_legend_lie_inside_and_hide_no_sae(
    published: pd.DataFrame, render: Callable[[Figure], bytes]
) -> None:
    figure = overview(published, 10.95)
    render(figure)
    axes = figure.axes[0]
    inside = axes.get_window_extent()
    legend = axes.get_legend()
    assert legend is not None
    boxes = [text.get_window_extent() for text in axes.texts] + [legend.get_window_extent()]
    saes = np.concatenate(
        [
            axes.transData.transform(np.asarray(line.get_xydata()))
            for line in axes.get_lines()
            if line.get_label() == "_grid"
        ]
    )
    for box in boxes:
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert not any(box.contains(x, y) for x, y in saes)
    truth = axes.transData.transform((10.95, 0))[0]
    assert boxes[0].x1 <= truth <= boxes[1].x0


def test_what_cannot_be_drawn_is_refused(sweep: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="ns is empty"):
        overview(sweep, 10.95, ns=())
    with pytest.raises(ValueError, match="lacks the columns s_40"):
        overview(sweep, 10.95, ns=(12, 40))
    with pytest.raises(ValueError, match="lacks the columns mcc"):
        overview(sweep.drop(columns="mcc"), 10.95, ns=(12,))
