"""Specs as data: there and back, quick versions, seeds, and what a spec makes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
import torch

from sparse_but_wrong.experiments.registry import JUMPRELU
from sparse_but_wrong.runs.make import make_spec_saes, make_world, world_seed
from sparse_but_wrong.runs.spec import (
    ONLY_WORLD,
    ActivationsSpec,
    CorrelatedPairs,
    ExperimentSpec,
    SAESpec,
)
from sparse_but_wrong.seeds import derive_seed
from sparse_but_wrong.training.controls import KTransition
from sparse_but_wrong.worlds.toy_model import orthogonalize
from tests.experiments.tiny import TINY, WORLD

STORED = replace(
    TINY, name="stored", worlds={ONLY_WORLD: ActivationsSpec("acts")}, analysis="activations"
)


@pytest.mark.parametrize("spec", [TINY, JUMPRELU, STORED], ids=lambda spec: spec.name)
def test_a_spec_survives_json(spec: ExperimentSpec) -> None:
    assert ExperimentSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_quick_is_a_fiftieth_with_its_warm_ups_and_transitions() -> None:
    quick = JUMPRELU.quick()
    assert quick.training.total_training_samples == 300_000
    assert quick.training.log_every == 2
    assert quick.saes[0].config["l0_warm_up_steps"] == 200
    assert quick.saes[0].config["l0_coefficient"] == 0.05
    assert len(quick.saes) == len(JUMPRELU.saes)
    config = {"d_sae": 50, "transition_k_start_step": 120, "transition_k_duration_steps": 30}
    sae = replace(TINY.saes[0], config=config, control=KTransition(20.0, 2000, 8000))
    (sae,) = replace(TINY, saes=(sae,)).quick().saes
    assert sae.control == KTransition(20.0, 40, 160)
    assert list(sae.config.values()) == [50, 2, 1]


def test_seeds_differ_by_purpose_and_are_stable() -> None:
    assert derive_seed(0, "stream") == derive_seed(0, "stream")
    seeds = {derive_seed(s, *p) for s in (0, 1) for p in (("a",), ("b",), ("a", "b"))}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_saes_initial_weights_are_its_own_and_no_global_seed_is_touched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    both = make_spec_saes(TINY.saes, 8, seed=1)
    alone = make_spec_saes(TINY.saes[1:2], 8, seed=1)
    make_world(WORLD, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(both[1].W_dec, alone[0].W_dec)
    assert not torch.equal(both[0].W_dec, both[1].W_dec)
    other = make_spec_saes(TINY.saes[1:2], 8, seed=2)
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
TOY = DATA["worlds"][ONLY_WORLD]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (3, "a spec is a mapping of fields, not of the type int"),
        ({**DATA, "world": 1}, "either world or worlds"),
        ({**DATA, "planet": 1}, "planet is not a field"),
        ({k: v for k, v in DATA.items() if k != "claim"}, "claim is missing"),
        ({**DATA, "worlds": {"world": 3}}, r"worlds\.world must be a mapping of fields"),
        (
            {**DATA, "worlds": {"world": {"activations": "x", "colunm": "y"}}},
            r"world\.colunm is not",
        ),
        ({**DATA, "saes": {}}, "saes should be a valid"),
        ({**DATA, "saes": [{**SAE, "config": 5}]}, r"saes\[0\]\.config should be"),
        ({**DATA, "saes": [{"sae_id": "x"}]}, r"saes\[0\]\.architecture is missing"),
        ({**DATA, "saes": [{**SAE, "world": "x"}]}, "unknown world 'x'"),
        (
            {**DATA, "saes": [{**SAE, "init": "x"}]},
            r"saes\[0\]\.init should be 'random', 'mean' or",
        ),
        (
            {**DATA, "saes": [{**SAE, "control": {"initial_k": 3.0, "start_step": 1}}]},
            r"^saes\[0\]\.control\.duration_steps is missing\.$",
        ),
        ({**DATA, "evaluation_samples": 0}, "evaluation_samples should .* not 0"),
        ({**DATA, "projection_n": [1, 4]}, "projection_n has 4, but SAE 'c_0.05' has d_sae = 4"),
        ({**DATA, "training": {"lr": -1.0}}, r"training: TrainOptions\.lr must be positive"),
        ({**DATA, "training": {"lr": "x"}}, r"training\.lr should be a valid number"),
        ({**DATA, "training": {"rate": 1.0}}, r"training\.rate is not a field"),
        # A text is no number, wherever it stands, and neither is a truth value.
        ({**DATA, "evaluation_samples": "100"}, "evaluation_samples .* not '100'"),
        ({**DATA, "projection_n": ["1"]}, r"projection_n\[0\] .* not '1'"),
        ({**DATA, "training": {"lr": "3e-4"}}, r"training\.lr .* not '3e-4'"),
        ({**DATA, "training": {"log_every": True}}, r"training\.log_every .* not True"),
        ({**DATA, "training": {"log_every": 2.5}}, r"training\.log_every .* not 2\.5"),
        ({**DATA, "saes": [{**SAE, "added": 1}]}, r"saes\[0\]\.added .* not 1"),
        ({**DATA, "saes": [{**SAE, "factors": {"k": True}}]}, r"factors\.k"),
        ({**DATA, "worlds": {"world": {**TOY, "d_in": "8"}}}, r"worlds\.world\.d_in .* not '8'"),
        ({**DATA, "worlds": {"world": {**TOY, "d_in": 0}}}, r"worlds\.world\.d_in .* not 0"),
        ({**DATA, "saes": [{**SAE, "config": {"k": date(2020, 1, 1)}}]}, "date"),
    ],
)
def test_what_is_wrong_with_a_spec_is_named(broken: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExperimentSpec.from_dict(broken)


def test_whole_numbers_may_be_written_with_a_point_or_an_exponent() -> None:
    """As 1e4 is in YAML; and an SAE's own numbers stay as they are written."""
    sae = {**SAE, "factors": {"k": 2.0}}
    data = {
        **DATA,
        "evaluation_samples": 2e3,
        "projection_n": [1.0, 2],
        "saes": [sae],
        "worlds": {"world": {**TOY, "d_in": 8.0}},
    }
    spec = ExperimentSpec.from_dict(data)
    expected = {**DATA, "saes": [sae]}
    assert json.dumps(spec.to_dict()) == json.dumps(expected)


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("topk", {"k": "8"}, "k is '8'"),
        ("topk", {"k": None}, "k is None"),
        ("topk", {"k": True}, "k is True"),
        ("topk", {"k": 2.5}, "k is 2.5"),
        ("batchtopk", {"k": "8"}, "k is '8'"),
        ("matryoshka_batchtopk", {"matryoshka_widths": ["2", 4]}, "matryoshka_widths is"),
        ("jumprelu", {"apply_b_dec_to_input": "no"}, "apply_b_dec_to_input is 'no'"),
        ("jumprelu", {"normalize_activations": "nope"}, "normalize_activations is 'nope'"),
        ("jumprelu", {"metadata": {}}, "metadata .* leave it out"),
    ],
)
def test_a_config_value_of_another_kind_is_refused(
    architecture: str, config: dict[str, Any], message: str
) -> None:
    sae = SAESpec("a", architecture, {"d_sae": 4, **config})
    with pytest.raises(ValueError, match=f"SAE 'a': {message}"):
        make_spec_saes([sae], 8, seed=0)


