"""Worlds of sae_lens.synthetic behind the names of a toy world."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.synthetic import SyntheticModel, SyntheticModelConfig

from sparse_but_wrong.worlds.synthetic import SyntheticWorld, has_world, load_world
from sparse_but_wrong.worlds.world import ToyWorld
from tests.worlds.synthetic import CONFIG


@pytest.fixture(scope="module")
def model() -> SyntheticModel:
    return SyntheticModel(SyntheticModelConfig.from_dict(CONFIG))


@pytest.fixture(scope="module")
def world(model: SyntheticModel) -> SyntheticWorld:
    return SyntheticWorld(model)


def test_it_is_the_model(model: SyntheticModel, world: SyntheticWorld) -> None:
    assert (world.d_in, world.n_features) == (16, 40)
    assert torch.equal(world.directions, model.feature_dict.feature_vectors.T)
    features = world.sampler.sample(512, torch.Generator().manual_seed(0))
    torch.testing.assert_close(world.model(features), model.feature_dict(features))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = model.activation_generator.sample(50_000)
    assert world.true_l0 == pytest.approx(float((drawn > 0).sum(1).double().mean()), rel=0.01)
    # Children are silent where their parent is, so that there are fewer than the probabilities say.
    assert world.true_l0 < 0.8 * float(model.activation_generator.firing_probabilities.sum())


def test_a_stream_follows_from_its_seed_and_leaves_the_global_generator(
    world: SyntheticWorld,
) -> None:
    state = torch.get_rng_state()
    first, again, other = (world.stream(64, seed) for seed in (3, 3, 4))
    batches = list(itertools.islice(first, 3))
    assert torch.equal(batches[1], list(itertools.islice(again, 2))[1])
    assert not torch.equal(batches[0], next(other))
    assert not torch.equal(batches[0], batches[1])
    assert torch.equal(torch.get_rng_state(), state)
    place = again.state()
    expected = next(again)
    other.load_state(place)
    assert torch.equal(next(other), expected)
    assert torch.equal(expected, batches[2])


def test_a_saved_world_is_the_same(world: SyntheticWorld, tmp_path: Path) -> None:
    assert not has_world(tmp_path / "here")
    world.save(tmp_path / "here")
    assert has_world(tmp_path / "here")
    loaded = load_world(tmp_path / "here")
    assert isinstance(loaded, SyntheticWorld)
    assert torch.equal(loaded.directions, world.directions)
    assert torch.equal(next(loaded.stream(64, 1)), next(world.stream(64, 1)))
    with pytest.raises(FileExistsError):
        world.save(tmp_path / "here")
    toy = ToyWorld(3, 4)
    toy.save(tmp_path / "toy")
    assert type(load_world(tmp_path / "toy")) is ToyWorld


def test_every_kind_of_source(world: SyntheticWorld, model: SyntheticModel, tmp_path: Path) -> None:
    model.save(tmp_path / "saved")
    sources: tuple[Any, ...] = (CONFIG, model.cfg, tmp_path / "saved", str(tmp_path / "saved"))
    for source in sources:
        assert torch.equal(SyntheticWorld(source).directions, world.directions)


def broken(folder: Path) -> Path:
    folder.mkdir()
    (folder / "synthetic_model_config.json").write_text(json.dumps(CONFIG))
    (folder / "synthetic_model.safetensors").write_bytes(b"no tensors")
    return folder


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (CONFIG | {"seed": None}, ValueError, "seed"),
        (CONFIG | {"num_features": 0}, ValueError, "num_features"),
        (CONFIG | {"colour": "red"}, ValueError, "colour"),
        ({"num_features": 3}, ValueError, "firing_probability"),
        (Path("nowhere/at/all"), OSError, "nowhere"),
        (broken, ValueError, "broken"),
    ],
)
def test_what_is_no_world_is_refused(
    source: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    given: Any = source(tmp_path / "broken") if callable(source) else source
    with pytest.raises(error, match=message):
        SyntheticWorld(given)
