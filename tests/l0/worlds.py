"""Small worlds with a known answer."""

from __future__ import annotations

import torch

from sparse_but_wrong.l0.dictionaries import Directions
from sparse_but_wrong.worlds.correlations import generate_random_correlation_matrix
from sparse_but_wrong.worlds.toy_model import ToyModel
from sparse_but_wrong.worlds.world import ToyActivations, ToyWorld


def small_world(
    n: int = 20, d_in: int = 30, l0: float = 4.0, sigma: float = 0.15, common: float | None = None
) -> ToyWorld:
    """n correlated features of which l0 are active at a time (a little fewer where σ is wide).

    Args:
        common: the firing probability of the first feature, in place of its own.
    """
    probabilities = torch.linspace(1.0, 0.3, n)
    probabilities *= l0 / probabilities.sum()
    if common is not None:
        probabilities[0] = common
    return ToyWorld.of_model(
        ToyModel(
            n,
            d_in,
            ortho_num_steps=300,
            generator=torch.Generator().manual_seed(0),
            ortho_renormalize=True,
        ),
        probabilities,
        torch.full((n,), sigma),
        torch.ones(n),
        generate_random_correlation_matrix(n, correlation_strength_range=(0.3, 0.8), seed=1),
    )


def stream(world: ToyWorld, seed: int = 0, batch_size: int = 512) -> ToyActivations:
    return ToyActivations(world.model, world.sampler, batch_size, seed=seed)


def samples(world: ToyWorld, n: int, seed: int = 99) -> tuple[torch.Tensor, float]:
    """Activations, and the features active in them per sample."""
    features = world.sampler.sample(n, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return world.model.embed(features), (features > 0).sum(1).double().mean().item()


def true_directions(world: ToyWorld, penalty: float = 0.01) -> Directions:
    rows = torch.nn.functional.normalize(world.directions.T.contiguous(), dim=1)
    return Directions(rows, torch.zeros(rows.shape[1]), penalty)


def found(directions: Directions, true: torch.Tensor) -> int:
    """How many of the directions in the columns of `true` are among those learned."""
    cosines = directions.rows @ torch.nn.functional.normalize(true, dim=0)
    return int((cosines.max(0).values > 0.99).sum())
