from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparse_but_wrong.worlds.orthogonalize import orthogonalize
from sparse_but_wrong.worlds.toy_model import ToyModel


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def world() -> ToyModel:
    return ToyModel(5, 8, bias=True, ortho_num_steps=50, generator=seeded())


class TestToyModel:
    def test_the_notebook_world(self) -> None:
        model = ToyModel(50, 100, generator=seeded(), ortho_renormalize=True)
        assert isinstance(model.embed, nn.Linear)
        assert model.embed.bias is None
        weight = model.embed.weight
        assert weight.shape == (100, 50)
        # Safetensors and the caller's `.view` both want this.
        assert weight.is_contiguous()
        assert torch.allclose(weight.T @ weight, torch.eye(50), atol=1e-5)

    def test_embeds_features(self) -> None:
        model = ToyModel(3, 4, ortho_num_steps=10, generator=seeded())
        direction = model.embed.weight
        activation = model(torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0]]))
        expected = torch.stack([2 * direction[:, 0], direction[:, 1] + 3 * direction[:, 2]])
        assert torch.allclose(activation, expected, atol=1e-6)
        assert not activation.requires_grad

    def test_run_with_cache_gives_the_activations_twice(self, world: ToyModel) -> None:
        features = torch.rand(3, 5, generator=seeded())
        activations, cache = world.run_with_cache(features)
        assert torch.equal(activations, world(features))
        assert list(cache) == ["embed"]
        assert torch.equal(cache["embed"], activations)
        world.embed.weight.requires_grad_()
        activations, cache = world.run_with_cache(features, names_filter="embed")
        assert (activations.requires_grad, cache["embed"].requires_grad) == (True, False)
        for wanted in (["other"], "other", lambda name: name == "other"):
            assert world.run_with_cache(features, names_filter=wanted)[1] == {}

    def test_bias_moves_every_activation(self, world: ToyModel) -> None:
        empty = world(torch.zeros(2, 5))
        assert torch.equal(empty, world.embed.bias.expand(2, 8))
        assert 0 < float(world.embed.bias.abs().max()) <= 5**-0.5

    def test_arguments_reach_the_directions(self) -> None:
        model = ToyModel(6, 12, 0.25, False, 0.02, 500, generator=seeded())
        cosines = model.embed.weight.T @ model.embed.weight
        expected = torch.full((6, 6), 0.25).fill_diagonal_(1)
        assert torch.allclose(cosines, expected, atol=1e-4)
        renormalized = ToyModel(
            6, 12, ortho_num_steps=4, generator=seeded(), ortho_renormalize=True
        )
        rows = orthogonalize(6, 12, num_steps=4, generator=seeded(), renormalize=True)
        assert torch.equal(renormalized.embed.weight, rows.T)
        few = ToyModel(6, 12, ortho_num_steps=0, generator=seeded())
        assert float((few.embed.weight.T @ few.embed.weight - torch.eye(6)).abs().max()) > 0.1

    def test_global_generator_unless_given_one(self) -> None:
        torch.manual_seed(3)
        first = ToyModel(5, 8, ortho_num_steps=5, bias=True)
        with_generator = ToyModel(5, 8, ortho_num_steps=5, bias=True, generator=seeded(3))
        assert torch.equal(first.embed.weight, with_generator.embed.weight)
        assert torch.equal(first.embed.bias, with_generator.embed.bias)
        before = torch.get_rng_state(), random.getstate()
        ToyModel(5, 8, ortho_num_steps=5, bias=True, generator=seeded(3))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]

    def test_moves_as_modules_do(self, world: ToyModel) -> None:
        assert world.to(torch.float64) is world
        assert world(torch.zeros(1, 5, dtype=torch.float64)).dtype == torch.float64

    def test_refuses_an_impossible_size(self) -> None:
        with pytest.raises(ValueError, match="vector_len is 0"):
            ToyModel(5, 0)


