"""The large worlds: up to 4,096 features in up to 256 dimensions, most wider than their SAEs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import TypeAdapter
from torch import Tensor

from benchmarks.l0.worlds import STRICT, ToyRecipe
from sparse_but_wrong.runs.make import make_world
from sparse_but_wrong.seeds import derive_seed
from sparse_but_wrong.worlds.synthetic import SyntheticWorld
from sparse_but_wrong.worlds.world import ToyWorld

WORLDS = Path("runs/large_worlds")

Architecture = Literal["batchtopk", "jumprelu", "matryoshka_batchtopk"]

_L0_SAMPLES = 50_000
_BATCH = 2_048


@dataclass(frozen=True, eq=False)
class LargeWorld:
    """A large world of the benchmark, made when it is first drawn from."""

    __pydantic_config__ = STRICT

    name: str
    split: Literal["tune", "report"]
    """Whether settings may be chosen by it, or it is only reported."""

    d_sae: int
    synthetic: dict[str, Any] | None = None
    """A `sae_lens.synthetic.SyntheticModelConfig`."""

    toy: ToyRecipe | None = None
    """A toy world, where it is no synthetic one."""

    noise: float = 0.0
    """Standard deviation of Gaussian noise in each dimension."""

    @cached_property
    def world(self) -> ToyWorld:
        """The features and directions, without the noise."""
        if self.toy is not None:
            return make_world(self.toy.spec(), 0, name=self.name)
        config = self.synthetic or {}
        made_from = derive_seed(0, json.dumps(config, sort_keys=True))
        return kept_world(config, WORLDS / f"{self.name}_{made_from:x}")

    @property
    def d_in(self) -> int:
        """Known without making the world, which takes a minute where it is large."""
        return self.toy.d_in if self.toy is not None else (self.synthetic or {})["hidden_dim"]

    @cached_property
    def l0(self) -> tuple[float, float]:
        """Features active per sample: all, and the d_sae with the largest mean square."""
        features = self.samples(_L0_SAMPLES, "l0")[1]
        active = (features > 0).double().mean(0)
        top = features.square().mean(0).argsort(descending=True)[: self.d_sae]
        return float(active.sum()), float(active[top].sum())

    @cached_property
    def mean(self) -> Float[Tensor, " d_in"]:
        """Of the activations."""
        return self.samples(_L0_SAMPLES, "mean")[0].mean(0)

    def samples(
        self, n: int, purpose: str
    ) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n n_features"]]:
        """Activations and the features in them; the same for the same purpose."""
        drawn = self._drawn(_BATCH, purpose)
        parts = [next(drawn) for _ in range(-(-n // _BATCH))]
        return torch.cat([x for x, _ in parts])[:n], torch.cat([f for _, f in parts])[:n]

    def stream(self, batch_size: int, purpose: str) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Activations without end."""
        return (x for x, _ in self._drawn(batch_size, purpose))

    def _drawn(self, batch_size: int, purpose: str) -> Iterator[tuple[Tensor, Tensor]]:
        stream = self.world.stream(batch_size, derive_seed(0, purpose, self.name))
        while True:
            x, features = stream.draw()
            if self.noise:
                x = x + self.noise * torch.randn(x.shape, generator=stream.generator)
            yield x, features


def kept_world(config: Mapping[str, Any], folder: Path, device: str = "cpu") -> SyntheticWorld:
    """The world of a config, from the folder that keeps it; made and kept there if it is not.

    Making directions near-orthogonal takes minutes. A loaded world draws the same samples as the
    one that was saved: its directions, hierarchy, probabilities and correlations are in the folder,
    its magnitudes follow from the seed. Made on another device its directions would be others.

    Raises:
        ValueError: the folder keeps the world of another config.
    """
    from sae_lens.synthetic import SyntheticModelConfig

    if not SyntheticWorld.is_saved_in(folder):
        SyntheticWorld(config, device=device).save(folder)
    world = SyntheticWorld.load(folder, device)
    if world.synthetic.cfg != SyntheticModelConfig.from_dict(dict(config)):
        raise ValueError(f"{folder} keeps the world of another config; name another folder.")
    return world


def read_large_worlds() -> dict[str, LargeWorld]:
    """The large worlds by name."""
    import yaml

    text = resources.files("benchmarks.l0").joinpath("large.yaml").read_text(encoding="utf-8")
    entries = TypeAdapter(list[LargeWorld]).validate_json(json.dumps(yaml.safe_load(text)))
    return {entry.name: entry for entry in entries}


def chosen_worlds(names: Sequence[str], split: str | None) -> list[LargeWorld]:
    """The large worlds of some names, or all, that are in a split, or in either.

    Raises:
        ValueError: a name that no large world has.
    """
    worlds = read_large_worlds()
    if unknown := set(names) - set(worlds):
        raise ValueError(f"no large world is called {unknown}; there are {', '.join(worlds)}.")
    return [
        world
        for world in worlds.values()
        if (not names or world.name in names) and split in (None, world.split)
    ]
