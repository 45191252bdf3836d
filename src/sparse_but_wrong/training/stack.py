"""A list of sae_lens SAEs as one stack of flat parameters, and what a step does to it.

Axes: S SAE, C SAEs of one chunk, B batch, H d_sae, P parameters of one SAE laid out flat (padded).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_but_wrong.training.options import TrainOptions

if TYPE_CHECKING:
    import sae_lens

MAX_GRAD_NORM = 1.0
ADAM_EPS = 1e-8

_ALIGN = 16  # float32 values in a 64-byte cache line
_ROW_ALIGN = 64  # a multiple of what a vector loop takes at once: twice a register of any width


@dataclass(frozen=True)
class Stack:
    """Everything that a step changes, in place.

    Every parameter starts on a cache line, and a row is a whole number of the steps that PyTorch's
    vector loops take. Kernels pick their code path by alignment and end in a scalar loop that may
    round differently, so otherwise an SAE's last bits would depend on its place in the stack.
    """

    shapes: Mapping[str, tuple[int, ...]]
    """Of one SAE's parameters, by name."""
    offsets: Mapping[str, int]
    """Where each of them begins in a flat row."""
    params: Float[Tensor, "S P"]
    exp_avg: Float[Tensor, "S P"]
    """Adam's mean gradient."""
    exp_avg_sq: Float[Tensor, "S P"]
    """Adam's mean squared gradient."""
    last_fired: Int[Tensor, "S H"]
    """The step each latent last fired at; −1 stands for before the first."""
    window_fired: Float[Tensor, "S H"]
    """Samples each latent fired on in the current sampling window."""
    diverged_at: Int[Tensor, " S"]
    """The first step whose gradient was not finite; −1 where there was none."""
    buffers: Mapping[str, Float[Tensor, " S"]]
    """Scalars that training moves though they are no parameters."""
    decoder_is_frozen: bool
    """Whether `W_dec` stays as it is, and has no gradient."""

    @classmethod
    def of(
        cls,
        saes: Sequence[sae_lens.TrainingSAE[Any]],
        parameters: Sequence[str],
        buffers: Sequence[str] = (),
    ) -> Stack:
        """The SAEs as they are before the first step; the padding is 0."""
        n, d_sae, device = len(saes), saes[0].cfg.d_sae, saes[0].W_dec.device
        shapes = {name: tuple(getattr(saes[0], name).shape) for name in parameters}
        offsets, end = {}, 0
        for name, shape in shapes.items():
            offsets[name] = end
            end += math.ceil(math.prod(shape) / _ALIGN) * _ALIGN
        params = torch.zeros(n, math.ceil(end / _ROW_ALIGN) * _ROW_ALIGN, device=device)
        stack = cls(
            shapes=shapes,
            offsets=offsets,
            params=params,
            exp_avg=torch.zeros_like(params),
            exp_avg_sq=torch.zeros_like(params),
            last_fired=torch.full((n, d_sae), -1, device=device),
            window_fired=torch.zeros(n, d_sae, device=device),
            diverged_at=torch.full((n,), -1, device=device),
            buffers={
                name: torch.stack([getattr(sae, name).detach().double() for sae in saes])
                for name in buffers
            },
            decoder_is_frozen=not saes[0].W_dec.requires_grad,
        )
        for name, view in stack.views(params).items():
            for values, sae in zip(view, saes, strict=True):
                values.copy_(getattr(sae, name).detach())
        return stack

    def views(self, flat: Float[Tensor, "C P"]) -> dict[str, Tensor]:
        """Parameters by name, each [C, *shape], as views; the padding belongs to none of them."""
        parts = zip(self.shapes.items(), self.offsets.values(), strict=True)
        return {
            name: flat[:, start : start + math.prod(shape)].view(len(flat), *shape)
            for (name, shape), start in parts
        }

    def part(self, rows: slice) -> Stack:
        """Some rows, as views.

        Of `.data`, because autograd counts the changes of a tensor and of all its views together,
        and other chunks change theirs while one is between forward and backward.
        """
        moving = {name: tensor.data[rows] for name, tensor in self.tensors().items()}
        buffers = {name: moving.pop(f"buffer.{name}") for name in self.buffers}
        return replace(self, buffers=buffers, **moving)

    @torch.no_grad()
    def write_into(self, saes: Sequence[sae_lens.TrainingSAE[Any]], first: int = 0) -> None:
        """Copy rows, from the first on, into the parameters and buffers of sae_lens SAEs."""
        values = {**self.views(self.params), **self.buffers}
        for row, sae in enumerate(saes, first):
            for name, stacked in values.items():
                getattr(sae, name).copy_(stacked[row])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return {**own, **{f"buffer.{name}": values for name, values in self.buffers.items()}}


class Steps(NamedTuple):
    """Some steps to take, one per batch, after `first` others; `rates` are learning rates."""

    batches: Sequence[Tensor]
    first: int
    rates: Sequence[float]
    end_the_run: bool = False


Metrics = dict[str, Tensor]
"""Losses, L0, dead latents and gradient norm of one step, each [C]."""


def even_slices(n_saes: int, n_chunks: int) -> list[slice]:
    """The rows of each of some chunks, as equal in size as can be."""
    ends = [n_saes * i // n_chunks for i in range(n_chunks + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def dead_after(
    n_steps: int | Int[Tensor, ""], last_fired: Int[Tensor, "C H"], window: int
) -> Bool[Tensor, "C H"]:
    """Latents that have not fired for longer than the window, once n_steps have been taken."""
    return last_fired < n_steps - 1 - window


def metrics_of(losses: Metrics, l0: Tensor, dead: Bool[Tensor, "C H"], norm: Tensor) -> Metrics:
    """What the training log keeps of a step."""
    loss = torch.stack(list(losses.values())).sum(0)
    others = {"l0": l0, "dead_latents": dead.sum(1), "grad_norm": norm}
    return {"loss": loss, **losses, **others}


def adam_scalars(steps: Steps, options: TrainOptions) -> list[tuple[float, float]]:
    """Step size and root of the second moment's bias correction, of each of some steps."""
    beta1, beta2 = options.adam_beta1, options.adam_beta2
    return [
        (rate / (1 - beta1 ** (step + 1)), math.sqrt(1 - beta2 ** (step + 1)))
        for step, rate in enumerate(steps.rates, steps.first)
    ]
