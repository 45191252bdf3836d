"""A toy model of superposition: features with known directions, summed into activations.

F features, D width of an activation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

import sparse_but_wrong
from sparse_but_wrong import atomic
from sparse_but_wrong.threads import threads_per_operation
from sparse_but_wrong.untrusted import damaged, one_line, read_json, read_safetensors
from sparse_but_wrong.worlds.correlations import check_range

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
        num_vectors, vector_len: n and d.
        target_cos_sim: in [-1, 1]; n vectors cannot all be nearer −1 than −1/(n − 1).
        num_steps, lr: of Adam; no steps give the random vectors.
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
    check_range("num_vectors", num_vectors, 1)
    check_range("vector_len", vector_len, 1)
    check_range("num_steps", num_steps, 0)
    check_range("target_cos_sim", target_cos_sim, -1, 1)
    if not lr > 0:
        raise ValueError(f"lr is {lr}; it must be positive.")
    # sae_lens.synthetic descends by autograd, without a target and without renormalising.
    vectors = torch.randn(num_vectors, vector_len, generator=generator, dtype=torch.float32)
    _unit_rows_(vectors)
    vectors.grad = torch.empty_like(vectors)
    adam = torch.optim.Adam([vectors], lr, foreach=False)
    is_small = num_vectors * num_vectors * vector_len <= _SMALL_PRODUCT
    with threads_per_operation(1 if is_small else None):
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
        with_itself.copy_(torch.zeros_like(of_length) if of_cosines else of_length)
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
    """How a toy model was made: the arguments of `ToyModel` of these names."""

    num_feats: int
    hidden_dim: int
    target_cos_sim: float
    bias: bool
    ortho_lr: float
    ortho_num_steps: int


class ToyModel(nn.Module):
    """Sums the unit directions of the firing features times their magnitudes.

    `embed` is the `nn.Linear` that does it: `embed.weight` has shape [D, F] and column i is the
    direction of feature i. Directions are near-orthogonal, made by `orthogonalize`. They are facts
    of the world, not something to learn, so its parameters need no gradient.

    Args: as `orthogonalize` where they are not
        num_feats: true features F.
        hidden_dim: width D of an activation; below F leaves superposition noise.
        bias: add a constant vector, drawn as `nn.Linear` draws its bias: uniform in ±1/√F.
    Raises:
        ValueError: as `orthogonalize`.
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
        config = (num_feats, hidden_dim, float(target_cos_sim), bias, ortho_lr, ortho_num_steps)
        tensors = {"embed.weight": directions.T.contiguous()}
        if bias:
            limit = 1 / math.sqrt(num_feats)
            offset = 2 * torch.rand(hidden_dim, generator=generator) - 1
            tensors["embed.bias"] = offset * limit
        self._fill(ToyModelConfig(*config), tensors)

    def _fill(self, config: ToyModelConfig, tensors: dict[str, Tensor]) -> None:
        self.config = config
        # "meta": nn.Linear would otherwise draw weights, from the global generator, to throw away.
        self.embed = nn.Linear(config.num_feats, config.hidden_dim, bias=config.bias, device="meta")
        self.requires_grad_(False)
        self.load_state_dict(tensors, assign=True)

    def forward(
        self, features: Float[Tensor, "*batch num_feats"]
    ) -> Float[Tensor, "*batch hidden_dim"]:
        """Activations [..., D] of a batch of feature activations [..., F]."""
        return self.embed(features)

    def run_with_cache(
        self,
        features: Float[Tensor, "*batch num_feats"],
        names_filter: Callable[[str], bool] | Sequence[str] | str | None = None,
    ) -> tuple[Float[Tensor, "*batch hidden_dim"], dict[str, Tensor]]:
        """As a TransformerLens `HookedRootModule`: the activations, and what a hook would see,
        which is the same, detached, under the only name "embed".

        Args:
            names_filter: the hooks wanted, as a name, names or a test of names; all if left out.
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
        """Write this model into a new folder: its tensors as safetensors, its config as JSON.

        The folder appears complete or not at all; its parents are made.

        Raises:
            FileExistsError: the folder already holds something.
        """
        from safetensors.torch import save_file

        state = {name: value.cpu().contiguous() for name, value in self.state_dict().items()}
        description = {
            "format_version": _FORMAT_VERSION,
            "package_version": sparse_but_wrong.__version__,
            "config": asdict(self.config),
        }
        text = json.dumps(description, indent=2) + "\n"
        with atomic.new_folder(Path(folder)) as unfinished:
            save_file(state, unfinished / _WEIGHTS_FILE)
            atomic.write_bytes(unfinished / _CONFIG_FILE, text.encode())

    @classmethod
    def load(cls, folder: str | Path) -> ToyModel:
        """The model that `save` wrote, on the CPU. Reads no pickles and draws no random numbers.

        Raises:
            FileNotFoundError: the folder, or one of its two files, is missing.
            ValueError: a file is damaged, or the two do not belong together.
        """
        from pydantic import TypeAdapter, ValidationError

        config_file, weights_file = Path(folder) / _CONFIG_FILE, Path(folder) / _WEIGHTS_FILE
        description = read_json(config_file)
        version, config = description.get("format_version"), description.get("config")
        if version != _FORMAT_VERSION:
            raise damaged(config_file, f"its format version is {version!r}, not {_FORMAT_VERSION}")
        try:
            # As JSON, whose strict reading takes a whole number for a float and nothing else.
            config = TypeAdapter(ToyModelConfig).validate_json(json.dumps(config), strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, ("config", *problem["loc"])))
            raise damaged(config_file, f"{where}: {problem['msg']}") from error
        tensors = read_safetensors(weights_file)
        for name, tensor in tensors.items():
            if not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
                raise damaged(weights_file, f"{name} holds values that are not finite")
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        try:
            model._fill(config, tensors)
        except RuntimeError as error:
            raise ValueError(
                f"The two files in {folder} belong to different worlds ({one_line(error)})."
            ) from error
        return model
