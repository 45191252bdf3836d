"""Small worlds with a known answer."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_but_wrong.l0.dictionaries import Directions
from sparse_but_wrong.worlds.correlations import generate_random_correlation_matrix
from sparse_but_wrong.worlds.toy_model import ToyModel
from sparse_but_wrong.worlds.world import ToyActivations, ToyWorld


@functools.cache
def small_world(l0: float = 4.0, sigma: float = 0.15, common: float | None = None) -> ToyWorld:
    """20 correlated features in 30 dimensions, of which l0 are active at a time (a little fewer
    where σ is wide); `common` is the firing probability of the first, in place of its own."""
    n, d_in = 20, 30
    probabilities = torch.linspace(1.0, 0.3, n)
    probabilities *= l0 / probabilities.sum()
    if common is not None:
        probabilities[0] = common
    generator = torch.Generator().manual_seed(0)
    return ToyWorld.of_model(
        ToyModel(n, d_in, ortho_num_steps=300, generator=generator, ortho_renormalize=True),
        probabilities,
        torch.full((n,), sigma),
        torch.ones(n),
        generate_random_correlation_matrix(n, correlation_strength_range=(0.3, 0.8), seed=1),
    )


def stream(world: ToyWorld, seed: int = 0, batch_size: int = 512) -> ToyActivations:
    return ToyActivations(world.model, world.sampler, batch_size, seed=seed)


def samples(world: ToyWorld, n: int, seed: int = 99) -> tuple[Tensor, float]:
    """Activations, and the features active in them per sample."""
    features = world.sampler.sample(n, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return world.model.embed(features), (features > 0).sum(1).double().mean().item()


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def random_rows(n: int, d: int, seed: int = 0) -> Tensor:
    return unit(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def true_directions(world: ToyWorld, penalty: float = 0.01) -> Directions:
    rows = unit(world.directions.T.contiguous())
    return Directions(rows, torch.zeros(rows.shape[1]), penalty)


class Known(NamedTuple):
    true: Directions
    x: Tensor
    l0: float
    """Features active per sample of x."""


def known(n_samples: int = 8_192, penalty: float = 0.01, **of_world: Any) -> Known:
    """The directions of a small world, and samples of it."""
    world = small_world(**of_world)
    return Known(true_directions(world, penalty), *samples(world, n_samples))


def found(directions: Directions, true: Directions) -> int:
    """How many of the true directions are among those learned."""
    return int(((directions.rows @ true.rows.T).max(0).values > 0.99).sum())
