from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_but_wrong.worlds import orthogonalize as module
from sparse_but_wrong.worlds.orthogonalize import orthogonalize


def off_diagonal(vectors: Tensor) -> Tensor:
    cosines = vectors @ vectors.T
    return cosines[~torch.eye(len(vectors), dtype=torch.bool)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_few_steps_leave_the_published_noise() -> None:
    noise = [
        float(off_diagonal(orthogonalize(50, 100, num_steps=4, generator=seeded(s))).abs().mean())
        for s in range(25)
    ]
    # Over seeds it varies by 0.0016, so that the mean of 25 is uncertain by 0.0003; three of them.
    assert sum(noise) / 25 == pytest.approx(0.0492, abs=0.001)
    renormalized = orthogonalize(50, 100, num_steps=4, generator=seeded(), renormalize=True)
    assert float(off_diagonal(renormalized).abs().mean()) == pytest.approx(0.030, abs=0.001)
    # With many there is as good as none.
    many = off_diagonal(orthogonalize(50, 100, generator=seeded()))
    assert float(many.abs().mean()) < 2e-4


@pytest.mark.parametrize("shape", [(50, 100), (80, 40)])
@pytest.mark.parametrize("num_steps", [1, 4, 30])
def test_agrees_with_sae_lens(shape: tuple[int, int], num_steps: int) -> None:
    """The slow oracle: autograd, by the author of the published code."""
    from sae_lens.synthetic.feature_dictionary import orthogonalize_embeddings

    expected = orthogonalize_embeddings(torch.randn(*shape, generator=seeded()), num_steps, lr=0.02)
    vectors = orthogonalize(*shape, num_steps=num_steps, lr=0.02, generator=seeded())
    assert torch.allclose(vectors, expected, atol=1e-4)


def test_default_target_is_met_to_rounding_when_there_is_room() -> None:
    vectors = orthogonalize(50, 100, generator=seeded(), renormalize=True)
    assert vectors.shape == (50, 100)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(50), atol=1e-6)
    assert float(off_diagonal(vectors).abs().max()) < 1e-5
    assert not vectors.requires_grad


def test_a_target_other_than_zero() -> None:
    cosines = off_diagonal(orthogonalize(20, 40, 0.3, generator=seeded(), renormalize=True))
    assert torch.allclose(cosines, torch.full_like(cosines, 0.3), atol=1e-5)
    published = off_diagonal(orthogonalize(20, 40, 0.3, generator=seeded()))
    assert torch.allclose(published, torch.full_like(cosines, 0.3), atol=1e-3)


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


def test_few_steps_leave_noise_and_none_leaves_the_random_start() -> None:
    start = orthogonalize(50, 100, num_steps=0, generator=seeded())
    expected = torch.nn.functional.normalize(torch.randn(50, 100, generator=seeded()), dim=1)
    assert torch.allclose(start, expected, atol=1e-6)
    noise = [
        float(off_diagonal(orthogonalize(50, 100, num_steps=n, generator=seeded())).abs().max())
        for n in (0, 3, 10, 30)
    ]
    assert noise == sorted(noise, reverse=True)
    assert noise[-1] > 1e-3


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


def test_agrees_with_torchs_adam() -> None:
    vectors = orthogonalize(6, 4, num_steps=0, generator=seeded()).requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=0.02)
    for _ in range(20):
        optimizer.zero_grad()
        off_diagonal(torch.nn.functional.normalize(vectors, dim=1)).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            vectors /= vectors.norm(dim=1, keepdim=True)
    mine = orthogonalize(6, 4, num_steps=20, lr=0.02, generator=seeded(), renormalize=True)
    assert torch.allclose(mine, vectors.detach(), atol=1e-4)


def test_same_inside_and_outside_no_grad() -> None:
    outside = orthogonalize(5, 8, num_steps=20, generator=seeded())
    with torch.no_grad():
        inside = orthogonalize(5, 8, num_steps=20, generator=seeded())
    assert torch.equal(inside, outside)
    assert torch.is_grad_enabled()


def test_global_generator_unless_given_one() -> None:
    torch.manual_seed(1)
    first = orthogonalize(5, 8, num_steps=5)
    torch.manual_seed(1)
    assert torch.equal(orthogonalize(5, 8, num_steps=5), first)
    assert torch.equal(orthogonalize(5, 8, num_steps=5, generator=seeded(1)), first)
    before = torch.get_rng_state()
    orthogonalize(5, 8, num_steps=5, generator=seeded(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(1, 4), (1, 1), (3, 1)])
def test_nothing_to_do_is_no_error(shape: tuple[int, int]) -> None:
    vectors = orthogonalize(*shape, num_steps=10, generator=seeded())
    assert torch.allclose(vectors.norm(dim=1), torch.ones(shape[0]), atol=1e-6)


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
