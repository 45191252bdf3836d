"""The n-th decoder projections s_n^dec: the single one, all by sorting, and all by counting.

With Z = (x − b_dec)·W_decᵀ over all samples and latents, sorted from the largest value down, s_n is
the entry at index n·samples, 0 ≤ n < H.

Axes: B samples of a chunk, D d_in, H d_sae.
Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560.
"""

from __future__ import annotations

import operator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_but_wrong.metrics.samples import check_activations, check_readable, decoder_frame

if TYPE_CHECKING:
    import sae_lens

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


@torch.no_grad()
def nth_decoder_projection(
    input_acts: Float[Tensor, "*batch d_in"], sae: sae_lens.SAE[Any], n: int
) -> Float[Tensor, ""]:
    """s_n^dec of an SAE, on the decoder as it is.

    Decoder rows keep the norms they have, and the value grows with them. To compare SAEs, or to
    look at more than one n, use `sparse_but_wrong.evaluate`, which scales the rows to unit norm and
    gives every n for the price of one.

    Args:
        input_acts: shape [..., d_in]; every leading dimension counts as samples.
        n: in [0, d_sae).
    Returns:
        a scalar on the device of the SAE; NaN for an SAE whose decoder is not finite.
    Raises:
        ValueError: an n outside [0, d_sae), or activations as `evaluate` refuses them.
    """
    d_sae, d_in = sae.W_dec.shape
    n = operator.index(n)
    if not 0 <= n < d_sae:
        raise ValueError(f"n = {n} is outside [0, {d_sae}): s_n exists for n = 0 … {d_sae - 1}.")
    samples = torch.atleast_2d(input_acts).flatten(0, -2)
    check_activations(samples, d_in)
    check_readable(sae, samples)
    frame = decoder_frame(sae, samples)
    projections = (frame.samples.to(sae.W_dec) - frame.bias) @ sae.W_dec.T
    if frame.unit is not None:
        # Rows have the norms that they have in a reconstruction, other ones for each sample.
        projections = projections * frame.unit
    if not bool(torch.isfinite(projections).all()):
        return projections.new_tensor(torch.nan)
    # Selects instead of sorting, since a single entry is asked for.
    return projections.flatten().kthvalue(projections.numel() - n * len(samples)).values


