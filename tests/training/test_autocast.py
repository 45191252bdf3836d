"""Matrix products in bfloat16, and all else in float32."""

from __future__ import annotations

import pytest
import torch

from sparse_but_wrong.l0.options import training_config
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.training.groups import architecture_of
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.make import make_saes
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stack import Stack
from sparse_but_wrong.training.torch_step import _Chunk
from sparse_but_wrong.worlds.world import ToyWorld
from tests.training import oracle
from tests.training.oracle import unlike_saes


@pytest.mark.parametrize(
    "name", ["standard", "gated", "jumprelu", "topk", "batchtopk", "matryoshka_batchtopk"]
)
def test_the_gradient_is_that_of_float32_to_the_digits_that_bfloat16_has(name: str) -> None:
    saes = unlike_saes(name)
    architecture, _ = architecture_of(saes[0])
    assert architecture is not None
    (x,) = oracle.recorded_batches(1)
    sparsity = torch.full((len(saes), 1), 3.0 if architecture.sparsity == "k" else 0.1)
    gradients = []
    for autocast in (False, True):
        options = oracle.options_for(10, autocast=autocast)
        stack = Stack.of(saes, architecture.parameters, architecture.buffers)
        chunk = _Chunk(architecture([sae.cfg for sae in saes], x.device), stack, options)
        forward, flat = chunk.gradient(x, sparsity.to(chunk.dtype), 0)
        assert forward.acts.dtype == flat.dtype == torch.float32
        assert all(loss.dtype == torch.float32 for loss in forward.losses.values())
        gradients.append(flat)
    wanted, found = gradients
    assert not torch.equal(wanted, found)
    off = (found - wanted).norm(dim=1) / wanted.norm(dim=1)
    # Eight bits of mantissa are 0.4 %; of 576 activations one on the other side of its threshold
    # makes up several per cent of a gradient.
    assert off.max() < 0.1


def test_a_toy_world_is_learned_as_well() -> None:
    world = ToyWorld(12, 24, firing_probability=0.25, std_magnitude=0.15, seed=0)
    cfgs = [
        training_config("batchtopk", 3.0, 24, 12),
        training_config("jumprelu", 3.0, 24, 12, l0_coefficient=0.5),
    ]
    x = next(world.stream(4096, 2))
    ends = []
    for autocast in (False, True):
        options = TrainOptions(
            512_000,
            256,
            lr=3e-3,
            reinit_dead_every=100,
            autocast=autocast,
            compiled=False,
            progress=False,
        )
        saes = make_saes(cfgs, seeds=[0, 0])
        log = train_saes(saes, world.stream(256, 1), options)
        assert {p.dtype for sae in saes for p in sae.parameters()} == {torch.float32}
        assert all(sae_log.diverged_at is None for sae_log in log.saes)
        ends.append(evaluate(saes, x, world.directions))
    for plain, cast in zip(*ends, strict=True):
        assert plain.mcc > 0.9
        assert cast.mcc == pytest.approx(plain.mcc, abs=0.02)
        assert cast.l0 == pytest.approx(plain.l0, rel=0.05)


def test_what_takes_the_steps() -> None:
    saes = unlike_saes("batchtopk")
    batches = oracle.recorded_batches(12)
    log = train_saes(saes, iter(batches), oracle.options_for(10, autocast=True))
    assert {sae_log.trained_by for sae_log in log.saes} == {"engine"}
    assert oracle.options_for(10, autocast=True).trainer_settings()["autocast"] is True
