"""Means over batches with their standard errors, in memory that does not grow with the batches."""

from __future__ import annotations

import torch
from torch import Tensor


class BatchMoments:
    """The mean of a quantity over batches, weighted by their samples, and its standard error.

    Batches are taken to be independent of each other, samples within one need not be. The
    standard error is that of a weighted mean, √(m/(m−1) · Σ w²(x − x̄)²) / Σw over m batches.
    """

    def __init__(self) -> None:
        self.n_batches = 0
        self._weight = 0.0
        self._square_weight = 0.0
        self._origin = torch.zeros(())
        self._sums: list[Tensor] = []

    def add(self, values: Tensor, weight: int | float) -> None:
        """Add what was measured on one batch.

        Args:
            values: any shape, the same for every batch.
            weight: samples in the batch.
        """
        values = values.double().cpu()
        if self.n_batches == 0:
            # Differences to the first batch: sums of squares of large numbers would lose digits.
            self._origin = values.clone()
            self._sums = [torch.zeros_like(values) for _ in range(3)]
        off = values - self._origin
        self.n_batches += 1
        self._weight += weight
        self._square_weight += weight**2
        for total, term in zip(
            self._sums, (weight * off, weight**2 * off, weight**2 * off**2), strict=True
        ):
            total += term

    @property
    def mean(self) -> Tensor:
        """The weighted mean, float64."""
        return self._origin + self._sums[0] / self._weight

    @property
    def standard_error(self) -> Tensor:
        """Of the mean, float64; NaN after one batch."""
        if self.n_batches < 2:
            return torch.full_like(self._origin, torch.nan)
        mean = self._sums[0] / self._weight
        squares = self._sums[2] - 2 * mean * self._sums[1] + mean**2 * self._square_weight
        factor = self.n_batches / (self.n_batches - 1)
        return (factor * squares.clamp_min(0)).sqrt() / self._weight
