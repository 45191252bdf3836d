"""Adam with gradient clipping, on a stack of SAEs that never see each other.

Axes: S SAE, P parameters of one SAE laid out flat.
"""

from __future__ import annotations

import math

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


class AdamState:
    """Adam's two running means for a stack, and the update `torch.optim.Adam` would make.

    Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1 with both biases corrected.
    """

    def __init__(self, params: Float[Tensor, "S P"], beta1: float, beta2: float) -> None:
        self.beta1 = beta1
        self.beta2 = beta2
        self.exp_avg = torch.zeros_like(params)
        self.exp_avg_sq = torch.zeros_like(params)

    def update_(
        self,
        rows: slice,
        params: Float[Tensor, "C P"],
        grads: Float[Tensor, "C P"],
        scratch: Float[Tensor, "C P"],
        step: int,
        lr: float,
    ) -> None:
        """One step for some rows of the stack, in place.

        Args:
            rows: the SAEs of the stack that `params`, `grads` and `scratch` belong to.
            params: shape [C, P], changed.
            grads: shape [C, P].
            scratch: shape [C, P], overwritten.
            step: steps taken before this one.
            lr: learning rate of this step.
        """
        exp_avg, exp_avg_sq = self.exp_avg[rows], self.exp_avg_sq[rows]
        exp_avg.lerp_(grads, 1 - self.beta1)
        exp_avg_sq.mul_(self.beta2).addcmul_(grads, grads, value=1 - self.beta2)
        correction1 = 1 - self.beta1 ** (step + 1)
        correction2 = 1 - self.beta2 ** (step + 1)
        torch.sqrt(exp_avg_sq, out=scratch)
        scratch.div_(math.sqrt(correction2)).add_(ADAM_EPS)
        params.addcdiv_(exp_avg, scratch, value=-lr / correction1)
