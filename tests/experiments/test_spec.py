"""Specs as data: there and back, quick versions, seeds, and what a spec makes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from sparse_but_wrong.experiments.jumprelu import JUMPRELU
from sparse_but_wrong.experiments.make import make_saes, make_world
from sparse_but_wrong.experiments.seeds import derive_seed, world_seed
from sparse_but_wrong.experiments.spec import ONLY_WORLD, CorrelatedPairs, ExperimentSpec
from sparse_but_wrong.toy_models.orthogonalize import orthogonalize
from sparse_but_wrong.training.controls import KTransition
from tests.experiments.tiny import TINY, WORLD


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
    probabilities = JUMPRELU.toy_world(ONLY_WORLD).firing_probabilities
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
    both = make_saes(TINY.saes, 8, seed=1)
    alone = make_saes(TINY.saes[1:2], 8, seed=1)
    make_world(WORLD, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(both[1].W_dec, alone[0].W_dec)
    assert not torch.equal(both[0].W_dec, both[1].W_dec)
    other = make_saes(TINY.saes[1:2], 8, seed=2)
    assert not torch.equal(other[0].W_dec, alone[0].W_dec)


def test_directions_of_a_world_are_brought_to_unit_length_after_each_step() -> None:
    """Published calls leave more noise; results of specs are not to change with them."""
    spec = replace(WORLD, ortho_num_steps=8)
    start = torch.Generator().manual_seed(world_seed(1, "world", ONLY_WORLD))
    rows = orthogonalize(spec.n_features, spec.d_in, num_steps=8, generator=start, renormalize=True)
    assert torch.equal(make_world(spec, seed=1).directions, rows.T)


def test_a_spec_that_contradicts_itself() -> None:
    with pytest.raises(ValueError, match=r"two SAEs with id 'c_0\.05'"):
        replace(TINY, saes=(TINY.saes[0], TINY.saes[0]))
    with pytest.raises(ValueError, match="std_firing_magnitudes has 1 entries"):
        replace(WORLD, std_firing_magnitudes=(0.1,))
    for name in ("../x", "a/b", "", ".hidden", "x" * 101, "a b"):
        with pytest.raises(ValueError, match="names a folder"):
            replace(TINY, name=name)
        with pytest.raises(ValueError, match="names a folder"):
            replace(TINY, saes=(replace(TINY.saes[0], sae_id=name),))


DATA = TINY.to_dict()
SAE = DATA["saes"][0]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (3, "a spec is a mapping of fields, not of the type int"),
        ({**DATA, "world": 1}, "either world or worlds"),
        ({**DATA, "planet": 1}, "planet is not a field"),
        ({k: v for k, v in DATA.items() if k != "claim"}, "claim is missing"),
        ({**DATA, "worlds": {"world": 3}}, r"worlds\.world must be a mapping of fields"),
        ({**DATA, "saes": {}}, "saes should be a valid tuple"),
        ({**DATA, "saes": [{**SAE, "config": 5}]}, r"saes\[0\]\.config should be a valid dict"),
        ({**DATA, "saes": [{"sae_id": "x"}]}, r"saes\[0\]\.architecture is missing"),
        ({**DATA, "saes": [{**SAE, "world": "x"}]}, "of the world 'x', which is not there"),
        ({**DATA, "saes": [{**SAE, "init": "x"}]}, r"saes\[0\]\.init should be 'random' or"),
        (
            {**DATA, "saes": [{**SAE, "control": {"initial_k": 3.0, "start_step": 1}}]},
            r"^saes\[0\]\.control\.duration_steps is missing\.$",
        ),
        ({**DATA, "evaluation_samples": 0}, "evaluation_samples is 0; it must be 1 or more"),
        ({**DATA, "saes": [{**SAE, "factors": {"world": 1}}]}, "has a factor 'world', which is a"),
        ({**DATA, "saes": [{**SAE, "factors": {"s_3": 1}}]}, "has a factor 's_3', which is a"),
        ({**DATA, "saes": [{**SAE, "config": {"d_sae": "x"}}]}, "d_sae = 'x'; it must be a whole"),
        ({**DATA, "projection_n": [1, 4]}, "projection_n has 4, but SAE 'c_0.05' has d_sae = 4"),
        ({**DATA, "training": {"lr": -1.0}}, r"training: TrainOptions\.lr must be positive"),
        ({**DATA, "training": {"lr": "x"}}, r"training\.lr should be a valid number"),
        ({**DATA, "training": {"rate": 1.0}}, r"training\.rate is not a field"),
    ],
)
def test_what_is_wrong_with_a_spec_is_named(broken: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExperimentSpec.from_dict(broken)


def test_one_world_may_stand_alone() -> None:
    data = {**DATA, "world": DATA["worlds"][ONLY_WORLD]}
    del data["worlds"]
    assert ExperimentSpec.from_dict(data) == TINY


def test_a_world_of_named_pairs_has_their_correlations() -> None:
    spec = replace(WORLD, correlation=CorrelatedPairs(((0, 2, 0.3), (1, 3, -0.2))))
    matrix = make_world(spec, seed=0).correlation_matrix
    assert matrix is not None
    expected = torch.eye(4)
    expected[0, 2] = expected[2, 0] = 0.3
    expected[1, 3] = expected[3, 1] = -0.2
    assert torch.allclose(matrix, expected, atol=1e-6)


def test_worlds_of_other_names_have_other_directions_and_data() -> None:
    seeds = {world_seed(0, what, name) for what in ("world", "stream") for name in ("a", "b")}
    assert len(seeds) == 4
    assert world_seed(3, "stream", ONLY_WORLD) == derive_seed(3, "stream")
    a, b = (make_world(WORLD, 0, name=name).directions for name in "ab")
    assert not torch.allclose(a, b)


def test_a_quick_transition_still_ends_inside_the_run() -> None:
    control = KTransition(20.0, 2000, 8000)
    sae = replace(TINY.saes[0], control=control)
    assert replace(TINY, saes=(sae,)).quick().saes[0].control == KTransition(20.0, 40, 160)


def test_a_quick_transition_of_the_config_itself_shrinks_too() -> None:
    config = {"d_sae": 50, "transition_k_start_step": 120, "transition_k_duration_steps": 30}
    sae = replace(TINY.saes[0], architecture="enhanced_batchtopk", config=config)
    quick = replace(TINY, saes=(sae,)).quick().saes[0].config
    assert quick == {"d_sae": 50, "transition_k_start_step": 2, "transition_k_duration_steps": 1}


def test_a_spec_file_may_ask_for_the_published_batchtopk() -> None:
    config = {"d_sae": 4, "k": 1.5, "initial_k": 3, "transition_k_duration_steps": 30}
    spec = replace(TINY.saes[0], architecture="enhanced_batchtopk", config=config)
    (sae,) = make_saes([spec], d_in=8, seed=0)
    assert sae.cfg.to_dict().items() >= config.items()
    with pytest.raises(ValueError, match=r"c_0\.05.*no field 'initialk'"):
        make_saes([replace(spec, config={"initialk": 3})], d_in=8, seed=0)
    wrong = replace(spec, config={**config, "transition_k_duration_steps": 0})
    with pytest.raises(ValueError, match=r"c_0\.05.*transition_k_.*at least 1"):
        make_saes([wrong], d_in=8, seed=0)
