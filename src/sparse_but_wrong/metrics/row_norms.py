"""Samples of no norm and of huge norms, which decide means that they should not decide.

Axes: B samples of a batch, D d_in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_but_wrong.metrics.projections import count_above, count_values, sorted_entries

OUTLIER = 10.0
"""A sample whose norm is more than this many times the median norm is an outlier. Language models
have some at the first token of a sequence, at delimiters and in mid-sequence, of 20 to 1,000 times
the median; the norms of all other samples are within a factor of two or three of each other."""


@dataclass(frozen=True)
class RowNorms:
    """The norms of samples, in numbers."""

    n_samples: int
    n_zero: int
    median: float
    """Of the samples that are not zero, to a two-thousandth of itself; 0 where there are none."""

    n_outliers: int
    """Samples whose norm is more than `OUTLIER` times the median."""

    largest: float
    largest_at: int
    """Which sample has the largest norm, counted from 0 in the order of the stream."""

    @property
    def limit(self) -> float:
        """Above it is an outlier."""
        return OUTLIER * self.median

    def in_words(self) -> list[str]:
        """What there is to say of samples that are still among those measured."""
        said = []
        if self.n_zero:
            said.append(
                f"Samples of zeros: {self.n_zero:,} of {self.n_samples:,}. They count in every "
                "mean. Where they are padding and no activations, leave them out with "
                "--exclude-outliers."
            )
        if self.n_outliers:
            said.append(
                f"Outliers: {self.n_outliers:,} of {self.n_samples:,} samples have a norm of more "
                f"than {OUTLIER:g} times the median ({self.median:.3g}), the largest, sample "
                f"{self.largest_at:,}, of {self.largest:.3g}. A single one can make dead latents "
                "look alive and carry most of the variance. Leave them out with "
                "--exclude-outliers, unless they are meant."
            )
        return said


class NormTally:
    """Counts the norms of samples, in memory that does not grow with them."""

    def __init__(self) -> None:
        self._counts: Tensor | None = None
        self._n_samples, self._n_zero = 0, 0
        self._largest, self._largest_at = 0.0, 0

    def watch(self, batches: Iterable[Float[Tensor, "_batch D"]]) -> Iterator[Tensor]:
        """The same batches, each of which is counted when it comes by."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: Float[Tensor, "B D"]) -> None:
        """Count one more batch."""
        norms = norms_of(batch)
        positive = norms[norms > 0]
        if len(positive):
            largest, at = norms.nan_to_num().max(0)
            if float(largest) > self._largest:
                self._largest, self._largest_at = float(largest), self._n_samples + int(at)
            counts = count_values(positive.clamp_max(torch.finfo(torch.float32).max).float())
            self._counts = counts if self._counts is None else self._counts + counts
        self._n_samples += len(norms)
        self._n_zero += int((norms == 0).sum())

    def result(self) -> RowNorms:
        """What was counted so far."""
        if self._counts is None:
            return RowNorms(self._n_samples, self._n_zero, 0.0, 0, 0.0, 0)
        n_positive = self._n_samples - self._n_zero
        median = float(sorted_entries(self._counts, torch.tensor([n_positive // 2])))
        return RowNorms(
            self._n_samples,
            self._n_zero,
            median,
            count_above(self._counts, OUTLIER * median),
            self._largest,
            self._largest_at,
        )


def norms_of(batch: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """The L2 norms of samples, in float64."""
    return torch.linalg.vector_norm(batch.double(), dim=1)


class WithoutOutliers:
    """Tells which samples are neither zeros nor outliers, and counts the others.

    Args:
        norms: of all samples, from a pass before.
    """

    def __init__(self, norms: RowNorms) -> None:
        self.median, self._limit = norms.median, norms.limit
        self.n_zero, self.n_outliers = 0, 0
        """Left out so far."""

    def __call__(self, rows: Float[Tensor, "B D"]) -> Bool[Tensor, " B"]:
        """Which of some samples to keep."""
        norms = norms_of(rows)
        zero, above = norms == 0, norms > self._limit
        self.n_zero += int(zero.sum())
        self.n_outliers += int(above.sum())
        return ~(zero | above)
