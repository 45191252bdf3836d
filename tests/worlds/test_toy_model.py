from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_but_wrong.worlds import toy_model as module
from sparse_but_wrong.worlds.toy_model import ToyModel, orthogonalize

JSON, SAFETENSORS = "toy_model.json", "toy_model.safetensors"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def world() -> ToyModel:
    return ToyModel(5, 8, bias=True, ortho_num_steps=50, generator=seeded())


def test_the_notebook_world() -> None:
    model = ToyModel(50, 100, generator=seeded(), ortho_renormalize=True)
    assert isinstance(model.embed, nn.Linear)
    assert model.embed.bias is None
    weight = model.embed.weight
    assert weight.shape == (100, 50)
    # Safetensors and the caller's `.view` both want this.
    assert weight.is_contiguous()
    assert torch.allclose(weight.T @ weight, torch.eye(50), atol=1e-5)


def test_embeds_features(world: ToyModel) -> None:
    direction = world.embed.weight
    activation = world(torch.tensor([[2.0, 0, 0, 0, 0], [0.0, 1, 3, 0, 0], [0.0] * 5]))
    sums = [2 * direction[:, 0], direction[:, 1] + 3 * direction[:, 2], torch.zeros(8)]
    assert torch.allclose(activation, torch.stack(sums) + world.embed.bias, atol=1e-6)
    assert not activation.requires_grad
    assert 0 < float(world.embed.bias.abs().max()) <= 5**-0.5


def test_run_with_cache_gives_the_activations_twice(world: ToyModel) -> None:
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


def test_arguments_reach_the_directions() -> None:
    model = ToyModel(6, 12, 0.25, False, 0.02, 500, generator=seeded())
    cosines = model.embed.weight.T @ model.embed.weight
    assert torch.allclose(cosines, torch.full((6, 6), 0.25).fill_diagonal_(1), atol=1e-4)
    renormalized = ToyModel(6, 12, ortho_num_steps=4, generator=seeded(), ortho_renormalize=True)
    rows = orthogonalize(6, 12, num_steps=4, generator=seeded(), renormalize=True)
    assert torch.equal(renormalized.embed.weight, rows.T)


@pytest.mark.parametrize("bias", [True, False])
def test_a_folder_keeps_it(tmp_path: Path, bias: bool) -> None:
    world = ToyModel(5, 8, 0.1, bias, ortho_num_steps=50, generator=seeded()).double()
    folder = tmp_path / "runs" / "world"
    world.save(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == [JSON, SAFETENSORS]
    assert [path.name for path in folder.parent.iterdir()] == ["world"]
    description = json.loads((folder / JSON).read_text())
    assert description["package_version"]
    assert description["config"]["num_feats"] == 5
    before = torch.get_rng_state()
    loaded = ToyModel.load(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.config == world.config
    assert loaded.embed.weight.dtype == torch.float64
    assert loaded.state_dict().keys() == world.state_dict().keys()
    for name, value in world.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    # It is never overwritten.
    with pytest.raises(FileExistsError, match=str(folder)):
        ToyModel(5, 8, ortho_num_steps=0, generator=seeded(1)).save(folder)
    assert torch.equal(ToyModel.load(folder).embed.weight, world.embed.weight)


@pytest.mark.parametrize("name", [JSON, SAFETENSORS])
def test_missing_and_truncated_files(world: ToyModel, tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ToyModel.load(tmp_path / "nowhere")
    world.save(tmp_path / "world")
    path = tmp_path / "world" / name
    # A JSON file ends with a newline that it can spare.
    content = path.read_bytes().rstrip(b"\n")
    for kept in (0, 60, -1):
        path.write_bytes(content[:kept])
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            ToyModel.load(tmp_path / "world")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"world/{name}"):
        ToyModel.load(tmp_path / "world")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format_version=9), "format version is 9"),
        (lambda d: d.pop("config"), r"damaged \(config"),
        (lambda d: d["config"].pop("bias"), r"damaged \(config"),
        (lambda d: d["config"].update(num_feats="5"), "config.num_feats: .*integer"),
        (lambda d: d["config"].update(num_feats=True), "config.num_feats: .*integer"),
        (lambda d: d["config"].update(num_feats=6), "different worlds"),
        (lambda d: d["config"].update(bias=False), "different worlds"),
    ],
)
def test_config_that_does_not_fit(
    world: ToyModel, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    world.save(tmp_path / "world")
    path = tmp_path / "world" / JSON
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=message):
        ToyModel.load(tmp_path / "world")


def test_values_that_are_not_finite(world: ToyModel, tmp_path: Path) -> None:
    world.embed.weight[2, 3] = float("nan")
    world.save(tmp_path / "world")
    with pytest.raises(ValueError, match=r"embed\.weight holds values that are not finite"):
        ToyModel.load(tmp_path / "world")


def off_diagonal(vectors: Tensor) -> Tensor:
    cosines = vectors @ vectors.T
    return cosines[~torch.eye(len(vectors), dtype=torch.bool)]


