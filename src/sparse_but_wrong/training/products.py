"""The five matrix products of an SAE's step, by the fastest kernels at hand.

Axes: C SAEs of one chunk, B batch, D d_in, H d_sae; K and N stand for either of D and H.

They are nine tenths of a step. On x86 processors oneDNN, which PyTorch carries, multiplies these
shapes up to twice as fast as the BLAS behind `torch.bmm` (on AMD's, whose vector units that BLAS
leaves half unused, also large ones), and adds biases on the way. PyTorch offers it for float32 only
as an operator for its own compiler, so whether it is there is asked once, and `torch.bmm` does the
work where it is not, on GPUs, and where several SAEs are one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def _find_linear() -> Any | None:
    """oneDNN's linear operator, if this PyTorch has it and it computes what is expected of it."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        linear = torch.ops.mkldnn._linear_pointwise
        x, weight, bias = torch.ones(2, 3), torch.full((4, 3), 2.0), torch.ones(4)
        plain = linear.default(x, weight, bias, "none", [], "")
        less = linear.binary(x, torch.full((2, 4), 5.0), weight, bias, "sub")
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    expected = torch.full((2, 4), 7.0)
    return linear if torch.equal(plain, expected) and torch.equal(less, expected - 5) else None


_linear: Any | None = _find_linear()


def affine(
    x: Float[Tensor, "B D"], weight: Float[Tensor, "C D H"], bias: Float[Tensor, "C H"]
) -> Float[Tensor, "C B H"]:
    """x · weight + bias, for inputs that all SAEs share."""
    if _is_single(weight):
        return _fast().default(x, weight[0].T, bias[0], "none", [], "").unsqueeze(0)
    return torch.baddbmm(bias.unsqueeze(1), _shared(x, weight), weight)


def affine_minus(
    acts: Float[Tensor, "C B H"],
    weight: Float[Tensor, "C H D"],
    bias: Float[Tensor, "C D"],
    x: Float[Tensor, "B D"],
) -> Float[Tensor, "C B D"]:
    """acts · weight + bias − x: the error of a reconstruction."""
    if _is_single(weight):
        return _fast().binary(acts[0], x, weight[0].T, bias[0], "sub").unsqueeze(0)
    return torch.baddbmm(_shared(x, weight), acts, weight, beta=-1).add_(bias.unsqueeze(1))


def times_transposed(
    left: Float[Tensor, "C B N"], right: Float[Tensor, "C K N"]
) -> Float[Tensor, "C B K"]:
    """left · rightᵀ."""
    if _is_single(right):
        return _fast().default(left[0], right[0], None, "none", [], "").unsqueeze(0)
    return torch.bmm(left, right.transpose(1, 2))


def outer(
    left: Float[Tensor, "C B K"], right: Float[Tensor, "C B N"], out: Float[Tensor, "C K N"]
) -> None:
    """leftᵀ · right, summed over the batch, into `out`."""
    if _is_single(left):
        out[0].copy_(_fast().default(left[0].T, right[0].T, None, "none", [], ""))
    else:
        torch.bmm(left.transpose(1, 2), right, out=out)


def outer_shared(
    x: Float[Tensor, "B D"], right: Float[Tensor, "C B H"], out: Float[Tensor, "C D H"]
) -> None:
    """xᵀ · right, summed over the batch, into `out`, for inputs that all SAEs share."""
    if _is_single(right):
        # The transposed product has the shape that the kernel is faster at.
        out[0].copy_(_fast().default(right[0].T, x.T, None, "none", [], "").T)
    else:
        torch.bmm(_shared(x, right).transpose(1, 2), right, out=out)


def _is_single(tensor: Tensor) -> bool:
    return _linear is not None and tensor.shape[0] == 1 and tensor.device.type == "cpu"


def _fast() -> Any:
    return _linear


def _shared(x: Float[Tensor, "B D"], like: Tensor) -> Float[Tensor, "C B D"]:
    return x.expand(like.shape[0], -1, -1)
