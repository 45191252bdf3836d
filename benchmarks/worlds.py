"""The worlds that the benchmark trains on, and their streams of activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle

import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from sparse_but_wrong.experiments.registry import FIFTY_FEATURES
from sparse_but_wrong.runs.make import make_world
from sparse_but_wrong.worlds.features import FeatureSampler
from sparse_but_wrong.worlds.world import embedded

BATCH = 1024
MID_L0 = 20
LLM_D_SAE, LLM_L0 = 2304, 64
_N_STORED = 16


@dataclass(frozen=True)
class BenchWorld:
    """A world and what an SAE of it looks like."""

    name: str
    n_features: int
    d_in: int
    d_sae: int
    batch_size: int
    device: torch.device

    fast: Iterator[Tensor]
    """This package's stream: activations [batch, d_in]."""

    published: Iterator[Tensor] | None = None
    """The same law at the cost of the published code, where somebody published one."""

    step_cost: int = 1
    """How many times fewer steps are timed than in the toy world, so that it takes as long."""

    @property
    def product_flops(self) -> int:
        """Floating-point operations of the five matrix products of one SAE-step.

        Two forward, and three back: the input needs no gradient.
        """
        return 5 * 2 * self.batch_size * self.d_in * self.d_sae

    def __str__(self) -> str:
        return (
            f"{self.name} world (F = {self.n_features}, D = {self.d_in}, H = {self.d_sae}, "
            f"B = {self.batch_size})"
        )


def toy(device: torch.device) -> BenchWorld:
    """The world of the JumpReLU notebook."""
    world = make_world(FIFTY_FEATURES, seed=0, device=device)
    if world.correlation_matrix is None:
        raise ValueError("the JumpReLU experiment's world has no correlations; it should.")
    # The matrix is nearly singular, and whether a float32 Cholesky factor is found is up to the
    # device; with a little more on the diagonal there is one everywhere.
    regular = world.correlation_matrix + 1e-5 * torch.eye(len(world.correlation_matrix))
    published = partial(
        draw_features_afresh,
        firing_probabilities=world.firing_probabilities.to(device),
        std_firing_magnitudes=world.std_firing_magnitudes.to(device),
        correlation_matrix=regular.to(device),
    )
    return BenchWorld(
        "toy",
        n_features=world.directions.shape[1],
        d_in=world.directions.shape[0],
        d_sae=world.directions.shape[1],
        batch_size=BATCH,
        device=device,
        fast=embedded(world.model, world.sampler.sample, BATCH),
        published=embedded(world.model, published, BATCH),
    )


def draw_features_afresh(
    batch_size: int,
    firing_probabilities: Tensor,
    std_firing_magnitudes: Tensor,
    correlation_matrix: Tensor,
) -> Tensor:
    """Features [batch, F] at the cost of the published code: nothing is kept between batches.

    Only to time the notebook's way of training. They follow the same law, in the same order of
    draws, as `sparse_but_wrong.worlds.features`.
    """
    n_features = len(firing_probabilities)
    device = firing_probabilities.device
    copula = MultivariateNormal(
        torch.zeros(n_features, device=device), covariance_matrix=correlation_matrix
    )
    gaussian = copula.sample((batch_size,))
    fires = torch.zeros(batch_size, n_features, device=device)
    for i in range(n_features):
        threshold = float(norm.ppf(1 - firing_probabilities[i].item()))
        fires[:, i] = (gaussian[:, i] > threshold).float()
    noise = torch.randn(batch_size, n_features, device=device) * std_firing_magnitudes
    return fires * (1.0 + noise).relu()


def mid_size(device: torch.device) -> BenchWorld:
    """Many more features than dimensions, drawn as they are needed."""
    return _superposed("mid-size", (2048, 256, 1024), MID_L0, device, step_cost=10)


def llm_size(device: torch.device) -> BenchWorld:
    """The size of SAEs on a small language model, or on a GPU on one of two billion parameters; on
    a few batches that were stored beforehand."""
    sizes = (8192, 576, LLM_D_SAE) if device.type == "cpu" else (32_768, 2304, 16_384)
    world = _superposed("LLM-size", sizes, LLM_L0, device, step_cost=50)
    stored = [next(world.fast) for _ in range(_N_STORED)]
    return replace(world, fast=cycle(stored))


def _superposed(
    name: str, sizes: tuple[int, int, int], l0: int, device: torch.device, step_cost: int
) -> BenchWorld:
    """Independent features in random directions.

    Random directions in place of near-orthogonal ones: making those of 2,048 features takes long
    and changes no step's cost.
    """
    n_features, d_in, _ = sizes
    directions = torch.randn(d_in, n_features, generator=torch.Generator().manual_seed(0))
    embed = nn.Linear(n_features, d_in, bias=False)
    embed.weight.data.copy_(nn.functional.normalize(directions, dim=0))
    sampler = FeatureSampler(
        torch.full((n_features,), l0 / n_features),
        torch.full((n_features,), 0.15),
        device=device,
    )
    fast = embedded(embed.to(device), sampler.sample, BATCH)
    return BenchWorld(name, *sizes, BATCH, device, fast, step_cost=step_cost)


WORLDS: dict[str, Callable[[torch.device], BenchWorld]] = {
    "toy": toy,
    "mid-size": mid_size,
    "LLM-size": llm_size,
}
