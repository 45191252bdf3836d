"""The verdict of a sweep on tables made by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from sparse_but_wrong.experiments.sweep import judge_projections, mean_over_seeds, spread_out


def sweep(l0: list[float], s_5: list[float]) -> pd.DataFrame:
    """SAEs with 12 latents; s_n is only given for n = 5."""
    columns = {f"s_{n}": [1.0] * len(l0) for n in range(12)}
    return pd.DataFrame(
        {"sae_id": [f"sae_{i}" for i in range(len(l0))], "l0": l0, **columns, "s_5": s_5}
    )


@pytest.mark.parametrize(
    ("l0", "s_5", "outcome"),
    [
        ([2.0, 4.0, 8.0], [0.3, 0.001, 0.2], "holds"),
        ([2.0, 4.0, 8.0], [0.3, 0.0015, 0.001], "holds"),  # the two are alike
        ([2.0, 4.0, 8.0], [0.3, 0.1, 0.001], "fails"),
        ([0.5, 4.0, 8.0], [0.001, 0.1, 0.001], "fails"),
        ([4.0], [0.1], "not judged"),
        ([4.0, 8.0], [0.001, 0.1], "not judged"),
        ([2.0, 4.0], [0.1, 0.001], "not judged"),
    ],
)
def test_the_smallest_has_to_be_at_the_truth(
    l0: list[float], s_5: list[float], outcome: str
) -> None:
    assert judge_projections(sweep(l0, s_5), [5], true_l0=4.0).outcome == outcome


def test_without_an_n_there_is_nothing_to_judge() -> None:
    assert judge_projections(sweep([2.0, 4.0], [0.1, 0.2]), [6], 4.0).outcome == "not judged"


def test_means_are_of_one_setting_each() -> None:
    table = sweep([2.0, 4.0, 6.0], [0.1, 0.3, 0.9]).assign(k=[1, 1, 2], seed=[0, 1, 0], added=False)
    mean = mean_over_seeds(table, "k")
    assert mean["k"].tolist() == [1, 2]
    assert mean["l0"].tolist() == [3.0, 6.0]
    assert mean["s_5"].tolist() == pytest.approx([0.2, 0.9])
    assert mean["added"].tolist() == [False, False]


def test_some_n_stand_for_all() -> None:
    assert spread_out(range(12, 26)) == (12, 16, 20, 24)
    assert spread_out([3]) == (3,)
