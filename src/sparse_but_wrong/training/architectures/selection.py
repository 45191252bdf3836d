"""The largest values of each row, as many as each row says: by what TopK SAEs choose latents.

Axes: C SAEs, R rows of an SAE, N values of a row.

Nothing that one SAE holds reaches another, NaN included; which values a row that holds NaN keeps is
left open. Among values that tie for the last places the first ones are kept, so that every row
keeps exactly its own number.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_SIGN = -(2**31)
# From the highest bit of an int32 to the lowest; the highest is the sign.
_BITS = (_SIGN, *(1 << bit for bit in range(30, -1, -1)))


def may_look(tensor: Tensor) -> bool:
    """Whether values can be read without keeping a device waiting."""
    return tensor.device.type == "cpu"


def largest(values: Float[Tensor, "C R N"], counts: Int[Tensor, "C R"]) -> Float[Tensor, "C R N"]:
    """1 where a value is among the `counts` (0 to N) largest of its row, else 0."""
    if may_look(values):
        return torch.stack([_by_partition(*row) for row in zip(values, counts, strict=True)])
    keys = _ordered_bits(values)
    last = _last_kept_key(keys, counts).unsqueeze(2)
    return _exactly(counts, above=keys > last, tied=keys == last).to(values.dtype)


def _by_partition(values: Float[Tensor, "R N"], counts: Int[Tensor, " R"]) -> Float[Tensor, "R N"]:
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
    threshold = torch.from_numpy(last)
    if np.count_nonzero(array >= last) == wanted.sum():
        return torch.ge(values, threshold, out=torch.empty_like(values))
    return _exactly(counts, above=values > threshold, tied=values == threshold).to(values.dtype)


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
