"""A toy model of superposition: features with known directions, summed into activations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparse_but_wrong import atomic
from sparse_but_wrong.untrusted import parse_json
from sparse_but_wrong.worlds.orthogonalize import orthogonalize

_CONFIG_FILE = "toy_model.json"
_WEIGHTS_FILE = "toy_model.safetensors"
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class ToyModelConfig:
    """How a toy model was made."""

    num_feats: int
    """True features F."""
    hidden_dim: int
    """Width D of an activation."""
    target_cos_sim: float
    """The cosine similarity between feature directions that was aimed at."""
    bias: bool
    """Whether a constant vector is added to every activation."""
    ortho_lr: float
    """Step of the descent that made the directions."""
    ortho_num_steps: int
    """Number of steps of that descent."""


class ToyModel(nn.Module):
    """Sums the unit directions of the firing features times their magnitudes.

    `embed` is the `nn.Linear` that does it: `embed.weight` has shape [D, F] and column i is the
    direction of feature i. Directions are near-orthogonal, made by `orthogonalize`. They are facts
    of the world, not something to learn, so its parameters need no gradient.

    Args:
        num_feats: true features F.
        hidden_dim: width D of an activation; below F leaves superposition noise.
        target_cos_sim: cosine similarity wanted between every two directions.
        bias: add a constant vector, drawn as `nn.Linear` draws its bias: uniform in ±1/√F.
        ortho_lr, ortho_num_steps: step and number of steps of the descent.
        generator: for the directions and the bias, on the CPU; torch's global one if left out.
        ortho_renormalize: see `orthogonalize`; matters where steps are few.
    Raises:
        ValueError: a size, step or target that `orthogonalize` refuses.
    """

    def __init__(
        self,
        num_feats: int,
        hidden_dim: int,
        target_cos_sim: float | int = 0,
        bias: bool = False,
        ortho_lr: float = 0.01,
        ortho_num_steps: int = 1000,
        generator: torch.Generator | None = None,
        ortho_renormalize: bool = False,
    ) -> None:
        super().__init__()
        directions = orthogonalize(
            num_feats,
            hidden_dim,
            target_cos_sim=target_cos_sim,
            num_steps=ortho_num_steps,
            lr=ortho_lr,
            generator=generator,
            renormalize=ortho_renormalize,
        )
        offset = None
        if bias:
            limit = 1 / math.sqrt(num_feats)
            offset = (2 * torch.rand(hidden_dim, generator=generator) - 1) * limit
        self._fill(
            ToyModelConfig(
                num_feats, hidden_dim, float(target_cos_sim), bias, ortho_lr, ortho_num_steps
            ),
            directions.T.contiguous(),
            offset,
        )

    def _fill(self, config: ToyModelConfig, weight: Tensor, bias: Tensor | None) -> None:
        self.config = config
        # "meta": nn.Linear would otherwise draw weights, from the global generator, to throw away.
        self.embed = nn.Linear(config.num_feats, config.hidden_dim, bias=config.bias, device="meta")
        self.embed.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.embed.bias = nn.Parameter(bias, requires_grad=False)

    def forward(
        self, features: Float[Tensor, "*batch num_feats"]
    ) -> Float[Tensor, "*batch hidden_dim"]:
        """Activations of a batch of feature activations.

        Args:
            features: shape [..., F].
        Returns:
            shape [..., D].
        """
        return self.embed(features)

    def run_with_cache(
        self,
        features: Float[Tensor, "*batch num_feats"],
        names_filter: Callable[[str], bool] | Sequence[str] | str | None = None,
    ) -> tuple[Float[Tensor, "*batch hidden_dim"], dict[str, Tensor]]:
        """As a TransformerLens `HookedRootModule`: the activations, and what a hook would see.

        Args:
            features: shape [..., F].
            names_filter: the hooks wanted, as a name, names or a test of names; all if left out.
        Returns:
            The activations [..., D]; and the same, detached, under the only name "embed".
        """
        activations = self(features)
        if callable(names_filter):
            is_wanted = names_filter("embed")
        elif isinstance(names_filter, str):
            is_wanted = names_filter == "embed"
        else:
            is_wanted = names_filter is None or "embed" in names_filter
        return activations, {"embed": activations.detach()} if is_wanted else {}

    def save(self, folder: str | Path) -> None:
        """Write this world into a new folder: its tensors as safetensors, its config as JSON.

        The folder appears complete or not at all.

        Args:
            folder: must not exist yet, or be empty. Parents are made.
        Raises:
            FileExistsError: the folder already holds something.
        """
        from safetensors.torch import save_file

        state = {name: value.cpu().contiguous() for name, value in self.state_dict().items()}
        description = {
            "format_version": _FORMAT_VERSION,
            "package_version": _package_version(),
            "config": asdict(self.config),
        }
        with atomic.new_folder(Path(folder)) as unfinished:
            save_file(state, unfinished / _WEIGHTS_FILE)
            atomic.write_bytes(
                unfinished / _CONFIG_FILE, (json.dumps(description, indent=2) + "\n").encode()
            )

    @classmethod
    def load(cls, folder: str | Path) -> ToyModel:
        """The world that `save` wrote, on the CPU. Reads no pickles and draws no random numbers.

        Raises:
            FileNotFoundError: the folder, or one of its two files, is missing.
            ValueError: a file is damaged, or the two do not belong together.
        """
        folder = Path(folder)
        config = _read_config(folder)
        tensors = _read_tensors(folder)
        shapes = {"embed.weight": [config.hidden_dim, config.num_feats]}
        if config.bias:
            shapes["embed.bias"] = [config.hidden_dim]
        found = {name: list(tensor.shape) for name, tensor in tensors.items()}
        if found != shapes:
            raise ValueError(
                f"{folder} is no single world: {_CONFIG_FILE} describes tensors {shapes} but "
                f"{_WEIGHTS_FILE} holds {found}. Copy both files from the same world."
            )
        for name, tensor in tensors.items():
            if not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
                raise ValueError(
                    f"{folder / _WEIGHTS_FILE} is damaged: {name} holds values that are not finite "
                    "floating-point numbers. Save the world again."
                )
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._fill(config, tensors["embed.weight"], tensors.get("embed.bias"))
        return model


def _package_version() -> str:
    try:
        return metadata.version("sparse_but_wrong")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


def _existing(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no world at {folder}: no such folder.")
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no world at {folder}: it has no {name}. A saved world is a folder with "
            f"{_CONFIG_FILE} and {_WEIGHTS_FILE}."
        )
    return path


def _read_config(folder: Path) -> ToyModelConfig:
    path = _existing(folder, _CONFIG_FILE)
    try:
        description: Any = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is not valid JSON: {error}") from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if version != _FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version!r}; this release reads {_FORMAT_VERSION}. Load it "
            "with the release that wrote it."
        )
    config = description.get("config")
    names = [field.name for field in fields(ToyModelConfig)]
    if not isinstance(config, dict) or sorted(config) != sorted(names):
        raise ValueError(f"{path} is damaged: its config must hold exactly {', '.join(names)}.")
    for field in fields(ToyModelConfig):
        value = config[field.name]
        # Exact types, because JSON's true would pass for an int; a whole float may read as an int.
        allowed = {"int": (int,), "bool": (bool,), "float": (int, float)}[str(field.type)]
        if type(value) not in allowed:
            raise ValueError(f"{path} is damaged: {field.name} is {value!r}, not a {field.type}.")
    return ToyModelConfig(**config)


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _existing(folder, _WEIGHTS_FILE)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged, it is not a whole safetensors file: {error}"
        ) from error
