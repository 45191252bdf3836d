"""A whole toy world: how its features fire, and the directions they have."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong import atomic
from sparse_but_wrong.worlds.sampler import FeatureSampler
from sparse_but_wrong.worlds.toy_model import ToyModel

_FEATURES_FILE = "features.safetensors"
_MODEL_FOLDER = "toy_model"
_NAMES = ("firing_probabilities", "std_firing_magnitudes", "mean_firing_magnitudes")


class World:
    """A toy world, ready to draw from.

    Args:
        model: the features' directions.
        firing_probabilities: shape [F].
        std_firing_magnitudes: shape [F].
        mean_firing_magnitudes: shape [F].
        correlation_matrix: latent correlations of the firings, shape [F, F] (the firings
            themselves are correlated more weakly); independent if None.
        device: where batches are drawn and embedded.
    Raises:
        ValueError: as `FeatureSampler`, or a model of another number of features.
    """

    def __init__(
        self,
        model: ToyModel,
        firing_probabilities: Float[Tensor, " n_features"],
        std_firing_magnitudes: Float[Tensor, " n_features"],
        mean_firing_magnitudes: Float[Tensor, " n_features"],
        correlation_matrix: Float[Tensor, "n_features n_features"] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        n_features = model.embed.weight.shape[1]
        if n_features != len(firing_probabilities):
            raise ValueError(
                f"the toy model has {n_features} features, but there are "
                f"{len(firing_probabilities)} firing probabilities; give one per feature."
            )
        self.model = model.to(device)
        self.firing_probabilities = firing_probabilities
        self.std_firing_magnitudes = std_firing_magnitudes
        self.mean_firing_magnitudes = mean_firing_magnitudes
        self.correlation_matrix = correlation_matrix
        self.sampler = FeatureSampler(
            firing_probabilities,
            std_firing_magnitudes,
            mean_firing_magnitudes,
            correlation_matrix,
            device=device,
        )

    @property
    def directions(self) -> Float[Tensor, "d_in n_features"]:
        """The true features' directions as columns."""
        return self.model.embed.weight.detach()

    def save(self, folder: Path) -> None:
        """Write the world into a new folder: safetensors and JSON.

        Raises:
            FileExistsError: the folder holds something.
        """
        from safetensors.torch import save

        tensors = {name: getattr(self, name).contiguous() for name in _NAMES}
        if self.correlation_matrix is not None:
            tensors["correlation_matrix"] = self.correlation_matrix.contiguous()
        with atomic.new_folder(folder) as unfinished:
            self.model.save(unfinished / _MODEL_FOLDER)
            atomic.write_bytes(unfinished / _FEATURES_FILE, save(tensors))

    @staticmethod
    def is_saved_in(folder: Path) -> bool:
        """Whether there is a world to load."""
        return (folder / _FEATURES_FILE).is_file()

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> World:
        """The world that `save` wrote.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: a file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        file = folder / _FEATURES_FILE
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; {folder} is not a whole world.")
        try:
            tensors = load(file.read_bytes())
            features = {name: tensors[name] for name in _NAMES}
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{file} is damaged ({error}).") from error
        return cls(
            model=ToyModel.load(folder / _MODEL_FOLDER),
            correlation_matrix=tensors.get("correlation_matrix"),
            device=device,
            **features,
        )
