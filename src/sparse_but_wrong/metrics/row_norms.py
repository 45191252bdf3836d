"""Samples of no norm and of huge norms, which decide means that they should not decide.

Axes: B samples of a batch, D d_in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_but_wrong.metrics.projections import count_above, count_values, sorted_entries

OUTLIER = 10.0
"""A sample whose norm is more than this many times the median norm is an outlier. Language models
have some at the first token of a sequence, at delimiters and in mid-sequence, of 20 to 1,000 times
the median; the norms of all other samples are within a factor of two or three of each other."""


class NormTally:
    """Counts the norms of samples, in memory that does not grow with them."""

    def __init__(self) -> None:
        self.n_samples = self.n_zero = 0
        self.largest = 0.0
        self.largest_at = 0
        """Which sample has the largest norm, counted from 0 in the order of the stream."""
        self._counts = count_values(torch.zeros(0))

    def watch(self, batches: Iterable[Float[Tensor, "_batch D"]]) -> Iterator[Tensor]:
        """The same batches, each of which is counted when it comes by."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: Float[Tensor, "B D"]) -> None:
        """Count one more batch."""
        norms = _norms(batch).cpu()
        if len(norms):
            largest, at = norms.nan_to_num().max(0)
            if float(largest) > self.largest:
                self.largest, self.largest_at = float(largest), self.n_samples + int(at)
        positive = norms[norms > 0].clamp_max(torch.finfo(torch.float32).max)
        self._counts = self._counts + count_values(positive.float())
        self.n_samples += len(norms)
        self.n_zero += int((norms == 0).sum())

    @property
    def median(self) -> float:
        """Of the samples that are not zero, to a two-thousandth of itself; 0 if there are none."""
        n_positive = int(self._counts.sum())
        middle = torch.tensor([n_positive // 2])
        return float(sorted_entries(self._counts, middle)) if n_positive else 0.0

    @property
    def n_outliers(self) -> int:
        """Samples whose norm is more than `OUTLIER` times the median."""
        return count_above(self._counts, OUTLIER * self.median)

    def in_words(self) -> list[str]:
        """What there is to say of samples that are still among those measured."""
        said = []
        if self.n_zero:
            said.append(
                f"Samples of zeros: {self.n_zero:,} of {self.n_samples:,}. They count in every "
                "mean. Leave out padding with --exclude-outliers."
            )
        if n_outliers := self.n_outliers:
            said.append(
                f"Outliers: {n_outliers:,} of {self.n_samples:,} samples have a norm of more than "
                f"{OUTLIER:g} times the median ({self.median:.3g}), the largest, sample "
                f"{self.largest_at:,}, of {self.largest:.3g}. A single one can make dead latents "
                "look alive and carry most of the variance: leave them out with "
                "--exclude-outliers, unless they are meant."
            )
        return said


def _norms(batch: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    return torch.linalg.vector_norm(batch.double(), dim=1)


class WithoutOutliers:
    """Tells which samples are neither zeros nor outliers, and counts the others.

    Args:
        norms: of all samples, from a pass before.
    """

    def __init__(self, norms: NormTally) -> None:
        self.median = norms.median
        self.n_zero = self.n_outliers = 0
        """Left out so far."""

    def __call__(self, rows: Float[Tensor, "B D"]) -> Bool[Tensor, " B"]:
        """Which of some samples to keep."""
        norms = _norms(rows)
        zero, above = norms == 0, norms > OUTLIER * self.median
        self.n_zero += int(zero.sum())
        self.n_outliers += int(above.sum())
        return ~(zero | above)
