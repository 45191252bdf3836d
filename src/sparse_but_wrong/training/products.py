"""The matrix products of an SAE's step, by the fastest kernels at hand.

Axes: C SAEs of one chunk, B batch, D d_in, H d_sae; K and N stand for either of D and H.

They are about two thirds of a step. On the CPU each SAE's product is a call of its own: batched
kernels may split their work by the number of SAEs, and then an SAE's last bits would depend on its
neighbours. On x86 processors oneDNN, which PyTorch carries, multiplies these shapes up to twice as
fast as the BLAS behind `torch.mm` (on AMD's, whose vector units that BLAS leaves half unused, also
large ones), and adds biases on the way. PyTorch offers it for float32 only as an operator for its
own compiler, so whether it is there is asked once, and `torch.mm` does the work where it is not.
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
        five = torch.full((2, 4), 5.0)
        less = linear.binary(x, five, weight, bias, "sub")
        more = linear.binary(x, five, weight, None, "add")
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    # 3 · 2 for the product, 1 for the bias
    is_as_expected = bool(
        (plain == 6 + 1).all() and (less == 7 - 5).all() and (more == 6 + 5).all()
    )
    return linear if is_as_expected else None


_linear: Any | None = _find_linear()


def one_by_one(tensor: Tensor) -> bool:
    """Whether each SAE of a chunk gets calls of its own: on the CPU, where calls are cheap."""
    return tensor.device.type == "cpu"


def affine(
    x: Float[Tensor, "B D"],
    weight: Float[Tensor, "C D H"],
    bias: Float[Tensor, "C H"],
    out: Float[Tensor, "C B H"],
) -> Float[Tensor, "C B H"]:
    """x · weight + bias, for inputs that all SAEs share.

    `out` is there to be used; the result may be elsewhere. So it is with the others, too.
    """
    if not one_by_one(weight):
        return torch.baddbmm(bias.unsqueeze(1), _shared(x, weight), weight, out=out)
    if _linear is None:
        for i in range(len(weight)):
            torch.addmm(bias[i], x, weight[i], out=out[i])
        return out
    return _gather(
        [_linear.default(x, w.T, b, "none", [], "") for w, b in zip(weight, bias, strict=True)], out
    )


def affine_minus(
    acts: Float[Tensor, "C B H"],
    weight: Float[Tensor, "C H D"],
    bias: Float[Tensor, "C D"],
    x: Float[Tensor, "B D"],
    out: Float[Tensor, "C B D"],
) -> Float[Tensor, "C B D"]:
    """acts · weight + bias − x: the error of a reconstruction."""
    if not one_by_one(weight):
        return torch.baddbmm(_shared(x, weight), acts, weight, beta=-1, out=out).add_(
            bias.unsqueeze(1)
        )
    if _linear is None:
        for i in range(len(weight)):
            torch.addmm(x, acts[i], weight[i], beta=-1, out=out[i])
        return out.add_(bias.unsqueeze(1))
    return _gather(
        [_linear.binary(a, x, w.T, b, "sub") for a, w, b in zip(acts, weight, bias, strict=True)],
        out,
    )


def plus_product(
    start: Float[Tensor, "C B D"],
    acts: Float[Tensor, "C B K"],
    weight: Float[Tensor, "C K D"],
    out: Float[Tensor, "C B D"],
) -> Float[Tensor, "C B D"]:
    """start + acts · weight: a reconstruction that some more latents join."""
    if not one_by_one(weight):
        return torch.baddbmm(start, acts, weight, out=out)
    if _linear is None:
        for i in range(len(weight)):
            torch.addmm(start[i], acts[i], weight[i], out=out[i])
        return out
    return _gather(
        [
            _linear.binary(a, s, w.T, None, "add")
            for s, a, w in zip(start, acts, weight, strict=True)
        ],
        out,
    )


def times_transposed(
    left: Float[Tensor, "C B N"], right: Float[Tensor, "C K N"], out: Float[Tensor, "C B K"]
) -> Float[Tensor, "C B K"]:
    """left · rightᵀ."""
    if not one_by_one(right):
        return torch.bmm(left, right.transpose(1, 2), out=out)
    if _linear is None:
        for i in range(len(right)):
            torch.mm(left[i], right[i].T, out=out[i])
        return out
    return _gather(
        [_linear.default(a, b, None, "none", [], "") for a, b in zip(left, right, strict=True)],
        out,
    )


def outer(
    left: Float[Tensor, "C B K"], right: Float[Tensor, "C B N"], out: Float[Tensor, "C K N"]
) -> None:
    """leftᵀ · right, summed over the batch, into `out`."""
    if not one_by_one(left):
        torch.bmm(left.transpose(1, 2), right, out=out)
        return
    for a, b, result in zip(left, right, out, strict=True):
        if _linear is None:
            torch.mm(a.T, b, out=result)
        else:
            result.copy_(_linear.default(a.T, b.T, None, "none", [], ""))


def outer_shared(
    x: Float[Tensor, "B D"], right: Float[Tensor, "C B H"], out: Float[Tensor, "C D H"]
) -> None:
    """xᵀ · right, summed over the batch, into `out`, for inputs that all SAEs share."""
    if not one_by_one(right):
        torch.bmm(_shared(x, right).transpose(1, 2), right, out=out)
        return
    for b, result in zip(right, out, strict=True):
        if _linear is None:
            torch.mm(x.T, b, out=result)
        else:
            # The transposed product has the shape that the kernel is faster at.
            result.copy_(_linear.default(b.T, x.T, None, "none", [], "").T)


def times_vector(
    weight: Float[Tensor, "C K N"], vector: Float[Tensor, "C N"]
) -> Float[Tensor, "C K"]:
    """weight · vector."""
    if not one_by_one(weight):
        return torch.bmm(weight, vector.unsqueeze(2)).squeeze(2)
    return torch.stack([torch.mv(w, v) for w, v in zip(weight, vector, strict=True)])


def _gather(results: list[Tensor], out: Float[Tensor, "C B N"]) -> Float[Tensor, "C B N"]:
    """One tensor of the results of all SAEs."""
    if len(results) == 1:
        return results[0].unsqueeze(0)
    for result, place in zip(results, out, strict=True):
        place.copy_(result)
    return out


def _shared(x: Float[Tensor, "B D"], like: Tensor) -> Float[Tensor, "C B D"]:
    return x.expand(like.shape[0], -1, -1)
