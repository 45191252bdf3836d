"""Activations of a toy world: features drawn, then embedded in its directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparse_but_wrong.worlds.sampler import FeatureSampler


class EmbeddedFeatures(Iterator[Tensor]):
    """Batches of features from any function, embedded by a toy model.

    Args:
        embed: maps features [batch, n_features] to activations [batch, d_in]; a `ToyModel`.
        draw_features: called with a number of samples, gives features [batch, n_features].
        batch_size: samples per batch.
    """

    def __init__(
        self, embed: nn.Module, draw_features: Callable[[int], Tensor], batch_size: int
    ) -> None:
        self.embed = embed
        self.draw_features = draw_features
        self.batch_size = batch_size

    @torch.no_grad()
    def __next__(self) -> Float[Tensor, "batch d_in"]:
        return self.embed(self.draw_features(self.batch_size))


class ToyActivations(Iterator[Tensor]):
    """The activations of a toy world, in an order that a seed decides and that can be resumed.

    Args:
        embed: maps features [batch, n_features] to activations [batch, d_in]; a `ToyModel`.
        sampler: draws the features.
        batch_size: samples per batch.
        seed: of this stream's own generator; the global generators are left alone.
    """

    def __init__(
        self, embed: nn.Module, sampler: FeatureSampler, batch_size: int, seed: int
    ) -> None:
        self.embed = embed
        self.sampler = sampler
        self.batch_size = batch_size
        self.generator = torch.Generator(device=sampler.device).manual_seed(seed)

    @torch.no_grad()
    def __next__(self) -> Float[Tensor, "batch d_in"]:
        return self.embed(self.sampler.sample(self.batch_size, generator=self.generator))

    def state(self) -> dict[str, Tensor]:
        """The generator's state."""
        return {"generator": self.generator.get_state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a state of the generator."""
        self.generator.set_state(state["generator"])
