"""A toy model of superposition: features with known directions, summed into activations.

F features, D width of an activation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparse_but_wrong import atomic
from sparse_but_wrong.threads import threads_per_operation
from sparse_but_wrong.untrusted import parse_json

_CONFIG_FILE = "toy_model.json"
_WEIGHTS_FILE = "toy_model.safetensors"
_FORMAT_VERSION = 1


# Rows of the n × n cosine matrix held at once: 1024 × 8000 float32 is 32 MB.
_CHUNK = 1024
# Multiply-adds of one matrix product below which a second thread costs more than it brings.
_SMALL_PRODUCT = 10_000_000


@torch.no_grad()
def orthogonalize(
    num_vectors: int,
    vector_len: int,
    target_cos_sim: float | int = 0,
    num_steps: int = 1000,
    lr: float = 0.01,
    generator: torch.Generator | None = None,
    renormalize: bool = False,
) -> Float[Tensor, "num_vectors vector_len"]:
    """Unit vectors whose pairwise cosine similarities are as near to a target as descent gets.

    Random unit vectors, moved by Adam down Σ_{i≠j} (v_i·v_j − target)² + n·Σ_i (|v_i|² − 1)² and
    normalised at the end. More vectors than dimensions cannot all be orthogonal: what remains is
    superposition noise, at best a root mean square cosine of √((n − d)/(d·(n − 1))). Few steps
    leave more: after 4, 50 vectors in 100 dimensions have a mean |cos| of 0.049, from 0.080.

    Args:
        num_vectors: n.
        vector_len: d.
        target_cos_sim: in [-1, 1]; n vectors cannot all be nearer −1 than −1/(n − 1).
        num_steps: of Adam; 0 gives the random vectors.
        lr: Adam's step.
        generator: for the random start, on the CPU; torch's global one if left out.
        renormalize: descend on the cosines themselves, without the second sum, and bring every
            vector back to unit length after each step. Then fewer steps do (0.030 in the case
            above), and with no more vectors than dimensions the default target is met to rounding
            at the end. The worlds of experiments and specs are made so.
    Returns:
        shape [n, d], float32, unit rows, on the CPU, needing no gradient.
    Raises:
        ValueError: an argument outside its range.
    Source: the penalty on lengths is that of `sae_lens.synthetic`, which leaves the noise that the
        published code leaves; Adam as in Kingma & Ba 2015, arXiv:1412.6980; the lower limit is
        Welch 1974.
    """
    for name, count, least in (
        ("num_vectors", num_vectors, 1),
        ("vector_len", vector_len, 1),
        ("num_steps", num_steps, 0),
    ):
        if count < least:
            raise ValueError(f"{name} is {count}; it must be at least {least}.")
    if not -1 <= target_cos_sim <= 1:
        raise ValueError(f"target_cos_sim is {target_cos_sim}; a cosine lies in [-1, 1].")
    if not lr > 0:
        raise ValueError(f"lr is {lr}; it must be positive.")
    # sae_lens.synthetic descends by autograd, without a target and without renormalising.
    vectors = torch.randn(num_vectors, vector_len, generator=generator, dtype=torch.float32)
    _unit_rows_(vectors)
    vectors.grad = torch.empty_like(vectors)
    adam = torch.optim.Adam([vectors], lr, foreach=False)
    is_small = num_vectors * num_vectors * vector_len <= _SMALL_PRODUCT
    with threads_per_operation(1) if is_small else nullcontext():
        for _ in range(num_steps):
            _gradient_(vectors.grad, vectors, target_cos_sim, of_cosines=renormalize)
            adam.step()
            if renormalize:
                _unit_rows_(vectors)
    vectors.grad = None
    # Once more would move the last bit of vectors that are of unit length already.
    return vectors if renormalize else _unit_rows_(vectors)


def _gradient_(gradient: Tensor, vectors: Tensor, target: float | int, *, of_cosines: bool) -> None:
    """Write the gradient of the loss by the vectors into `gradient`.

    Args:
        of_cosines: of Σ_{i≠j} (v_i·v_j/|v_i||v_j| − target)², at unit vectors; else of
            Σ_{i≠j} (v_i·v_j − target)² + n·Σ_i (|v_i|² − 1)².
    """
    for start in range(0, vectors.shape[0], _CHUNK):
        rows = vectors[start : start + _CHUNK]
        error = rows @ vectors.T
        # What a vector has in common with itself lies, in this chunk, on a shifted diagonal.
        with_itself = error.diagonal(offset=start)
        of_length = len(vectors) * (with_itself - 1)
        error.sub_(target)
        if of_cosines:
            with_itself.zero_()
        else:
            with_itself.copy_(of_length)
        torch.mm(error, vectors, out=gradient[start : start + _CHUNK])
    gradient.mul_(4)
    if of_cosines:
        # A cosine does not change with length: drop the part of the gradient along the vector.
        along = (gradient * vectors).sum(dim=1, keepdim=True)
        gradient.addcmul_(along, vectors, value=-1)


def _unit_rows_(vectors: Tensor) -> Tensor:
    return vectors.div_(vectors.norm(dim=1, keepdim=True))


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
        if isinstance(names_filter, str):
            names_filter = [names_filter]
        is_wanted = (
            names_filter("embed")
            if callable(names_filter)
            else "embed" in (["embed"] if names_filter is None else names_filter)
        )
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
        from pydantic import TypeAdapter, ValidationError
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        paths = [folder / name for name in (_CONFIG_FILE, _WEIGHTS_FILE)]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(
                    f"There is no world at {folder}: "
                    f"{f'it has no {path.name}' if folder.is_dir() else 'no such folder'}."
                )
        try:
            description: Any = parse_json(paths[0].read_bytes())
            version = description.get("format_version") if isinstance(description, dict) else None
            if version != _FORMAT_VERSION:
                raise ValueError(f"its format version is {version!r}, not {_FORMAT_VERSION}")
            # As JSON, whose strict reading takes a whole number for a float and nothing else.
            text = json.dumps(description.get("config"))
            config = TypeAdapter(ToyModelConfig).validate_json(text, strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, ("config", *problem["loc"])))
            raise ValueError(f"{paths[0]} is damaged: {where}: {problem['msg']}.") from error
        except ValueError as error:
            raise ValueError(f"{paths[0]} is damaged ({error}).") from error
        try:
            tensors = load_file(paths[1])
        except SafetensorError as error:
            raise ValueError(f"{paths[1]} is damaged ({error}).") from error
        shapes = {"embed.weight": [config.hidden_dim, config.num_feats]}
        if config.bias:
            shapes["embed.bias"] = [config.hidden_dim]
        found = {name: list(tensor.shape) for name, tensor in tensors.items()}
        if found != shapes:
            raise ValueError(
                f"The files in {folder} belong to different worlds: {_CONFIG_FILE} describes "
                f"tensors {shapes}, but {_WEIGHTS_FILE} holds {found}."
            )
        for name, tensor in tensors.items():
            if not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
                raise ValueError(f"{paths[1]} is damaged: {name} holds values that are not finite.")
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._fill(config, tensors["embed.weight"], tensors.get("embed.bias"))
        return model


def _package_version() -> str:
    try:
        return metadata.version("sparse_but_wrong")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
