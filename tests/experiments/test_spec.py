"""Specs as data: there and back, quick versions, seeds, and what a spec makes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from sparse_but_wrong.experiments.jumprelu import JUMPRELU
from sparse_but_wrong.experiments.make import make_saes, make_world
from sparse_but_wrong.experiments.seeds import derive_seed
from sparse_but_wrong.experiments.spec import ExperimentSpec
from tests.experiments.tiny import TINY


@pytest.mark.parametrize("spec", [TINY, JUMPRELU], ids=lambda spec: spec.name)
def test_a_spec_survives_json(spec: ExperimentSpec) -> None:
    assert ExperimentSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


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
    probabilities = JUMPRELU.world.firing_probabilities
    assert probabilities[0] == pytest.approx(0.3881)
    assert probabilities[-1] == pytest.approx(0.05)
    assert sum(probabilities) == pytest.approx(10.9525)
    assert JUMPRELU.training.total_training_samples == 15_000_000
    assert JUMPRELU.training.train_batch_size_samples == 1024


def test_quick_is_a_fiftieth_with_its_warm_up() -> None:
    quick = JUMPRELU.quick()
    assert quick.training.total_training_samples == 300_000
    assert quick.saes[0].config["l0_warm_up_steps"] == 200
    assert quick.saes[0].config["l0_coefficient"] == 0.05
    assert len(quick.saes) == len(JUMPRELU.saes)


def test_seeds_differ_by_purpose_and_are_stable() -> None:
    assert derive_seed(0, "stream") == derive_seed(0, "stream")
    seeds = {derive_seed(s, *p) for s in (0, 1) for p in (("a",), ("b",), ("a", "b"))}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_saes_initial_weights_are_its_own_and_no_global_seed_is_touched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    both = make_saes(TINY.saes, d_in=8, seed=1)
    alone = make_saes(TINY.saes[1:2], d_in=8, seed=1)
    make_world(TINY.world, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(both[1].W_dec, alone[0].W_dec)
    assert not torch.equal(both[0].W_dec, both[1].W_dec)
    other = make_saes(TINY.saes[1:2], d_in=8, seed=2)
    assert not torch.equal(other[0].W_dec, alone[0].W_dec)


def test_a_spec_that_contradicts_itself() -> None:
    with pytest.raises(ValueError, match="no SAEs"):
        replace(TINY, saes=())
    with pytest.raises(ValueError, match=r"two SAEs with id 'c_0\.05'"):
        replace(TINY, saes=(TINY.saes[0], TINY.saes[0]))
    with pytest.raises(ValueError, match="std_firing_magnitudes has 1 entries"):
        replace(TINY.world, std_firing_magnitudes=(0.1,))
    data = TINY.to_dict()
    for broken, message in (
        ({**data, "worlds": 1}, "unknown field 'worlds'"),
        ({k: v for k, v in data.items() if k != "saes"}, "lacks the field 'saes'"),
        ({**data, "world": 3}, "world must be a mapping"),
        ({**data, "saes": {}}, "saes must be a list"),
        ({**data, "saes": [{**data["saes"][0], "config": 5}]}, r"saes\[0\].config must be"),
        ({**data, "projection_n": [1, 4]}, "projection_n has 4, but SAE 'c_0.05' has d_sae = 4"),
        ({**data, "saes": [{"sae_id": "x"}]}, r"saes\[0\] lacks the field 'architecture'"),
        ({**data, "training": {"lr": -1.0}}, "TrainOptions.lr must be positive"),
        ({**data, "training": {"rate": 1.0}}, "training has an unknown field 'rate'"),
    ):
        with pytest.raises(ValueError, match=message):
            ExperimentSpec.from_dict(broken)
