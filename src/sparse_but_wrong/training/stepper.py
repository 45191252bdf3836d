"""Who takes the steps of a stack: PyTorch's operations, or compiled loops.

Axes: C SAEs of one chunk, B batch, D d_in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Advanced:
    """What some steps of a chunk left to be told."""

    n_active: Float[Tensor, " C"]
    """Latents active, summed over all samples of these steps."""

    figures: dict[str, Float[Tensor, " C"]] | None
    """Losses, L0, dead latents and gradient norm of the last step, where they were asked for."""


class Stepper(ABC):
    """Takes the steps of one stack, chunk by chunk."""

    chunks: list[slice]
    """Rows of the stack that are stepped in one go; different chunks may run at the same time."""

    @abstractmethod
    def prepared(self, batches: Sequence[Tensor], scale: float) -> list[Tensor]:
        """The batches, scaled, in the form that `advance` reads them; made once for all chunks."""

    @abstractmethod
    def advance(
        self,
        task: int,
        batches: Sequence[Tensor],
        first_step: int,
        rates: Sequence[float],
        knobs: Float[Tensor, "n C"],
        with_figures: bool,
    ) -> Advanced:
        """Take one step per batch with one chunk.

        Args:
            task: which chunk.
            batches: as `prepared` gave them.
            first_step: steps taken before these.
            rates: the learning rate of each step.
            knobs: float64, the coefficient or k of each SAE at each step.
            with_figures: whether to measure the last of these steps.
        """


def even_slices(n_saes: int, n_chunks: int) -> list[slice]:
    """The rows of each of some chunks, as equal in size as can be."""
    ends = [n_saes * (i + 1) // n_chunks for i in range(n_chunks)]
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