def test_steps_take_noise_away_from_the_random_start() -> None:
    start = orthogonalize(50, 100, num_steps=0, generator=seeded())
    expected = torch.nn.functional.normalize(torch.randn(50, 100, generator=seeded()), dim=1)
    assert torch.allclose(start, expected, atol=1e-6)
    noise = [
        float(off_diagonal(orthogonalize(50, 100, num_steps=n, generator=seeded())).abs().max())
        for n in (0, 3, 10, 30)
    ]
    assert noise == sorted(noise, reverse=True)
    assert noise[-1] > 1e-3


def test_few_steps_leave_the_published_noise_and_many_as_good_as_none() -> None:
    noise = [
        float(off_diagonal(orthogonalize(50, 100, num_steps=4, generator=seeded(s))).abs().mean())
        for s in range(25)
    ]
    # Over seeds it varies by 0.0016, so that the mean of 25 is uncertain by 0.0003; three of them.
    assert sum(noise) / 25 == pytest.approx(0.0492, abs=0.001)
    renormalized = orthogonalize(50, 100, num_steps=4, generator=seeded(), renormalize=True)
    assert float(off_diagonal(renormalized).abs().mean()) == pytest.approx(0.030, abs=0.001)
    assert float(off_diagonal(orthogonalize(50, 100, generator=seeded())).abs().mean()) < 2e-4


@pytest.mark.parametrize("shape", [(50, 100), (80, 40)])
@pytest.mark.parametrize("num_steps", [1, 4, 30])
def test_agrees_with_sae_lens(shape: tuple[int, int], num_steps: int) -> None:
    """The slow oracle: autograd, by the author of the published code."""
    from sae_lens.synthetic.feature_dictionary import orthogonalize_embeddings

    expected = orthogonalize_embeddings(torch.randn(*shape, generator=seeded()), num_steps, lr=0.02)
    vectors = orthogonalize(*shape, num_steps=num_steps, lr=0.02, generator=seeded())
    assert torch.allclose(vectors, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("target", "renormalize", "tolerance"), [(0, True, 1e-5), (0.3, True, 1e-5), (0.3, False, 1e-3)]
)
def test_a_target_is_met_when_there_is_room(
    target: float, renormalize: bool, tolerance: float
) -> None:
    vectors = orthogonalize(50, 100, target, generator=seeded(), renormalize=renormalize)
    cosines = off_diagonal(vectors)
    assert torch.allclose(cosines, torch.full_like(cosines, target), atol=tolerance)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(50), atol=1e-6)
    assert not vectors.requires_grad


def test_three_in_the_plane_by_hand() -> None:
    # Three lines in the plane with the least Σcos² are 60° apart: |cos| = 1/2 for every pair.
    cosines = off_diagonal(orthogonalize(3, 2, generator=seeded()))
    assert torch.allclose(cosines.abs(), torch.full_like(cosines, 0.5), atol=0.01)


@pytest.mark.parametrize("renormalize", [False, True])
def test_superposition_noise_is_the_least_possible(renormalize: bool) -> None:
    cosines = off_diagonal(orthogonalize(80, 40, generator=seeded(), renormalize=renormalize))
    # Welch: 80 vectors in 40 dimensions have a root mean square cosine of at least 0.1125.
    welch = ((80 - 40) / (40 * 79)) ** 0.5
    assert welch - 1e-5 < float(cosines.square().mean().sqrt()) < 1.01 * welch
    # Random unit vectors reach 0.158 and about 0.6.
    assert float(cosines.abs().max()) < 0.45


@pytest.mark.parametrize("of_cosines", [False, True])
def test_gradient_agrees_with_autograd(monkeypatch: pytest.MonkeyPatch, of_cosines: bool) -> None:
    # Chunks of 3 rows, so that 7 vectors take three chunks and the last is short.
    monkeypatch.setattr(module, "_CHUNK", 3)
    vectors = orthogonalize(7, 5, num_steps=0, generator=seeded())
    if not of_cosines:
        vectors *= torch.linspace(0.5, 1.5, 7)[:, None]
    vectors.requires_grad_()
    unit = torch.nn.functional.normalize(vectors, dim=1) if of_cosines else vectors
    loss = (off_diagonal(unit) - 0.2).square().sum()
    if not of_cosines:
        loss = loss + 7 * (vectors.square().sum(dim=1) - 1).square().sum()
    loss.backward()
    gradient = torch.empty(7, 5)
    module._gradient_(gradient, vectors.detach(), 0.2, of_cosines=of_cosines)
    assert vectors.grad is not None
    assert torch.allclose(gradient, vectors.grad, atol=1e-5)


def test_global_generator_unless_given_one() -> None:
    torch.manual_seed(1)
    first = orthogonalize(5, 8, num_steps=5)
    torch.manual_seed(1)
    assert torch.equal(orthogonalize(5, 8, num_steps=5), first)
    assert torch.equal(orthogonalize(5, 8, num_steps=5, generator=seeded(1)), first)
    before = torch.get_rng_state()
    orthogonalize(5, 8, num_steps=5, generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_vectors": 0}, "num_vectors is 0"),
        ({"vector_len": 0}, "vector_len is 0"),
        ({"num_steps": -1}, "num_steps is -1"),
        ({"target_cos_sim": 1.5}, "target_cos_sim is 1.5"),
        ({"lr": 0.0}, "lr is 0"),
        ({"lr": float("nan")}, "lr is nan"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        orthogonalize(**{"num_vectors": 3, "vector_len": 4, **arguments})
