"""Directions that activations are made of, as an SAE's decoder gives them.

Axes: B samples, D d_in, A directions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.l0.codes import sparse_codes

if TYPE_CHECKING:
    import sae_lens

LEARNING_ITERATIONS = 40
"""Of the codes that directions are learned from; those that are counted take more."""


@dataclass(frozen=True, eq=False)
class Directions:
    """Unit directions whose non-negative multiples, with a bias, add up to activations."""

    rows: Float[Tensor, "A D"]
    bias: Float[Tensor, " D"]
    penalty: float
    """Of the codes, in the units of the activations."""

    def to(self, device: torch.device | str) -> Directions:
        """The same on another device."""
        return replace(self, rows=self.rows.to(device), bias=self.bias.to(device))


@torch.no_grad()
def decoder_directions(sae: sae_lens.SAE[Any], activations: Float[Tensor, "B D"]) -> Directions:
    """Where an SAE's decoder points, with the bias that fits. Rows of length 0 are left out.

    The SAE's own bias is not used: one that started at 0 may still be far from where the
    activations are, if they have a large mean.
    """
    rows = sae.W_dec.detach().float().cpu()
    rows = rows[rows.isfinite().all(1) & (rows.norm(dim=1) > 0)]
    rows = torch.nn.functional.normalize(rows, dim=1)
    penalty = _PENALTY * activations.var(dim=0, correction=0).sum().sqrt().item()
    return Directions(rows, _cheapest_bias(rows, activations, penalty), penalty)


_PENALTY = 0.008
"""Of the spread of the activations: a hundredth to a fiftieth of the magnitude of a feature where 2
to 20 are active."""


def _cheapest_bias(
    rows: Float[Tensor, "A D"], activations: Float[Tensor, "B D"], penalty: float
) -> Float[Tensor, " D"]:
    """The bias with which the lasso over some directions costs least.

    It follows a vector that is added to all samples. Its cost is convex in codes and bias together;
    each is solved for in turn, from the mean. That is above the bias sought, along directions that
    are present at times, and is left at once; from below the penalty alone would drive it.
    """
    samples = activations[:_BIAS_SAMPLES]
    bias = activations.mean(0)
    if len(rows):
        for _ in range(_BIAS_ROUNDS):
            centred = samples - bias
            codes = sparse_codes(centred, rows, penalty, LEARNING_ITERATIONS)
            bias = bias + (centred - codes @ rows).mean(0)
    return bias


_BIAS_SAMPLES = 2048
_BIAS_ROUNDS = 8
"""Each leaves of what is wrong along a direction as much as the share of samples that have it; what
is left is learned with the directions."""
