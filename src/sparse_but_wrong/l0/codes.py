"""Sparse non-negative codes: how much of each direction a sample holds.

Axes: B samples, D d_in, A directions.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def sparse_codes(
    centred: Float[Tensor, "B D"],
    directions: Float[Tensor, "A D"],
    penalty: float,
    n_iterations: int,
) -> Float[Tensor, "B A"]:
    """The non-negative lasso: argmin over y ≥ 0 of ½‖x − y·directions‖² + penalty·Σy, per sample.

    Unlike projections on the directions, the codes of one direction do not hold what belongs to
    another that overlaps with it. A code comes out too small by about the penalty.

    Args:
        centred: samples less the bias.
        directions: rows of unit length.
        penalty: in the units of the samples.
        n_iterations: of the accelerated proximal gradient method.
    Source: Beck & Teboulle 2009, "A fast iterative shrinkage-thresholding algorithm".
    """
    gram = directions @ directions.T
    target = centred @ directions.T - penalty
    step = 1 / _largest_eigenvalue(directions, gram)
    codes = torch.zeros_like(target)
    ahead, momentum = codes, 1.0
    target.mul_(step)
    for _ in range(n_iterations):
        moved = torch.addmm(ahead + target, ahead, gram, alpha=-step).clamp_min_(0)
        momentum, before = (1 + math.sqrt(1 + 4 * momentum**2)) / 2, momentum
        ahead = torch.lerp(codes, moved, 1 + (before - 1) / momentum)
        codes = moved
    return codes


def _largest_eigenvalue(directions: Float[Tensor, "A D"], gram: Float[Tensor, "A A"]) -> float:
    n, d_in = directions.shape
    smaller = gram if n <= d_in else directions.T @ directions
    # A little more, so that rounding does not make the steps too long.
    return 1.01 * float(torch.linalg.eigvalsh(smaller)[-1])
