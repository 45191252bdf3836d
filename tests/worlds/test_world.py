"""A whole toy world: what it draws, what it knows, and its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparse_but_wrong.worlds.features import FeatureSampler
from sparse_but_wrong.worlds.toy_model import ToyModel
from sparse_but_wrong.worlds.world import ToyWorld, embedded


@pytest.fixture(scope="module")
def world() -> ToyWorld:
    matrix = torch.tensor([[1.0, 0.4, 0], [0.4, 1, 0], [0, 0, 1]])
    return ToyWorld(3, 5, torch.tensor([0.5, 0.2, 0.1]), 0.1, correlation_matrix=matrix, seed=3)


def test_it_draws_features_along_its_directions(world: ToyWorld) -> None:
    assert world.directions.shape == (5, 3)
    assert world.true_l0 == pytest.approx(0.8)
    assert torch.allclose(world.directions.T @ world.directions, torch.eye(3), atol=1e-5)
    features = next(iter(world)) @ world.directions
    assert features.shape == (1024, 3)
    # Three standard deviations of a share of 1,024 samples are at most 0.047.
    shares = (features > 0.1).float().mean(0)
    assert torch.allclose(shares, torch.tensor([0.5, 0.2, 0.1]), atol=0.05)
    assert repr(world) == "ToyWorld(3 features in 5 dimensions, true L0 0.80, correlated)"


def test_seeds_decide(world: ToyWorld) -> None:
    again = ToyWorld(3, 5, seed=3)
    assert torch.equal(again.directions, world.directions)
    assert not torch.equal(ToyWorld(3, 5, seed=4).directions, world.directions)
    assert torch.equal(next(iter(world)), next(iter(world)))
    assert not torch.equal(next(world.stream(seed=1)), next(world.stream(seed=2)))


def test_a_stream_knows_its_place(world: ToyWorld) -> None:
    stream = world.stream(4, seed=0)
    next(stream)
    state = stream.state()
    expected = next(stream)
    other = world.stream(4, seed=9)
    other.load_state(state)
    assert torch.equal(next(other), expected)


def test_a_folder_keeps_it(world: ToyWorld, tmp_path: Path) -> None:
    world.save(tmp_path / "world")
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert files == [
        "world/features.safetensors",
        "world/toy_model/toy_model.json",
        "world/toy_model/toy_model.safetensors",
    ]
    loaded = ToyWorld.load(tmp_path / "world")
    assert torch.equal(next(loaded.stream(8, 1)), next(world.stream(8, 1)))
    (tmp_path / "world/features.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"features\.safetensors is damaged"):
        ToyWorld.load(tmp_path / "world")
    (tmp_path / "world/features.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"features\.safetensors"):
        ToyWorld.load(tmp_path / "world")


def test_a_model_of_other_features_is_refused() -> None:
    model = ToyModel(3, 5, ortho_num_steps=0)
    with pytest.raises(ValueError, match="3 features, but there are 2"):
        ToyWorld.of_model(model, torch.ones(2), torch.ones(2), torch.ones(2))


def test_any_function_of_features_can_be_embedded() -> None:
    model = ToyModel(3, 5, ortho_num_steps=0)
    sampler = FeatureSampler(torch.ones(3))
    batch = next(embedded(model, sampler.sample, 7))
    assert torch.allclose(batch, model.embed.weight.sum(1).expand(7, 5))
    assert not batch.requires_grad