def test_a_config_is_given_on_as_it_is_written() -> None:
    """Whole numbers for whole-number fields, and 3 for another stays 3: it is kept with the SAE."""
    specs = [
        SAESpec("a", "topk", {"d_sae": 4, "k": 2.0}),
        SAESpec("b", "batchtopk", {"d_sae": 4, "k": 3}),
        SAESpec("c", "jumprelu", {"d_sae": 4, "l0_warm_up_steps": 1e4}),
    ]
    made = make_spec_saes(specs, 8, seed=0)
    values = [made[0].cfg.k, made[1].cfg.k, made[2].cfg.l0_warm_up_steps]
    assert [repr(value) for value in values] == ["2", "3", "10000"]


def test_an_sae_may_start_with_b_dec_at_the_mean_of_16_384_activations() -> None:
    x = 3 + torch.randn(40_000, 8, generator=torch.Generator().manual_seed(0))
    specs = [replace(TINY.saes[0], sae_id=init, init=init) for init in ("random", "mean")]
    zero, mean = make_spec_saes(specs, 8, seed=0, for_mean=iter(x.split(1024)))
    assert not zero.b_dec.any()
    expected = x[:16_384].mean(0) * math.sqrt(8) / x[:16_384].norm(dim=1).mean()
    torch.testing.assert_close(mean.b_dec, expected)
    config = {**specs[1].config, "apply_b_dec_to_input": False}
    specs = [replace(specs[1], config=config)]
    with pytest.raises(ValueError, match=r"SAE 'mean': .*apply_b_dec_to_input"):
        make_spec_saes(specs, 8, seed=0, for_mean=iter(x.split(1024)))


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


def test_a_spec_file_may_ask_for_the_published_batchtopk() -> None:
    config = {"d_sae": 4, "k": 1.5, "initial_k": 3, "transition_k_duration_steps": 30}
    spec = replace(TINY.saes[0], architecture="enhanced_batchtopk", config=config)
    (sae,) = make_spec_saes([spec], d_in=8, seed=0)
    assert sae.cfg.to_dict().items() >= config.items()
    with pytest.raises(ValueError, match=r"c_0\.05.*no field 'initialk'"):
        make_spec_saes([replace(spec, config={"initialk": 3})], d_in=8, seed=0)
    wrong = replace(spec, config={**config, "transition_k_duration_steps": 0})
    with pytest.raises(ValueError, match=r"c_0\.05.*transition_k_.*at least 1"):
        make_spec_saes([wrong], d_in=8, seed=0)
