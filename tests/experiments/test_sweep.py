"""The verdict of a sweep on tables made by hand, and verdicts as such."""

from __future__ import annotations

import pandas as pd
import pytest

from sparse_but_wrong.experiments.sweep import JUMPRELU, judge_projections, spread_out
from sparse_but_wrong.experiments.verdict import Check, Verdict, in_lines
from sparse_but_wrong.runs.spec import ONLY_WORLD


def test_the_jumprelu_experiment_is_the_notebooks() -> None:
    published = [sae for sae in JUMPRELU.saes if not sae.added]
    assert [sae.config["l0_coefficient"] for sae in published] == [
        *(0.05, 0.07, 0.09, 0.1, 0.3, 0.5, 0.75, 1.0, 1.2, 1.3, 1.4, 1.5)
    ]
    for sae in JUMPRELU.saes:
        assert {**sae.config, "l0_coefficient": None} == {
            "d_sae": 50,
            "l0_coefficient": None,
            "jumprelu_bandwidth": 2.0,
            "jumprelu_init_threshold": 0.1,
            "jumprelu_sparsity_loss_mode": "tanh",
            "l0_warm_up_steps": 10_000,
            "normalize_activations": "expected_average_only_in",
        }
    added = [sae.config["l0_coefficient"] for sae in JUMPRELU.saes if sae.added]
    assert sum(coefficient > 1.5 for coefficient in added) >= 5  # the side below the truth
    probabilities = JUMPRELU.toy_world(ONLY_WORLD).firing_probabilities
    assert probabilities[0] == pytest.approx(0.3881)
    assert probabilities[-1] == pytest.approx(0.05)
    assert sum(probabilities) == pytest.approx(10.9525)
    assert JUMPRELU.training.total_training_samples == 15_000_000
    assert JUMPRELU.training.train_batch_size_samples == 1024


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
    table = pd.DataFrame({"l0": l0})
    projections = pd.DataFrame({n: s_5 if n == 5 else [1.0] * len(l0) for n in range(12)})
    assert judge_projections(table, projections, [5], true_l0=4.0).outcome == outcome
    # From half of the latents on there is nothing to judge.
    assert judge_projections(table, projections, [6], true_l0=4.0).outcome == "not judged"


def test_some_n_stand_for_all() -> None:
    assert spread_out(range(12, 26)) == (12, 16, 20, 24)
    assert spread_out([3]) == (3,)


@pytest.mark.parametrize(
    ("holds", "outcome"),
    [
        ([True, True], "holds"),
        ([True, False], "fails"),
        ([None, False], "fails"),
        ([True, None], "not judged"),
        ([], "not judged"),
    ],
)
def test_the_outcome_follows_from_the_checks(holds: list[bool | None], outcome: str) -> None:
    verdict = Verdict(tuple(Check("c", "m", h) for h in holds))
    assert verdict.outcome == verdict.to_dict()["outcome"] == outcome


def test_unjudged_keeps_the_numbers() -> None:
    verdict = Verdict((Check("big", "3.2", True),), ("remark",)).unjudged("quick")
    assert verdict.outcome == "not judged"
    assert in_lines(verdict) == ["[not judged] big: 3.2", "quick", "remark"]