class TestSaveAndLoad:
    @pytest.mark.parametrize("bias", [True, False])
    def test_round_trip(self, tmp_path: Path, bias: bool) -> None:
        world = ToyModel(5, 8, 0.1, bias, ortho_num_steps=50, generator=seeded())
        world.save(tmp_path / "runs" / "world")
        before = torch.get_rng_state()
        loaded = ToyModel.load(tmp_path / "runs" / "world")
        assert torch.equal(torch.get_rng_state(), before)
        assert loaded.config == world.config
        assert loaded.state_dict().keys() == world.state_dict().keys()
        for name, value in world.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)
        features = torch.rand(3, 5, generator=seeded())
        assert torch.equal(loaded(features), world(features))
        assert not any(parameter.requires_grad for parameter in loaded.parameters())

    def test_what_lies_in_the_folder(self, world: ToyModel, tmp_path: Path) -> None:
        world.save(str(tmp_path / "world"))
        names = sorted(path.name for path in (tmp_path / "world").iterdir())
        assert names == ["toy_model.json", "toy_model.safetensors"]
        assert [path.name for path in tmp_path.iterdir()] == ["world"]
        description = json.loads((tmp_path / "world" / "toy_model.json").read_text())
        assert description["package_version"]
        assert description["config"]["num_feats"] == 5

    def test_other_types_survive(self, world: ToyModel, tmp_path: Path) -> None:
        world.double().save(tmp_path / "world")
        assert ToyModel.load(tmp_path / "world").embed.weight.dtype == torch.float64

    def test_never_overwrites(self, world: ToyModel, tmp_path: Path) -> None:
        folder = tmp_path / "world"
        world.save(folder)
        other = ToyModel(5, 8, bias=True, ortho_num_steps=0, generator=seeded(1))
        with pytest.raises(FileExistsError, match=str(folder)):
            other.save(folder)
        assert torch.equal(ToyModel.load(folder).embed.weight, world.embed.weight)

    def test_takes_an_empty_folder_but_no_file(self, world: ToyModel, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        world.save(tmp_path / "empty")
        assert ToyModel.load(tmp_path / "empty").config == world.config
        (tmp_path / "file").write_text("mine")
        with pytest.raises(FileExistsError, match="file already holds something"):
            world.save(tmp_path / "file")
        assert (tmp_path / "file").read_text() == "mine"

    def test_a_save_that_fails_leaves_nothing(
        self, world: ToyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full_disk(*_: Any, **__: Any) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(OSError, match="no space left"):
            world.save(tmp_path / "world")
        assert list(tmp_path.iterdir()) == []

    def test_another_save_that_came_first_wins(
        self, world: ToyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "world"
        rename = Path.rename

        def too_late(self: Path, target: Path) -> Path:
            folder.mkdir()
            (folder / "theirs").write_text("theirs")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", too_late)
        with pytest.raises(FileExistsError, match=str(folder)):
            world.save(folder)
        assert [path.name for path in tmp_path.iterdir()] == ["world"]
        assert [path.name for path in folder.iterdir()] == ["theirs"]

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
            ToyModel.load(tmp_path / "nowhere")

    @pytest.mark.parametrize("name", ["toy_model.json", "toy_model.safetensors"])
    def test_missing_file(self, world: ToyModel, tmp_path: Path, name: str) -> None:
        world.save(tmp_path / "world")
        (tmp_path / "world" / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"world: it has no {name}"):
            ToyModel.load(tmp_path / "world")

    @pytest.mark.parametrize("name", ["toy_model.json", "toy_model.safetensors"])
    @pytest.mark.parametrize("kept", [0, 60, -1])
    def test_truncated_file(self, world: ToyModel, tmp_path: Path, name: str, kept: int) -> None:
        world.save(tmp_path / "world")
        path = tmp_path / "world" / name
        # A JSON file ends with a newline that it can spare.
        path.write_bytes(path.read_bytes().rstrip(b"\n")[:kept])
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            ToyModel.load(tmp_path / "world")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.update(format_version=9), "has format version 9; this release reads 1"),
            (lambda d: d.pop("config"), "config must hold exactly num_feats"),
            (lambda d: d["config"].pop("bias"), "config must hold exactly num_feats"),
            (lambda d: d["config"].update(num_feats="5"), "num_feats is '5', not a int"),
            (lambda d: d["config"].update(num_feats=True), "num_feats is True, not a int"),
            (lambda d: d["config"].update(num_feats=6), "is no single world"),
            (lambda d: d["config"].update(bias=False), "is no single world"),
        ],
    )
    def test_config_that_does_not_fit(
        self,
        world: ToyModel,
        tmp_path: Path,
        change: Callable[[dict[str, Any]], object],
        message: str,
    ) -> None:
        world.save(tmp_path / "world")
        path = tmp_path / "world" / "toy_model.json"
        description = json.loads(path.read_text())
        change(description)
        path.write_text(json.dumps(description))
        with pytest.raises(ValueError, match=message):
            ToyModel.load(tmp_path / "world")

    def test_config_that_is_no_object(self, world: ToyModel, tmp_path: Path) -> None:
        world.save(tmp_path / "world")
        (tmp_path / "world" / "toy_model.json").write_text("[]")
        with pytest.raises(ValueError, match="has format version None"):
            ToyModel.load(tmp_path / "world")

    def test_values_that_are_not_finite(self, world: ToyModel, tmp_path: Path) -> None:
        world.save(tmp_path / "world")
        path = tmp_path / "world" / "toy_model.safetensors"
        tensors = load_file(path)
        tensors["embed.weight"][2, 3] = float("nan")
        save_file(tensors, path)
        with pytest.raises(ValueError, match=r"embed\.weight holds values that are not finite"):
            ToyModel.load(tmp_path / "world")
