"""The benchmark's worlds, as data: one file lists them, and each is made from its entry alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor

from sparse_but_wrong.runs.make import make_world
from sparse_but_wrong.runs.spec import CorrelatedPairs, CorrelationSpec, WorldSpec
from sparse_but_wrong.seeds import derive_seed
from sparse_but_wrong.worlds.world import ToyActivations, embedded

STRICT = ConfigDict(extra="forbid")
_TRUTH_SAMPLES = 200_000


@dataclass(frozen=True)
class Blocks:
    """Blocks of consecutive features, all pairs within a block correlated alike."""

    __pydantic_config__ = STRICT

    block: int
    """Features per block."""

    strength: float
    """Latent correlation within a block."""


@dataclass(frozen=True)
class ToyRecipe:
    """A toy world in a few numbers."""

    __pydantic_config__ = STRICT

    n_features: int
    d_in: int
    l0: float
    """The sum of the firing probabilities."""

    firing: Literal["linear", "zipf", "constant"] = "linear"
    """How probabilities fall with a feature's rank i = 0, 1, …: along a line to 0.15 of the first,
    as (i + 3)^−0.8, or not at all."""

    sigma: float = 0.15
    """Standard deviation of magnitudes, whose mean is 1."""

    correlation: CorrelationSpec | Blocks | None = None

    offset: float = 0.0
    """Length of a vector that is added to all activations."""

    noise: float = 0.0
    """Standard deviation of Gaussian noise in each dimension."""

    def spec(self) -> WorldSpec:
        """The whole world.

        Raises:
            ValueError: an l0 that asks for a probability above 0.95.
        """
        n = self.n_features
        shares = {
            "linear": [1 - 0.85 * i / (n - 1) for i in range(n)],
            "zipf": [(i + 3) ** -0.8 for i in range(n)],
            "constant": [1.0] * n,
        }[self.firing]
        probabilities = [self.l0 * share / sum(shares) for share in shares]
        if max(probabilities) > 0.95:
            raise ValueError(
                f"an l0 of {self.l0} over {n} features asks for a firing probability of "
                f"{max(probabilities):.2f}; it must be 0.95 or less."
            )
        correlation = self.correlation
        if isinstance(correlation, Blocks):
            correlation = CorrelatedPairs(
                tuple(
                    (i, j, correlation.strength)
                    for i in range(n)
                    for j in range(i + 1, n)
                    if i // correlation.block == j // correlation.block
                )
            )
        return WorldSpec(
            d_in=self.d_in,
            firing_probabilities=tuple(probabilities),
            std_firing_magnitudes=(self.sigma,) * n,
            mean_firing_magnitudes=(1.0,) * n,
            correlation=correlation,
        )


@dataclass(frozen=True)
class HierarchyRecipe:
    """Activations of `sae_lens.synthetic`: children fire only where their parent does."""

    __pydantic_config__ = STRICT

    n_features: int
    d_in: int
    roots: int
    """Features at the top of a tree; what is left after the trees is on its own."""

    branching: int
    depth: int
    probability: float
    """Of a root, of a feature on its own, and of a child given its parent."""

    sigma: float = 0.15


@dataclass(frozen=True)
class NoiseRecipe:
    """Gaussian noise without features: no L0 is right."""

    __pydantic_config__ = STRICT

    d_in: int
    latents: int
    decay: float = 0.0
    """Standard deviations are i^−decay, i = 1, 2, …, along the axes of a random rotation."""

    @property
    def n_features(self) -> int:
        """None."""
        return 0


@dataclass(frozen=True)
class BenchmarkWorld:
    """One entry of the benchmark."""

    __pydantic_config__ = STRICT

    name: str
    split: Literal["tune", "report"]
    """Whether settings may be chosen by it, or it is only reported."""

    architecture: Literal["batchtopk", "jumprelu"]
    world: ToyRecipe | HierarchyRecipe | NoiseRecipe
    width: float = 1.0
    """d_sae in units of n_features; of `latents`, where there are no features."""

    @property
    def d_sae(self) -> int:
        """Latents of the SAEs."""
        world = self.world
        return round(
            self.width * (world.latents if isinstance(world, NoiseRecipe) else world.n_features)
        )


@dataclass(frozen=True, eq=False)
class Made:
    """A world of the benchmark, ready to draw from."""

    source: Iterator[Float[Tensor, "batch d_in"]]
    true_l0: float
    """Features with a magnitude above 0, per sample, whatever the SAEs' width: what an SAE that is
    wide enough has to reach. NaN where there are no features."""


def read_worlds() -> dict[str, BenchmarkWorld]:
    """The benchmark's worlds by name.

    Raises:
        ValueError: an entry that is none, or a name that occurs twice.
    """
    import yaml

    text = resources.files("benchmarks.l0").joinpath("worlds.yaml")
    # As JSON, where strict fields still take a list for a tuple and a mapping for a record.
    entries = TypeAdapter(list[BenchmarkWorld]).validate_json(
        json.dumps(yaml.safe_load(text.read_text(encoding="utf-8")))
    )
    worlds: dict[str, BenchmarkWorld] = {}
    for entry in entries:
        if entry.name in worlds:
            raise ValueError(f"worlds.yaml has two worlds named {entry.name!r}.")
        worlds[entry.name] = entry
    return worlds


def make(entry: BenchmarkWorld, seed: int, batch_size: int = 1024) -> Made:
    """A world from its entry. Directions follow from its name; the stream from the seed too."""
    stream = derive_seed(seed, "stream", entry.name)
    if isinstance(entry.world, HierarchyRecipe):
        return _make_hierarchy(entry.name, entry.world, stream, batch_size)
    if isinstance(entry.world, NoiseRecipe):
        return Made(_noise(entry.name, entry.world, stream, batch_size), math.nan)
    world = make_world(entry.world.spec(), 0, name=entry.name)
    generator = torch.Generator().manual_seed(derive_seed(0, "truth", entry.name))
    firing = world.sampler.sample(_TRUTH_SAMPLES, generator) > 0
    source: Iterator[Tensor] = ToyActivations(world.model, world.sampler, batch_size, seed=stream)
    if entry.world.offset or entry.world.noise:
        source = _disturbed(entry.name, entry.world, source, stream)
    return Made(source, firing.sum(1).double().mean().item())


def _disturbed(
    name: str, recipe: ToyRecipe, source: Iterator[Tensor], stream: int
) -> Iterator[Tensor]:
    own = torch.Generator().manual_seed(derive_seed(0, "offset", name))
    direction = torch.randn(recipe.d_in, generator=own)
    offset = recipe.offset * direction / direction.norm()
    generator = torch.Generator().manual_seed(derive_seed(stream, "noise", name))
    for batch in source:
        yield batch + offset + recipe.noise * torch.randn(batch.shape, generator=generator)


def _noise(name: str, recipe: NoiseRecipe, stream: int, batch_size: int) -> Iterator[Tensor]:
    own = torch.Generator().manual_seed(derive_seed(0, "world", name))
    axes, _ = torch.linalg.qr(torch.randn(recipe.d_in, recipe.d_in, generator=own))
    deviations = torch.arange(1, recipe.d_in + 1) ** -recipe.decay
    generator = torch.Generator().manual_seed(stream)
    while True:
        drawn = torch.randn(batch_size, recipe.d_in, generator=generator)
        yield drawn * deviations @ axes


def _make_hierarchy(name: str, recipe: HierarchyRecipe, stream: int, batch_size: int) -> Made:
    from sae_lens.synthetic import (
        ActivationGenerator,
        FeatureDictionary,
        HierarchyConfig,
        generate_hierarchy,
        orthogonal_initializer,
    )

    own = derive_seed(0, "world", name)
    hierarchy = generate_hierarchy(
        recipe.n_features,
        HierarchyConfig(
            total_root_nodes=recipe.roots,
            branching_factor=recipe.branching,
            max_depth=recipe.depth,
        ),
        seed=own % 2**32,
    )
    generator = ActivationGenerator(
        num_features=recipe.n_features,
        firing_probabilities=recipe.probability,
        std_firing_magnitudes=recipe.sigma,
        modify_activations=hierarchy.modifier,
    )
    # sae_lens draws from the global generator; what it held is put back after every draw.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(own)
        dictionary = FeatureDictionary(
            num_features=recipe.n_features,
            hidden_dim=recipe.d_in,
            bias=False,
            initializer=orthogonal_initializer(show_progress=False),
        )
        torch.manual_seed(own + 1)
        true_l0 = (generator.sample(_TRUTH_SAMPLES) > 0).sum(1).double().mean().item()
    return Made(embedded(dictionary, _Seeded(generator.sample, stream), batch_size), true_l0)


class _Seeded:
    """Draws that go on from their own state of PyTorch's global generator."""

    def __init__(self, draw: Callable[[int], Tensor], seed: int) -> None:
        self._draw = draw
        self._state = torch.Generator().manual_seed(seed).get_state()

    def __call__(self, n_samples: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._state)
            drawn = self._draw(n_samples)
            self._state = torch.get_rng_state()
        return drawn
