"""The largest values of each row, as many as each row says.

Axes: C SAEs of one chunk, R rows of an SAE, N values of a row.

What TopK SAEs choose their active latents by. Nothing is sorted, and nothing that one SAE holds
reaches another, NaN included; which values a row that holds NaN keeps is left open. Of values that
tie for the last places the first ones are kept, so that every row keeps exactly its own number.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_but_wrong.training import products

_SIGN = -(2**31)
# From the highest bit of an int32 to the lowest; the highest is the sign.
_BITS = (_SIGN, *(1 << bit for bit in range(30, -1, -1)))


def mark_largest(
    values: Float[Tensor, "C R N"], counts: Int[Tensor, "C R"], out: Float[Tensor, "C R N"]
) -> None:
    """Set `out` to 1 where a value is among the `counts` largest of its row, and to 0 elsewhere.

    On a GPU nothing is read back.

    Args:
        values: float32, of any sign.
        counts: how many of each row, 0 to N.
        out: overwritten.
    """
    if products.one_by_one(values):
        for row_values, row_counts, row_out in zip(values, counts, out, strict=True):
            _mark_of_one_sae(row_values, row_counts, row_out)
    else:
        keys = _ordered_bits(values)
        last = _last_kept_key(keys, counts).unsqueeze(2)
        out.copy_(_exactly(counts, above=keys > last, tied=keys == last))


def _mark_of_one_sae(
    values: Float[Tensor, "R N"], counts: Int[Tensor, " R"], out: Float[Tensor, "R N"]
) -> None:
    """By NumPy's partition: ten times as fast as `torch.topk` and `torch.kthvalue` on the CPU.

    Measured on 51,200 values: 0.03 ms against 0.4 and 0.3; on 1024 rows of 50: 0.06 against 0.5.
    """
    n_values = values.shape[1]
    array, wanted = values.numpy(), counts.numpy()
    last = np.full((len(wanted), 1), np.inf, dtype=np.float32)  # where none is kept
    for count in np.unique(wanted):
        rows = wanted == count
        at = n_values - count
        if at == 0:
            last[rows] = -np.inf
        elif count > 0:
            last[rows, 0] = np.partition(array if rows.all() else array[rows], at, axis=1)[:, at]
    torch.ge(values, torch.from_numpy(last), out=out)
    if np.count_nonzero(array >= last) != wanted.sum():
        threshold = torch.from_numpy(last)
        out.copy_(_exactly(counts, above=values > threshold, tied=values == threshold))


def _ordered_bits(values: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Integers in the order of the floats: their bits, those of negative ones turned over."""
    bits = (values + 0.0).view(torch.int32)  # the sum turns −0 into 0, which it equals
    return torch.where(bits < 0, ~bits ^ _SIGN, bits)


def _last_kept_key(keys: Int[Tensor, "C R N"], counts: Int[Tensor, "C R"]) -> Int[Tensor, "C R"]:
    """The smallest of the largest keys, found bit by bit: the largest that enough keys reach."""
    found = torch.full_like(counts, _SIGN, dtype=torch.int32)
    for bit in _BITS:
        candidate = found ^ bit
        n_reaching = (keys >= candidate.unsqueeze(2)).sum(2)
        found = torch.where(n_reaching >= counts, candidate, found)
    return found


def _exactly(
    counts: Int[Tensor, "*rows"], above: Bool[Tensor, "*rows N"], tied: Bool[Tensor, "*rows N"]
) -> Bool[Tensor, "*rows N"]:
    """All that lie above and, of those tied for the last places, the first."""
    n_places = (counts - above.sum(-1)).unsqueeze(-1)
    return above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= n_places))
