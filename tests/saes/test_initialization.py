from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    StandardSAE,
    StandardSAEConfig,
)

from sparse_but_wrong.saes.initialization import init_sae_to_match_model
from sparse_but_wrong.worlds.toy_model import ToyModel

NUM_FEATS, HIDDEN_DIM = 5, 8


@pytest.fixture(scope="module")
def world() -> ToyModel:
    return ToyModel(NUM_FEATS, HIDDEN_DIM, generator=torch.Generator().manual_seed(0))


def jumprelu(d_sae: int = NUM_FEATS, d_in: int = HIDDEN_DIM) -> JumpReLUTrainingSAE:
    sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(d_in=d_in, d_sae=d_sae))
    sae.b_enc.data.fill_(3)
    sae.b_dec.data.fill_(3)
    return sae


def test_becomes_the_ground_truth_sae(world: ToyModel) -> None:
    sae = jumprelu()
    threshold, memory = sae.threshold.detach().clone(), sae.W_dec.data_ptr()
    before = {name: (id(p), p.requires_grad) for name, p in sae.named_parameters()}
    init_sae_to_match_model(sae, world)
    assert {name: (id(p), p.requires_grad) for name, p in sae.named_parameters()} == before
    assert sae.W_dec.data_ptr() == memory
    assert torch.equal(sae.W_enc, world.embed.weight)
    assert torch.equal(sae.W_dec, world.embed.weight.T)
    assert sae.b_enc.eq(0).all()
    assert sae.b_dec.eq(0).all()
    assert torch.equal(sae.threshold, threshold)
    features = torch.tensor([[1.0, 0.0, 2.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0, 3.0]])
    assert torch.allclose(sae.encode(world(features)), features, atol=1e-4)
    assert torch.allclose(sae(world(features)), world(features), atol=1e-4)


@pytest.mark.parametrize("d_sae", [3, 7])
@pytest.mark.parametrize("ordering", [None, [4, 0, 2, 1, 3], torch.tensor([4, 0, 2, 1, 3])])
def test_the_first_latents_take_the_features_that_are_named(
    world: ToyModel, d_sae: int, ordering: Any
) -> None:
    sae = jumprelu(d_sae)
    untouched = {name: p.detach().clone() for name, p in sae.named_parameters()}
    n = min(d_sae, NUM_FEATS)
    init_sae_to_match_model(sae, world, feature_ordering=None if ordering is None else ordering[:n])
    features = ([0, 1, 2, 3, 4] if ordering is None else [4, 0, 2, 1, 3])[:n]
    assert torch.equal(sae.W_dec[:n], world.embed.weight.T[features])
    assert torch.equal(sae.W_enc[:, :n], world.embed.weight[:, features])
    assert sae.b_enc[:n].eq(0).all()
    assert sae.b_dec.eq(0).all()
    # The latents after them are as they were.
    assert torch.equal(sae.W_dec[n:], untouched["W_dec"][n:])
    assert torch.equal(sae.W_enc[:, n:], untouched["W_enc"][:, n:])
    assert torch.equal(sae.b_enc[n:], untouched["b_enc"][n:])


def test_noise(world: ToyModel) -> None:
    sae, again = jumprelu(), jumprelu()
    before = torch.get_rng_state()
    init_sae_to_match_model(sae, world, 0.1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)  # the global generator does the same
    init_sae_to_match_model(again, world, 0.1)
    assert torch.equal(sae.W_dec, again.W_dec)
    assert torch.equal(sae.W_enc, again.W_enc)
    directions = world.embed.weight.T
    noise = torch.stack([sae.W_dec - directions, sae.W_enc.T - directions]).detach()
    # 80 draws: the standard error of their spread is 0.1/√160 = 0.008; four of them.
    assert float(noise.std()) == pytest.approx(0.1, abs=0.032)
    assert not torch.allclose(noise[0], noise[1], atol=0.05)


def test_can_be_saved_even_where_it_could_not_before(world: ToyModel, tmp_path: Path) -> None:
    sae = jumprelu()
    sae.W_dec.data = sae.W_dec.data.T.contiguous().T
    with pytest.raises(ValueError, match="non contiguous"):
        sae.save_model(tmp_path / "before")
    decoder = sae.W_dec
    init_sae_to_match_model(sae, world, feature_ordering=[4, 3, 2, 1, 0])
    assert sae.W_dec is decoder
    sae.save_model(tmp_path / "after")
    loaded: SAE[Any] = SAE.load_from_disk(tmp_path / "after")
    assert torch.equal(loaded.W_dec, world.embed.weight.T.flip(0))


def test_other_kinds_of_sae(world: ToyModel) -> None:
    standard = StandardSAE(StandardSAEConfig(d_in=HIDDEN_DIM, d_sae=NUM_FEATS, dtype="float64"))
    init_sae_to_match_model(standard, world)
    assert standard.W_dec.dtype == torch.float64
    assert torch.equal(standard.W_dec.float(), world.embed.weight.T)
    gated = GatedTrainingSAE(GatedTrainingSAEConfig(d_in=HIDDEN_DIM, d_sae=NUM_FEATS))
    gated.b_gate.data.fill_(3)
    gated.b_mag.data.fill_(3)
    init_sae_to_match_model(gated, world)
    assert gated.b_gate.eq(0).all()
    assert gated.b_mag.eq(0).all()


@pytest.mark.parametrize(
    ("sae", "arguments", "message"),
    [
        ({"d_in": 7}, {}, r"width 7.* d_in=8"),
        ({}, {"feature_ordering": [0, 1, 2]}, "names 3 features.* 5 latents"),
        ({"d_sae": 7}, {"feature_ordering": [0, 1, 2]}, "names 3 features.* 7 latents.* 5 of them"),
        ({"d_sae": 7}, {"feature_ordering": list(range(7))}, "names 7 features.* 5 of them"),
        ({}, {"feature_ordering": [0, 1, 2, 3, 5]}, r"\[4\] is 5; .* 0 to 4"),
        ({}, {"feature_ordering": [0, 1, 2, 3, -1]}, r"\[4\] is -1"),
        ({}, {"feature_ordering": [0, 1, 2, 0, 4]}, r"\[3\] is 0; .* once"),
        ({}, {"noise_level": -0.1}, "noise_level is -0.1"),
        ({}, {"noise_level": float("nan")}, "noise_level is nan"),
    ],
)
def test_refuses_and_changes_nothing(
    world: ToyModel, sae: dict[str, int], arguments: dict[str, Any], message: str
) -> None:
    victim = jumprelu(**sae)
    before = victim.W_dec.detach().clone()
    with pytest.raises(ValueError, match=message):
        init_sae_to_match_model(victim, world, **arguments)
    assert torch.equal(victim.W_dec, before)
    assert victim.b_enc.eq(3).all()
