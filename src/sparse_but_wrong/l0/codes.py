"""Codes: how much of each of some directions is in a sample.

Axes: B samples, D d_in, A directions.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from sparse_but_wrong.training.compiled_step import kernels

_SPAN = 64
"""Codes are padded to multiples of it, as the compiled descent wants them."""

_CHUNK = 128
_MOST_MOVES, _PER_DIRECTION = 3_000, 20
"""Moves of a sample at most: so many, and so many more for each direction. A sample that is made of
few directions is done long before; of noise, whose codes are dense, more is not worth the time."""

_MOST_ITERATIONS = 10_000

_TOLERANCE = 0.01
"""How far a code may end from its best value, beside the others, in units of the penalty."""

_SMALLEST_TOLERANCE = 1e-6
"""The same, in units of the largest product of a sample and a direction; float32 ends there."""


@torch.no_grad()
def sparse_codes(
    centred: Float[Tensor, "B D"],
    directions: Float[Tensor, "A D"],
    penalty: float,
    start: Float[Tensor, "B A"] | None = None,
) -> Float[Tensor, "B A"]:
    """The non-negative lasso: argmin over y ≥ 0 of ½‖x − y·directions‖² + penalty·Σy, per sample.

    Unlike projections, the codes of one direction do not hold what belongs to another that
    overlaps with it. A code comes out too small by about the penalty.

    Args:
        centred: samples less the bias.
        directions: rows of unit length.
        penalty: in the units of the samples.
        start: codes of samples that hardly differ, from which less is left to do; 0 if left out.
    """
    gram = directions @ directions.T
    return _minimised(directions, gram, centred @ directions.T - penalty, penalty, start)


@torch.no_grad()
def codes_by_others(directions: Float[Tensor, "A D"], penalty: float) -> Float[Tensor, "A A"]:
    """The `sparse_codes` of each direction by all others: 0 on the diagonal."""
    gram = directions @ directions.T
    slopes = (gram - penalty).fill_diagonal_(-math.inf)
    return _minimised(directions, gram, slopes, penalty)


def _minimised(
    directions: Float[Tensor, "A D"],
    gram: Float[Tensor, "A A"],
    slopes: Float[Tensor, "B A"],
    penalty: float,
    start: Float[Tensor, "B A"] | None = None,
) -> Float[Tensor, "B A"]:
    """Codes, by the slopes of the cost where all are 0, their sign turned; −∞ holds one at 0."""
    if slopes.numel() == 0:
        return torch.zeros_like(slopes)
    tolerance = max(_TOLERANCE * penalty, _SMALLEST_TOLERANCE * float(slopes.max()))
    compiled = kernels() if slopes.device.type == "cpu" else None
    codes = torch.zeros_like(slopes) if start is None else start
    if compiled is None:
        return _by_gradients(directions, gram, slopes, tolerance, codes)
    if start is not None:
        slopes = slopes - start @ gram
    n = slopes.shape[1]
    beyond = -n % _SPAN
    gram = pad(gram, (0, beyond, 0, beyond))
    slopes = pad(slopes, (0, beyond), value=-math.inf)
    codes = pad(codes, (0, beyond)).clone()

    most = _MOST_MOVES + _PER_DIRECTION * n

    def descend(first: int) -> None:
        part, furthest = slopes[first : first + _CHUNK], slopes.new_empty(gram.shape[1] // _SPAN)
        compiled.descend(
            *(gram.data_ptr(), len(part), gram.shape[1], tolerance, most),
            *(part.data_ptr(), codes[first].data_ptr(), furthest.data_ptr()),
        )

    firsts = range(0, len(slopes), _CHUNK)
    if (n_threads := torch.get_num_threads()) == 1:
        # On a busy machine, passing each batch to a thread and back takes most of the time.
        for first in firsts:
            descend(first)
    else:
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(descend, firsts))
    return codes[:, :n].contiguous()


def _by_gradients(
    directions: Tensor, gram: Tensor, slopes: Tensor, tolerance: float, codes: Tensor
) -> Tensor:
    """The same by the accelerated proximal gradient method, of whole batches at a time.

    Source: Beck & Teboulle 2009, "A fast iterative shrinkage-thresholding algorithm".
    """
    # The smaller of two matrices with the same largest eigenvalue.
    n, d_in = directions.shape
    smaller = gram if n <= d_in else directions.T @ directions
    step = 1 / (1.01 * float(torch.linalg.eigvalsh(smaller)[-1]))
    ahead, momentum = codes, 1.0
    for i in range(_MOST_ITERATIONS):
        moved = (ahead + step * (slopes - ahead @ gram)).clamp_min_(0)
        momentum, before = (1 + math.sqrt(1 + 4 * momentum**2)) / 2, momentum
        ahead = torch.lerp(codes, moved, 1 + (before - 1) / momentum)
        codes = moved
        if i % 20 == 19 and bool(
            ((slopes - codes @ gram).maximum(-codes).abs() <= tolerance).all()
        ):
            break
    return codes
