from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.figures.overview import TOO_HIGH, TOO_LOW, overview
from tests.figures.conftest import legend_texts, lines, rendered


def test_what_the_panels_show(sweep: pd.DataFrame, projections: pd.DataFrame) -> None:
    figure = overview(sweep, projections, 10.95, ns=(12, 14))
    left, middle, similarity, recovery = figure.axes
    of_14 = lines(left)["_line"][1]
    np.testing.assert_allclose(of_14, [1 / 15, 1 / 15, 1e-3, 1 / 15, 1 / 15, 1 / 15])
    assert left.get_yscale() == "symlog"
    assert legend_texts(left) == ["$n = 12$", "$n = 14$", "True L0 = 10.95"]
    assert [text.get_text() for text in left.texts] == [TOO_LOW, TOO_HIGH]
    best = "L0 10.90: best near the truth"
    shown = ["L0 5.00: too low", best, "L0 22.00: too high"]
    assert legend_texts(middle) == [*shown, "True L0 = 10.95"]
    # n = 1 … 14, below half of the 30 latents
    np.testing.assert_allclose(lines(middle)[best][1], [1.001] * 10 + [0.001] * 4)
    assert lines(similarity)["_line"][1] == [0.25, 0.12, 0.02, 0.04, 0.10, 0.20]
    assert lines(recovery)["_line"][1] == [0.60, 0.80, 0.99, 0.95, 0.85, 0.50]
    assert legend_texts(similarity) == ["Published grid", "Added"]
    words = overview(sweep, projections, 10.95, ns=(12,), too_low="a", too_high="b", cliff="")
    assert [text.get_text() for axes in words.axes for text in axes.texts] == ["a", "b", ""]


@pytest.mark.parametrize(
    ("above", "first", "says"),
    [(10, "L0 10.90: best near the truth", ["a cliff"]), (20, "L0 22.00: too high", [])],
)
def test_a_sweep_on_one_side_of_the_truth(
    sweep: pd.DataFrame, projections: pd.DataFrame, above: float, first: str, says: list[str]
) -> None:
    table = sweep.loc[sweep["l0"] > above]
    figure = overview(table, projections, 10.95, ns=(12,), cliff="a cliff")
    assert legend_texts(figure.axes[1])[0] == first
    assert [text.get_text() for text in figure.axes[1].texts] == says
    assert rendered(figure)


def test_the_published_sweep_is_legible_and_remarks_and_legend_hide_no_sae(data_dir: Path) -> None:
    """The reference sweep, with stand-ins for the two columns that it does not record."""
    saes = json.loads((data_dir / "jumprelu_sweep.json").read_text())["6.54.12"]
    l0 = pd.Series([sae["l0"] for sae in saes])
    distance = (l0 - 10.95).abs()
    table = pd.DataFrame({"l0": l0, "c_dec": distance / 50, "mcc": 1 - distance / 20})
    figure = overview(table, pd.DataFrame([sae["s_n"] for sae in saes]), 10.95)
    rendered(figure)
    axes = figure.axes[0]

    def height(s_n: float) -> float:
        return float(axes.transAxes.inverted().transform(axes.transData.transform((11, s_n)))[1])

    # The cliff below the truth and the differences of 1e-3 above it are both some pixels high.
    assert height(0.3) - height(0.003) > 0.2
    assert height(0.001) - height(0.0003) > 0.02
    inside, legend = axes.get_window_extent(), axes.get_legend()
    assert legend is not None
    boxes = [text.get_window_extent() for text in axes.texts] + [legend.get_window_extent()]
    grid = [line for line in axes.get_lines() if line.get_label() == "_grid"]
    marks = np.concatenate([axes.transData.transform(line.get_xydata()) for line in grid])
    for box in boxes:
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert not any(box.contains(x, y) for x, y in marks)
    truth = axes.transData.transform((10.95, 0))[0]
    assert boxes[0].x1 <= truth <= boxes[1].x0


def test_what_cannot_be_drawn_is_refused(sweep: pd.DataFrame, projections: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="ns is empty"):
        overview(sweep, projections, 10.95, ns=())
    with pytest.raises(ValueError, match="lacks the columns 40"):
        overview(sweep, projections, 10.95, ns=(12, 40))
    with pytest.raises(ValueError, match="lacks the columns mcc"):
        overview(sweep.drop(columns="mcc"), projections, 10.95, ns=(12,))
