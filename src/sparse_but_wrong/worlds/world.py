"""A whole toy world: how its features fire, and the directions they have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparse_but_wrong import atomic
from sparse_but_wrong.seeds import derive_seed
from sparse_but_wrong.untrusted import damaged, read_safetensors
from sparse_but_wrong.worlds.features import FeatureSampler, Sampler
from sparse_but_wrong.worlds.toy_model import ToyModel

_FEATURES_FILE = "features.safetensors"
_MODEL_FOLDER = "toy_model"
_NAMES = ("firing_probabilities", "std_firing_magnitudes", "mean_firing_magnitudes")


class ToyActivations(Iterator[Tensor]):
    """The activations of a toy world, in an order that a seed decides and that can be resumed.

    Args:
        embed: maps features [batch, n_features] to activations [batch, d_in]; a `ToyModel`.
        seed: of this stream's own generator; the global generators are left alone.
    """

    def __init__(self, embed: nn.Module, sampler: Sampler, batch_size: int, seed: int) -> None:
        self.embed = embed
        self.sampler = sampler
        self.batch_size = batch_size
        self.generator = torch.Generator(device=sampler.device).manual_seed(seed)

    def __next__(self) -> Float[Tensor, "batch d_in"]:
        return self.draw()[0]

    @torch.no_grad()
    def draw(self) -> tuple[Float[Tensor, "batch d_in"], Float[Tensor, "batch n_features"]]:
        """The next batch, and the features in it."""
        features = self.sampler.sample(self.batch_size, generator=self.generator)
        return self.embed(features), features

    def state(self) -> dict[str, Tensor]:
        """The generator's state, for `load_state` to continue from."""
        return {"generator": self.generator.get_state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from a state."""
        self.generator.set_state(state["generator"])


def embedded(
    embed: nn.Module, draw_features: Callable[[int], Tensor], batch_size: int
) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Batches of features [batch, n_features] from any function, embedded by a toy model."""
    while True:
        with torch.no_grad():
            batch = embed(draw_features(batch_size))
        yield batch


class ToyWorld(Iterable[Tensor]):
    """A world whose features are known: it draws their activations and knows their directions.

    Iterating over it gives batches [1024, d_in] without end, from the start each time; `stream`
    gives them in other sizes and from other seeds.

    Args:
        n_features: true features F.
        d_in: width of the activations; below F leaves superposition noise.
        firing_probability: of each feature, or one for all; the true L0 is their sum.
        std_magnitude: standard deviation of the magnitude of a firing feature, likewise.
        mean_magnitude: its mean, likewise.
        correlation_matrix: latent correlations of the firings, shape [F, F]; the firings
            themselves are correlated more weakly (`firing_correlation`). Independent if None.
        seed: of the directions, and of the order of samples.
        ortho_num_steps: steps that make the directions near-orthogonal; few leave noise.
        device: where batches are drawn and embedded.
    Raises:
        ValueError: as `FeatureSampler` and `orthogonalize`.
    """

    def __init__(
        self,
        n_features: int,
        d_in: int,
        firing_probability: Float[Tensor, " n_features"] | float = 0.2,
        std_magnitude: Float[Tensor, " n_features"] | float = 0.0,
        mean_magnitude: Float[Tensor, " n_features"] | float = 1.0,
        correlation_matrix: Float[Tensor, "n_features n_features"] | None = None,
        *,
        seed: int = 0,
        ortho_num_steps: int = 1000,
        device: torch.device | str = "cpu",
    ) -> None:
        model = ToyModel(
            n_features,
            d_in,
            ortho_num_steps=ortho_num_steps,
            generator=torch.Generator().manual_seed(seed),
            ortho_renormalize=True,
        )
        p, std, mean = (
            torch.as_tensor(value, dtype=torch.float32).expand(n_features)
            for value in (firing_probability, std_magnitude, mean_magnitude)
        )
        self._fill(model, p, std, mean, correlation_matrix, device, seed)

    @classmethod
    def of_model(
        cls,
        model: ToyModel,
        firing_probabilities: Float[Tensor, " n_features"],
        std_firing_magnitudes: Float[Tensor, " n_features"],
        mean_firing_magnitudes: Float[Tensor, " n_features"],
        correlation_matrix: Float[Tensor, "n_features n_features"] | None = None,
        device: torch.device | str = "cpu",
    ) -> ToyWorld:
        """A world with the directions of a toy model.

        Raises:
            ValueError: as `FeatureSampler`, or a model of another number of features.
        """
        world = cls.__new__(cls)
        features = (firing_probabilities, std_firing_magnitudes, mean_firing_magnitudes)
        world._fill(model, *features, correlation_matrix, device, 0)
        return world

    def _fill(
        self,
        model: ToyModel,
        p: Tensor,
        std: Tensor,
        mean: Tensor,
        correlation_matrix: Tensor | None,
        device: torch.device | str,
        seed: int,
    ) -> None:
        self.d_in, self.n_features = model.embed.weight.shape
        if self.n_features != len(p):
            raise ValueError(
                f"The toy model has {self.n_features} features, but there are {len(p)} "
                "firing probabilities; give one per feature."
            )
        self.model = model.to(device)
        self.firing_probabilities = p
        self.std_firing_magnitudes = std
        self.mean_firing_magnitudes = mean
        self.correlation_matrix = correlation_matrix
        self.seed = seed
        self.sampler: Sampler = FeatureSampler(p, std, mean, correlation_matrix, device)

    def __repr__(self) -> str:
        return (
            f"ToyWorld({self.n_features} features in {self.d_in} dimensions, true L0 "
            f"{self.true_l0:.2f}{'' if self.correlation_matrix is None else ', correlated'})"
        )

    @property
    def directions(self) -> Float[Tensor, "d_in n_features"]:
        """The true features' directions as columns."""
        return self.model.embed.weight.detach()

    @cached_property
    def true_l0(self) -> float:
        """Features that fire per sample, on average."""
        return float(self.firing_probabilities.sum())

    def stream(self, batch_size: int = 1024, seed: int | None = None) -> ToyActivations:
        """Batches of activations [batch_size, d_in] without end, whose place can be saved; the
        seed of the samples follows from the world's own if left out."""
        seed = derive_seed(self.seed, "stream") if seed is None else seed
        return ToyActivations(self.model, self.sampler, batch_size, seed)

    def __iter__(self) -> ToyActivations:
        return self.stream()

    def save(self, folder: str | Path) -> None:
        """Write the world into a new folder, safetensors and JSON; FileExistsError if not new."""
        from safetensors.torch import save

        tensors = {name: getattr(self, name).contiguous() for name in _NAMES}
        if self.correlation_matrix is not None:
            tensors["correlation_matrix"] = self.correlation_matrix.contiguous()
        with atomic.new_folder(Path(folder)) as unfinished:
            self.model.save(unfinished / _MODEL_FOLDER)
            atomic.write_bytes(unfinished / _FEATURES_FILE, save(tensors))

    @staticmethod
    def is_saved_in(folder: Path) -> bool:
        """Whether there is a world to load."""
        return (folder / _FEATURES_FILE).is_file()

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> ToyWorld:
        """The world that `save` wrote.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: a file is damaged.
        """
        file = Path(folder) / _FEATURES_FILE
        tensors = read_safetensors(file)
        if missing := [name for name in _NAMES if name not in tensors]:
            raise damaged(file, f"it lacks {' and '.join(missing)}")
        p, std, mean = (tensors[name] for name in _NAMES)
        model = ToyModel.load(Path(folder) / _MODEL_FOLDER)
        return cls.of_model(model, p, std, mean, tensors.get("correlation_matrix"), device)
