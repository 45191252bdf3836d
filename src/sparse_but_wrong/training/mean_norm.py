"""The factor that brings activations to a mean norm of √d_in (expected_average_only_in).

Axes: B batch, D d_in.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor


class MeanNorm:
    """The mean norm of activations, batch by batch.

    Norms are summed in float32 within a batch and in float64 over batches, as sae_lens does.
    """

    def __init__(self) -> None:
        self._total = 0.0
        self._count = 0

    def observe(self, batch: Float[Tensor, "B D"]) -> None:
        """Take in one batch."""
        norms = batch.norm(dim=-1)
        self._total += norms.sum().item()
        self._count += norms.numel()

    def scaling_factor(self, d_in: int) -> float:
        """√d_in / mean norm.

        Raises:
            ValueError: the activations seen are all zero.
        """
        if self._total == 0:
            raise ValueError(
                "the activations are all zero, so they cannot be normalised "
                '(normalize_activations="expected_average_only_in"); mend the source.'
            )
        return math.sqrt(d_in) * self._count / self._total
