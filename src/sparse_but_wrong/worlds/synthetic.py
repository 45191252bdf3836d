"""Worlds of `sae_lens.synthetic`: thousands of features, hierarchies, magnitudes of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparse_but_wrong import atomic
from sparse_but_wrong.seeds import derive_seed
from sparse_but_wrong.untrusted import one_line, user_path
from sparse_but_wrong.worlds.world import ToyWorld

if TYPE_CHECKING:
    from sparse_but_wrong.sae_lens_compat import SyntheticModel, SyntheticModelConfig

_CONFIG_FILE = "synthetic_model_config.json"
_FOLDER = "synthetic_model"
_L0_SAMPLES = 50_000


class SyntheticWorld(ToyWorld):
    """A `SyntheticModel` of sae_lens as a world: wherever a toy world is taken, so is this.

    Args:
        source: the model, its config (or that as a dict), a folder that it was saved in, or its id
            on the Hugging Face Hub, as "repo" or "repo:folder".
        seed: of the order of samples; the features follow from the config's own seed.
        device: where batches are drawn and embedded.
    Raises:
        ValueError: a config that sae_lens refuses or that has no seed, or a damaged folder.
        OSError: a folder or an id that cannot be read.
    """

    def __init__(
        self,
        source: SyntheticModel | SyntheticModelConfig | Mapping[str, Any] | str | Path,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.synthetic = _opened(source, device)
        if self.synthetic.cfg.seed is None:
            raise ValueError("the synthetic model's config has no seed; give it one, such as 0.")
        self.model = _Embedding(self.synthetic)  # pyright: ignore[reportAttributeAccessIssue]
        self.sampler = _Sampler(self.synthetic)
        self.d_in, self.n_features = self.model.embed.weight.shape
        self.correlation_matrix = None
        self.seed = seed

    def __repr__(self) -> str:
        return f"SyntheticWorld({self.n_features} features in {self.d_in} dimensions)"

    @cached_property
    def true_l0(self) -> float:
        """Features that fire per sample, on average over 50,000: hierarchies silence some."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "true_l0"))
        drawn = sum(
            int((self.sampler.sample(1_000, generator) > 0).sum())
            for _ in range(_L0_SAMPLES // 1_000)
        )
        return drawn / _L0_SAMPLES

    def save(self, folder: str | Path) -> None:
        """Write the world into a new folder, as sae_lens does; FileExistsError if not new."""
        with atomic.new_folder(Path(folder)) as unfinished:
            self.synthetic.save(unfinished / _FOLDER)

    @staticmethod
    def is_saved_in(folder: Path) -> bool:
        """Whether there is a world to load, or a model that sae_lens saved."""
        return any((folder / below / _CONFIG_FILE).is_file() for below in ("", _FOLDER))

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> SyntheticWorld:
        """The world that `save` wrote.

        Raises:
            ValueError, OSError: it is damaged, or not there.
        """
        return cls(Path(folder) / _FOLDER, device=device)


def has_world(folder: Path) -> bool:
    """Whether there is a world with known features in a folder."""
    return SyntheticWorld.is_saved_in(folder) or ToyWorld.is_saved_in(folder)


def load_world(folder: Path, device: torch.device | str = "cpu") -> ToyWorld:
    """The world with known features that lies in a folder; errors as of its class."""
    kind = SyntheticWorld if SyntheticWorld.is_saved_in(folder) else ToyWorld
    return kind.load(folder, device)


def _opened(
    source: SyntheticModel | SyntheticModelConfig | Mapping[str, Any] | str | Path,
    device: torch.device | str,
) -> SyntheticModel:
    from sparse_but_wrong.sae_lens_compat import SyntheticModel, SyntheticModelConfig

    if isinstance(source, SyntheticModel):
        return source
    what = "the config of the synthetic model"
    if isinstance(source, str | Path):
        if (place := user_path(source)).exists():
            source = str(place)
        elif isinstance(source, Path) or source.startswith(("/", "~", ".")):
            raise FileNotFoundError(f"there is no folder {source}.")
        what = source
    try:
        with torch.enable_grad():  # by which directions are made near-orthogonal
            if isinstance(source, Mapping):
                source = SyntheticModelConfig.from_dict(dict(source))
            return SyntheticModel.load_from_source(source, device=str(device))
    except OSError as error:
        raise OSError(f"{what} cannot be read: {one_line(error)}") from error
    except Exception as error:  # sae_lens checks little of a config before it uses it
        kind = type(error).__name__
        raise ValueError(f"{what} is no synthetic model ({kind}: {one_line(error)}).") from error


class _Embedding(nn.Module):
    """The directions and the bias of a synthetic model, as a toy model has them."""

    def __init__(self, model: SyntheticModel) -> None:
        super().__init__()
        vectors, bias = model.feature_dict.feature_vectors, model.feature_dict.bias
        n_features, d_in = vectors.shape
        self.embed = nn.Linear(n_features, d_in, device=vectors.device)
        self.embed.weight = nn.Parameter(vectors.detach().T.contiguous(), requires_grad=False)
        self.embed.bias = nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, features: Float[Tensor, "batch n_features"]) -> Float[Tensor, "batch d_in"]:
        return self.embed(features)


class _Sampler:
    """Draws features from a generator of the caller's; sae_lens draws from the global one."""

    def __init__(self, model: SyntheticModel) -> None:
        self._sample = model.activation_generator.sample
        self.device = torch.device(model.device)

    @torch.no_grad()
    def sample(
        self, batch_size: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch n_features"]:
        device = self.device if generator is None else generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            return self._sample(batch_size)
