"""Stored activations in two: some to train on, some held out to measure on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparse_but_wrong.activations.stored import StoredActivations

BLOCKS = 16
"""Into which what is held out is cut."""


@dataclass(frozen=True)
class _Section:
    """Some samples in a row, as a part of their own."""

    of: StoredActivations
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"samples {self.start} to {self.stop} of {self.of.name}"

    @property
    def n_samples(self) -> int:
        return self.stop - self.start

    @property
    def d_in(self) -> int:
        return self.of.d_in

    @property
    def dtype(self) -> torch.dtype:
        return self.of.dtype

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d_in"]:
        return self.of.read(self.start + start, self.start + stop)

    def read_token_ids(self, start: int, stop: int) -> Int64[Tensor, " rows"] | None:
        return self.of.read_token_ids(self.start + start, self.start + stop)


def hold_out(
    stored: StoredActivations, n_samples: int
) -> tuple[StoredActivations, StoredActivations]:
    """Set samples apart, in blocks of neighbours spread evenly over all.

    Neighbours are of one text and alike; single samples from between those that are trained on
    would be half known. Held-out ones are a part per block.

    Args:
        stored: all there is.
        n_samples: to hold out.
    Returns:
        the others, and those held out.
    Raises:
        ValueError: more than half of them are asked for, or none.
    """
    if not 1 <= n_samples <= stored.n_samples // 2:
        raise ValueError(
            f"of the {stored.n_samples:,} samples of {stored.name}, {n_samples:,} cannot be held "
            f"out to measure on; ask for 1 to {stored.n_samples // 2:,}."
        )
    n_blocks = min(BLOCKS, n_samples)
    # The middle of each share: the rounding of the ends leaves no two blocks overlapping.
    share_ends = [stored.n_samples * i // n_blocks for i in range(n_blocks + 1)]
    sizes = [n_samples * (i + 1) // n_blocks - n_samples * i // n_blocks for i in range(n_blocks)]
    kept, held, at = [], [], 0
    for i, size in enumerate(sizes):
        start = (share_ends[i] + share_ends[i + 1] - size) // 2
        kept.append(_Section(stored, at, start))
        held.append(_Section(stored, start, start + size))
        at = start + size
    kept.append(_Section(stored, at, stored.n_samples))
    return (
        StoredActivations(stored.name, tuple(part for part in kept if part.n_samples)),
        StoredActivations(f"what is held out of {stored.name}", tuple(held)),
    )
