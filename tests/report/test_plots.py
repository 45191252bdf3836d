"""What the interactive plots hold: every number, thinned where a page could not hold it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sparse_but_wrong.metrics.evaluation import split_projections
from sparse_but_wrong.report import plots
from sparse_but_wrong.report.plots import MOST_SIDE, cosine_frames
from sparse_but_wrong.tensors import cos_sims
from sparse_but_wrong.worlds.world import ToyWorld
from tests.report.folders import Sweep, curves, results, write_run


def ordered(sweep: Sweep) -> tuple[pd.DataFrame, pd.DataFrame]:
    return split_projections(plots.in_order_of_l0(results(sweep)))


def slider_of(table: pd.DataFrame, wanted: tuple[int, ...] = (), truth: float = 0) -> Any:
    scalars, s_n = split_projections(table.assign(sae_id="a", l0=1.0))
    factors, true_l0 = pd.DataFrame(index=scalars.index), {"w": truth} if truth else {}
    figure = plots.projections_plot(scalars, s_n, factors, true_l0, wanted, range(len(scalars)))
    return figure.to_plotly_json()["layout"]["sliders"][0]


def test_saes_are_in_order_of_l0_and_those_without_come_last() -> None:
    table = pd.DataFrame({"sae_id": list("abcd"), "l0": [3.0, np.nan, 1.0, np.inf]})
    assert plots.in_order_of_l0(table)["sae_id"].tolist() == ["c", "a", "b", "d"]
    assert plots.in_order_of_l0(table.drop(columns="l0"))["sae_id"].tolist() == list("abcd")


def test_only_factors_that_vary_are_offered() -> None:
    table = pd.DataFrame({"sae_id": list("abc"), "l0": 1.0, "architecture": ["x", "x", "y"]})
    factors = [{"k": 1, "seed": 0}, {"k": 1, "seed": 1}, {"k": 1, "seed": 1, "extra": "x"}]
    saes = [{"sae_id": i, "world": "w", "factors": f} for i, f in zip("abc", factors, strict=True)]
    varying = plots.varying_factors(table, {"saes": saes})
    assert list(varying) == ["architecture", "seed", "extra"]


def test_a_step_of_the_slider_holds_s_n_of_every_sae() -> None:
    table = pd.DataFrame({"s_0": [3.0, 2.0], "s_10": [np.nan, 0.1], "s_2": [1.0, 0.5]})
    slider = slider_of(table, (2,))
    assert [step["label"] for step in slider["steps"]] == ["0", "2", "10"]
    assert slider["active"] == 1
    assert [step["args"][0]["y"][0] for step in slider["steps"]] == [[3, 2], [1, 0.5], [None, 0.1]]
    slider = slider_of(pd.DataFrame(np.ones((2, 3000))).add_prefix("s_"), (1201, 1203))
    labels = [step["label"] for step in slider["steps"]]
    assert {"0", "1201", "1203", "2999"} <= set(labels)
    assert 512 <= len(labels) <= 514
    assert labels[slider["active"]] == "1201"
    # Where the spec names no n, the first above the truth is shown.
    few = pd.DataFrame(np.ones((1, 5))).add_prefix("s_")
    assert [slider_of(few, truth=l0)["active"] for l0 in (1.9, 2.0, 9.0)] == [2, 3, 0]


@pytest.mark.parametrize(
    ("worlds", "l0s", "first", "ends"),
    [
        (("w",), (1.0, 2.0, 3.0), "all alike", None),
        (("left", "right"), (1.0, 2.0, 3.0), "colour: world", (-0.5, 1.5)),
        # With more worlds than colours, what sets them apart is one of the factors.
        (tuple(f"w_{i}" for i in range(9)), tuple(range(1, 10)), "colour: seed", (-0.5, 1.5)),
    ],
)
def test_colours_tell_the_factor(
    worlds: tuple[str, ...], l0s: tuple[float, ...], first: str, ends: tuple[float, float] | None
) -> None:
    table, s_n = ordered(Sweep(l0s=tuple(map(float, l0s)), worlds=worlds))
    saes = [
        {"sae_id": sae_id, "factors": {"k": float(k), "seed": i % 2}}
        for i, (sae_id, k) in enumerate(zip(table["sae_id"], l0s, strict=True))
    ]
    factors = plots.varying_factors(table, {"saes": saes})
    figure = plots.projections_plot(table, s_n, factors, {}, (2,), range(len(table)))
    shown = figure.to_plotly_json()
    menu = shown["layout"]["updatemenus"][0]
    assert menu["buttons"][menu["active"]]["label"] == first
    marker = shown["data"][0]["marker"]
    assert (marker.get("cmin"), marker.get("cmax")) == (ends or (None, None))
    by_k = next(b for b in menu["buttons"] if b["label"] == "colour: k")["args"][0]
    # Many numbers are a scale, few are classes.
    assert by_k["marker.cmin"] == [1.0 if len(l0s) > 8 else -0.5]


def test_latents_are_in_the_order_of_their_features(tmp_path: Path) -> None:
    sweep = Sweep(n_features=6, d_in=8, d_sae=9, l0s=(1.32,))
    folder, (table, _) = write_run(tmp_path / "run", sweep), ordered(sweep)
    (sae_id,) = folder.finished_saes()
    (frame,) = cosine_frames(folder, table)
    assert frame["features"] == list(range(6))
    assert sorted(frame["latents"]) == list(range(9))
    assert not frame["thinned"]
    assert min(frame["cosines"][i][i] for i in range(6)) == 100
    directions = ToyWorld.load(folder.world_path("world")).directions
    sae = folder.load_sae(sae_id)
    expected = cos_sims(sae.W_dec.detach()[frame["latents"]].T, directions).numpy()
    np.testing.assert_allclose(np.array(frame["cosines"]) / 100, expected, atol=0.0051)
    sae.W_dec.data[2] = torch.nan
    shutil.rmtree(folder.sae_path(sae_id))
    folder.save_sae(sae_id, sae)
    (frame,) = cosine_frames(folder, table)
    assert frame["cosines"][frame["latents"].index(2)] == [None] * 6
    assert cosine_frames(folder, table.assign(sae_id="another")) == []
    assert cosine_frames(folder, table.assign(world="nowhere")) == []


def test_of_wide_saes_and_long_sweeps_some_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = Sweep(n_features=150, d_in=160, d_sae=160, l0s=(33.0,))
    (frame,) = cosine_frames(write_run(tmp_path / "wide", wide), ordered(wide)[0])
    assert frame["thinned"]
    assert len(frame["latents"]) == len(frame["features"]) == MOST_SIDE
    assert (frame["features"][0], frame["features"][-1]) == (0, 149)
    assert min(frame["cosines"][i][i] for i in range(MOST_SIDE)) > 90
    monkeypatch.setattr(plots, "_MOST_CELLS", 3 * 6 * 64)
    long = Sweep(l0s=(1.0, 1.5, 2.0, 2.5, 3.0))
    frames = cosine_frames(write_run(tmp_path / "long", long), ordered(long)[0])
    assert [frame["sae"] for frame in frames] == [0, 2, 4]
    shown = plots.saes_plot(*ordered(long), {"world": 1.9}, frames).to_plotly_json()["layout"]
    assert shown["sliders"][0]["active"] == 1  # the nearest to the true L0
    assert "L0 2 · MCC" in shown["title"]["text"]


def test_curves_of_few_saes_are_whole() -> None:
    sweep = Sweep(l0s=(2.0, 1.0), n_steps=5)
    table, _ = ordered(sweep)
    figure, notes = plots.curves_plot(curves(sweep).sample(frac=1, random_state=0), table, {})
    assert figure is not None
    shown = figure.to_plotly_json()
    buttons = shown["layout"]["updatemenus"][0]["buttons"]
    assert [button["label"] for button in buttons] == ["l0", "mse_loss"]
    assert shown["data"][0]["x"] == [0, 100, 200, 300, 400]
    assert shown["data"][1]["y"][0] == 3.0
    assert buttons[1]["args"][0]["y"][1][4] is None
    assert notes == []
    text = pd.DataFrame({"sae_id": ["k_1_1"], "step": [0], "note": ["x"], "never": [np.nan]})
    assert plots.curves_plot(text, table, {}) == (None, [])


def test_curves_of_many_saes_are_thinned_and_keep_their_ends() -> None:
    sweep = Sweep(l0s=tuple(1 + 0.1 * i for i in range(210)), n_steps=150)
    figure, notes = plots.curves_plot(curves(sweep), ordered(sweep)[0], {"world": 1.32})
    assert figure is not None
    *drawn, _ = figure.to_plotly_json()["data"]  # the last is there for the colour bar
    assert len(drawn) == 200
    assert all(len(line["x"]) == 40 for line in drawn)
    assert all((line["x"][0], line["x"][-1]) == (0, 14_900) for line in drawn)
    assert "40 of the 150" in notes[0]
    assert "10 SAEs" in notes[1]


def test_spread() -> None:
    cases = {(0, 5): [], (3, 5): [0, 1, 2], (5, 2): [0, 4], (9, 3): [0, 4, 8]}
    assert {case: plots.spread(*case) for case in cases} == cases
