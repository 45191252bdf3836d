from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.report.plots import (
    factors_that_vary,
    in_order_of_l0,
    projections,
    sae_facts,
    spread,
    training_curves,
)
from tests.report.folders import Sweep, curves, results


def floats(packed: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed), dtype="<f4")


def test_saes_are_in_order_of_l0_and_those_without_come_last() -> None:
    table = pd.DataFrame({"sae_id": list("abcd"), "l0": [3.0, np.nan, 1.0, np.inf]})
    assert in_order_of_l0(table)["sae_id"].tolist() == ["c", "a", "b", "d"]
    assert in_order_of_l0(pd.DataFrame({"sae_id": list("abcd")}))["sae_id"].tolist() == list("abcd")


def test_an_sae_has_its_factors_and_figures() -> None:
    table = pd.DataFrame({"sae_id": ["a"], "l0": [2.0], "mcc": [np.nan], "s_0": [1.0], "k": [5]})
    spec = {
        "saes": [
            {"sae_id": "a", "architecture": "topk", "world": "w", "factors": {"k": 5, "x": "y"}}
        ]
    }
    assert sae_facts(table, spec) == [
        {
            "id": "a",
            "l0": 2.0,
            "added": False,
            "world": "w",
            "factors": {"world": "w", "architecture": "topk", "k": 5, "x": "y"},
            "figures": {"mcc": None},
        }
    ]


def test_only_factors_that_vary_are_offered() -> None:
    facts: list[dict[str, Any]] = [
        {"factors": {"world": "w", "k": 1, "seed": 0}},
        {"factors": {"world": "w", "k": 1, "seed": 1}},
        {"factors": {"world": "w", "k": 1, "seed": 1, "extra": "x"}},
    ]
    assert factors_that_vary(facts) == ["seed", "extra"]


def test_projections_keep_nan_where_an_sae_is_narrower() -> None:
    table = pd.DataFrame({"s_0": [3.0, 2.0], "s_10": [np.nan, 0.1], "s_2": [1.0, 0.5]})
    shown = projections(table, (2,))
    assert shown is not None
    assert (shown["n"], shown["first_n"], shown["left_out"]) == ([0, 2, 10], 2, 0)
    expected = np.array([3, 1, np.nan, 2, 0.5, 0.1], dtype=np.float32)
    np.testing.assert_array_equal(floats(shown["values"]), expected)


def test_of_very_many_projections_some_are_taken_and_always_those_of_the_spec() -> None:
    table = pd.DataFrame(np.ones((2, 3000)), columns=[f"s_{n}" for n in range(3000)])
    shown = projections(table, (1201, 1203))
    assert shown is not None
    assert {0, 1201, 1203, 2999} <= set(shown["n"])
    assert 512 <= len(shown["n"]) <= 514
    assert shown["left_out"] == 3000 - len(shown["n"])
    assert shown["first_n"] == 1201


def test_where_the_spec_names_no_n_the_first_above_the_truth_is_shown() -> None:
    table = pd.DataFrame(np.ones((1, 5)), columns=[f"s_{n}" for n in range(5)])
    assert [(projections(table, (), above) or {})["first_n"] for above in (1.9, 2.0, 9.0)] == [
        2,
        3,
        0,
    ]


def test_no_projections_no_plot() -> None:
    assert projections(pd.DataFrame({"sae_id": ["a"]}), (1,)) is None


def test_curves_of_few_saes_are_whole() -> None:
    sweep = Sweep(l0s=(2.0, 1.0), n_steps=5)
    order = ["k_1_1", "k_2_0"]
    shown = training_curves(curves(sweep).sample(frac=1, random_state=0), order)
    assert shown is not None
    assert shown["columns"] == ["l0", "mse_loss"]
    assert [line["sae"] for line in shown["lines"]] == [0, 1]
    assert shown["lines"][0]["steps"] == [0, 100, 200, 300, 400]
    values = floats(shown["lines"][1]["values"]).reshape(2, 5)
    assert values[0, 0] == pytest.approx(3.0)
    assert np.isnan(values[1, 4])
    assert (shown["steps_shown"], shown["steps_logged"], shown["left_out"]) == (5, 5, 0)


def test_curves_of_many_saes_are_thinned_and_keep_their_ends() -> None:
    sweep = Sweep(l0s=tuple(1 + 0.1 * i for i in range(210)), n_steps=150)
    table = in_order_of_l0(results(sweep))
    shown = training_curves(curves(sweep), table["sae_id"].tolist())
    assert shown is not None
    assert len(shown["lines"]) == 200
    assert shown["left_out"] == 10
    assert all(len(line["steps"]) == 40 for line in shown["lines"])
    assert all((line["steps"][0], line["steps"][-1]) == (0, 14_900) for line in shown["lines"])
    assert (shown["lines"][0]["sae"], shown["lines"][-1]["sae"]) == (0, 209)


def test_columns_that_are_no_numbers_are_not_drawn() -> None:
    table = pd.DataFrame({"sae_id": ["a"], "step": [0], "note": ["x"], "never": [np.nan]})
    assert training_curves(table, ["a"]) is None


@pytest.mark.parametrize(
    ("count", "most", "indices"),
    [(0, 5, []), (3, 5, [0, 1, 2]), (5, 2, [0, 4]), (9, 3, [0, 4, 8])],
)
def test_spread(count: int, most: int, indices: list[int]) -> None:
    assert spread(count, most) == indices
