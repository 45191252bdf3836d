"""Adam with gradient clipping, on a stack of SAEs that never see each other.

Axes: S SAE, P parameters of one SAE laid out flat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.training import products

MAX_GRAD_NORM = 1.0
ADAM_EPS = 1e-8


def clip_grad_norm_per_sae_(
    grads: Float[Tensor, "S P"], scale: float = 1.0, max_norm: float = MAX_GRAD_NORM
) -> Float[Tensor, "S 1"]:
    """Scale each SAE's gradient, in place, and then down to a norm of at most `max_norm`.

    Args:
        grads: shape [S, P], one SAE's whole gradient per row, still to be multiplied by `scale`.
        scale: saves a pass over the gradients for whoever has a factor left to apply.
        max_norm: sae_lens clips at 1.
    Returns:
        The norms before clipping, shape [S, 1]. A row that is not finite leaves the other rows
        alone; to itself happens what `torch.nn.utils.clip_grad_norm_` would do to it.
    """
    if products.one_by_one(grads):
        # Row by row: a reduction of one row and of several need not add up in the same order.
        norms = torch.stack([torch.linalg.vector_norm(row) for row in grads]).unsqueeze(1)
    else:
        norms = torch.linalg.vector_norm(grads, dim=1, keepdim=True)
    norms.mul_(scale)
    grads.mul_((max_norm / (norms + 1e-6)).clamp_(max=1.0).mul_(scale))
    return norms


@dataclass(frozen=True)
class AdamScalars:
    """What a step of Adam needs besides tensors; on a GPU tensors too, since they change."""

    step_size: float | Float[Tensor, ""]
    """The learning rate over the first moment's bias correction."""

    root_correction: float | Float[Tensor, ""]
    """Root of the second moment's bias correction."""

    @classmethod
    def at(cls, step: int, lr: float, beta1: float, beta2: float) -> AdamScalars:
        """Those of the step that follows `step` others."""
        return cls(
            step_size=lr / (1 - beta1 ** (step + 1)),
            root_correction=math.sqrt(1 - beta2 ** (step + 1)),
        )


def adam_(
    params: Float[Tensor, "S P"],
    exp_avg: Float[Tensor, "S P"],
    exp_avg_sq: Float[Tensor, "S P"],
    grads: Float[Tensor, "S P"],
    scratch: Float[Tensor, "S P"],
    scalars: AdamScalars,
    beta1: float,
    beta2: float,
) -> None:
    """The step that `torch.optim.Adam` would take, in place; `scratch` is overwritten.

    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1 with both biases corrected.
    """
    exp_avg.lerp_(grads, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
    torch.sqrt(exp_avg_sq, out=scratch)
    scratch.div_(scalars.root_correction).add_(ADAM_EPS)
    torch.div(exp_avg, scratch, out=scratch)
    params.sub_(scratch.mul_(scalars.step_size))