class SortedProjections:
    """All projections of so many samples on finite directions, kept to be sorted."""

    relative_error = 0.0

    def __init__(self, directions: Float[Tensor, "H D"], n_samples: int) -> None:
        self._directions = directions
        # The only thing of this size that is ever held: filled chunk by chunk, sorted in place.
        self._values = torch.empty(n_samples, len(directions), dtype=directions.dtype)
        self._start = self._stop = 0

    def add(self, samples: Float[Tensor, "B D"], bias: Float[Tensor, " D"]) -> None:
        """Add the (x − bias)·directionᵀ of some samples."""
        start, self._stop = self._stop, self._stop + len(samples)
        centred = _centred(samples, self._directions, bias)
        self._values[start : self._stop] = centred @ self._directions.T

    def end_batch(self) -> Float[Tensor, " H"]:
        """s_n for every n, of what was added since the last call."""
        batch = self._values[self._start : self._stop].flatten().clone()
        ranks = torch.arange(len(self._directions)) * (self._stop - self._start)
        self._start = self._stop
        return _sorted_in_place(batch)[len(batch) - 1 - ranks]

    def entries(self, ranks: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The entries at some ranks of all, sorted from the largest down."""
        return self._sorted[len(self._sorted) - 1 - ranks]

    def histogram(self, edges: Float[Tensor, " edges"]) -> Int[Tensor, " bars"]:
        """How many are between the edges; the outermost bars also hold what lies beyond."""
        flat = self._sorted
        below = torch.searchsorted(flat, edges[1:-1].to(flat.dtype))
        return torch.cat([torch.tensor([0]), below, torch.tensor([len(flat)])]).diff()

    @cached_property
    def _sorted(self) -> Float[Tensor, " count"]:
        return _sorted_in_place(self._values.flatten())


def _sorted_in_place(flat: Float[Tensor, " count"]) -> Float[Tensor, " count"]:
    # numpy's sort is vectorised: 0.015 s for 100,000 × 50 on one thread, whatever the values,
    # against 0.13 s for numpy.partition at all 50 places and 0.48 s for torch.sort. (Without AVX2:
    # 0.34 s against 0.12 s.)
    flat.numpy().sort()
    return flat


class CountedProjections:
    """As `SortedProjections`, but counts, in memory that does not grow."""

    relative_error = RELATIVE_ERROR

    def __init__(self, directions: Float[Tensor, "H D"]) -> None:
        self._directions, self._batch_size = directions.float(), 0
        self._counts = self._batch = torch.zeros(_BINS, dtype=torch.int64, device=directions.device)

    def add(self, samples: Float[Tensor, "B D"], bias: Float[Tensor, " D"]) -> None:
        self._batch = self._batch + count_projections(samples, self._directions, bias)
        self._batch_size += len(samples)

    def end_batch(self) -> Float[Tensor, " H"]:
        s = sorted_entries(self._batch, torch.arange(len(self._directions)) * self._batch_size)
        self._counts = self._counts + self._batch
        self._batch, self._batch_size = torch.zeros_like(self._batch), 0
        return s

    def entries(self, ranks: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        return sorted_entries(self._counts, ranks)

    def histogram(self, edges: Float[Tensor, " edges"]) -> Int[Tensor, " bars"]:
        # By the middle of each bin: edges blur by `RELATIVE_ERROR`.
        bars = torch.zeros(len(edges) - 1, dtype=torch.int64)
        at = torch.searchsorted(edges.double(), _CENTRES, right=True) - 1
        return bars.index_add_(0, at.clamp_(0, len(bars) - 1), _descending(self._counts))


def _centred(
    samples: Float[Tensor, "B D"], directions: Float[Tensor, "H D"], bias: Float[Tensor, " D"]
) -> Float[Tensor, "B D"]:
    # The bias is taken off before the product, not after: where it is much larger than the spread
    # of the samples (language models), the difference of two products loses digits.
    return samples.to(directions) - bias.to(directions.dtype)


def count_projections(
    activations: Float[Tensor, "B D"], directions: Float[Tensor, "H D"], b_dec: Float[Tensor, " D"]
) -> Int[Tensor, " bins"]:
    """How many of the (x − b_dec)·directionᵀ, all float32, fall into each bin of leading bits.

    Counting a projection costs a fraction of computing it: two integer operations and an increment
    against D products. `python -m benchmarks.diagnostics` measures it.
    """
    limit = _TILE_ELEMENTS.get(directions.device.type, 2**21)
    centred = _centred(activations, directions, b_dec)
    counts = torch.zeros(_BINS, dtype=torch.int64, device=directions.device)
    for rows in directions.split(max(1, limit // max(1, len(activations)))):
        counts += count_values((centred @ rows.T).flatten())
    return counts


def count_values(values: Float[Tensor, " count"]) -> Int[Tensor, " bins"]:
    """As `count_projections`, of finite float32 numbers, which are overwritten."""
    # The leading bits of a float, read as an integer, are the number of its bin.
    bits = values.view(torch.int32).bitwise_right_shift_(_SHIFT).add_(_POSITIVE)
    return torch.bincount(bits, minlength=_BINS)


def sorted_entries(counts: Int[Tensor, " bins"], ranks: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Those at some ranks of what was counted, from the largest down, to `RELATIVE_ERROR`."""
    reached = _descending(counts).cumsum(0)
    return _CENTRES[torch.searchsorted(reached, ranks, right=True)]


def count_above(counts: Int[Tensor, " bins"], limit: float) -> int:
    """How many of what was counted are above a limit, which is sharp to `RELATIVE_ERROR`."""
    return int(_descending(counts)[limit < _CENTRES].sum())


def _descending(counts: Tensor) -> Int[Tensor, " bins"]:
    """From the bin of the largest numbers down; bits of negative ones ascend with their size."""
    negative, positive = counts.cpu().split(_POSITIVE)
    return torch.cat([positive.flip(0), negative])


def _bin_centres() -> Float[Tensor, " bins"]:
    """The middle of each bin, from the largest down, as float64."""
    first = torch.arange(_POSITIVE, dtype=torch.int32).bitwise_left_shift_(_SHIFT)
    low, high = (bits.view(torch.float32).double() for bits in (first, first + ((1 << _SHIFT) - 1)))
    centres = (low + high) / 2
    centres[0] = 0.0  # zero itself, and what is next to nothing
    return torch.cat([centres.flip(0), -centres])


_CENTRES = _bin_centres()
