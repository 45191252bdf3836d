"""All n-th decoder projections from counts, in memory that does not grow with the samples.

Axes: B samples of a chunk, D d_in, H d_sae.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MANTISSA_BITS = 10
_SHIFT = 23 - _MANTISSA_BITS
_POSITIVE = 1 << (8 + _MANTISSA_BITS)
_BINS = 2 * _POSITIVE

RELATIVE_ERROR = 2.0 ** -(_MANTISSA_BITS + 1)
"""Bound on |counted − sorted| / |sorted| for every entry of at least 2⁻¹²⁶, float32's smallest
normal number: a bin holds the numbers that agree in sign, exponent and ten bits of the mantissa,
and its middle is off by at most half its width. Smaller entries come out as at most that number."""

_TILE_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}
"""Of projections held at a time; on a CPU they should still be in cache when they are counted."""


class CountedProjections:
    """Counts of all projections of samples on directions, in memory that does not grow.

    Args:
        directions: shape [H, D], finite.
    """

    relative_error = RELATIVE_ERROR

    def __init__(self, directions: Float[Tensor, "H D"]) -> None:
        self._directions = directions.float()
        self._batch_size = 0
        self._counts: Tensor | None = None
        self._batch: Tensor | None = None

    def add(self, samples: Float[Tensor, "B D"], bias: Float[Tensor, " D"]) -> None:
        """Add the (x − bias)·directionᵀ of some samples."""
        counts = count_projections(samples, self._directions, bias)
        self._batch = counts if self._batch is None else self._batch.add_(counts)
        self._batch_size += len(samples)

    def end_batch(self) -> Float[Tensor, " H"]:
        """s_n for every n, of what was added since the last call."""
        assert self._batch is not None
        ranks = torch.arange(len(self._directions)) * self._batch_size
        s = sorted_entries(self._batch, ranks)
        self._counts = self._batch if self._counts is None else self._counts.add_(self._batch)
        self._batch, self._batch_size = None, 0
        return s

    def entries(self, ranks: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The entries at some ranks of all, sorted from the largest down."""
        assert self._counts is not None
        return sorted_entries(self._counts, ranks)

    def histogram(self, edges: Float[Tensor, " edges"]) -> Int[Tensor, " bars"]:
        """How many are between the edges; the outermost bars also hold what lies beyond."""
        assert self._counts is not None
        return histogram(self._counts, edges)


def count_projections(
    activations: Float[Tensor, "B D"],
    directions: Float[Tensor, "H D"],
    b_dec: Float[Tensor, " D"],
) -> Int[Tensor, " bins"]:
    """How many of the (x − b_dec)·directionᵀ fall into each bin of equal leading bits.

    Counting a projection costs a fraction of computing it: two integer operations and an increment
    against D products. `python -m benchmarks.diagnostics` measures it.

    Args:
        activations: finite, on any device.
        directions: finite, float32.
        b_dec: finite.
    Returns:
        shape [2¹⁹], int64, in the order of the bits; `sorted_entries` reads it.
    """
    n_samples = max(1, activations.shape[0])
    limit = _TILE_ELEMENTS.get(directions.device.type, 2**21)
    tile = max(1, limit // n_samples)
    # The bias first: where it is large, the difference of two products would lose digits.
    centred = activations.to(directions.device, torch.float32) - b_dec.float()
    counts = torch.zeros(_BINS, dtype=torch.int64, device=directions.device)
    for rows in directions.split(tile):
        counts += _counted_in_place((centred @ rows.T).flatten())
    return counts


def count_values(values: Float[Tensor, " count"]) -> Int[Tensor, " bins"]:
    """As `count_projections`, of any finite float32 numbers."""
    return _counted_in_place(values.clone())


def _counted_in_place(values: Float[Tensor, " count"]) -> Int[Tensor, " bins"]:
    # The leading bits of a float, read as an integer, are the number of its bin.
    bits = values.view(torch.int32).bitwise_right_shift_(_SHIFT).add_(_POSITIVE)
    return torch.bincount(bits, minlength=_BINS)


def sorted_entries(counts: Int[Tensor, " bins"], ranks: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The entries at some ranks of what was counted, sorted from the largest down.

    Args:
        counts: what `count_projections` gave, or a sum of that.
        ranks: each from 0 up to, not including, the number of what was counted.
    Returns:
        float64, on the CPU, each within `RELATIVE_ERROR` of the true entry.
    """
    descending = _descending(counts)
    reached = descending.cumsum(0)
    return _CENTRES[torch.searchsorted(reached, ranks, right=True)]


def count_above(counts: Int[Tensor, " bins"], limit: float) -> int:
    """How many of what was counted are above a limit, which is sharp to `RELATIVE_ERROR`."""
    return int(_descending(counts)[limit < _CENTRES].sum())


def histogram(counts: Int[Tensor, " bins"], edges: Float[Tensor, " edges"]) -> Int[Tensor, " bars"]:
    """What was counted, in coarser bins; the outermost hold whatever lies beyond them, too.

    A bin of the counts goes where its middle lies, so that an edge is sharp to `RELATIVE_ERROR`.

    Args:
        counts: what `count_projections` gave, or a sum of that.
        edges: ascending.
    """
    bars = torch.zeros(len(edges) - 1, dtype=torch.int64)
    at = (torch.searchsorted(edges.double(), _CENTRES, right=True) - 1).clamp_(0, len(bars) - 1)
    return bars.index_add_(0, at, _descending(counts))


def _descending(counts: Tensor) -> Int[Tensor, " bins"]:
    """From the bin of the largest numbers down; bits of negative ones ascend with their size."""
    negative, positive = counts.cpu().split(_POSITIVE)
    return torch.cat([positive.flip(0), negative])


def _bin_centres() -> Float[Tensor, " bins"]:
    """The middle of each bin, from the largest down, as float64."""
    first = torch.arange(_POSITIVE, dtype=torch.int32).bitwise_left_shift_(_SHIFT)
    low = first.view(torch.float32).double()
    high = (first + ((1 << _SHIFT) - 1)).view(torch.float32).double()
    centres = (low + high) / 2
    centres[0] = 0.0  # zero itself, and what is next to nothing
    return torch.cat([centres.flip(0), -centres])


_CENTRES = _bin_centres()
