"""Who takes the steps of a stack: PyTorch's operations, or compiled loops.

Axes: C SAEs of one chunk, B batch, D d_in, H d_sae.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

MAX_GRAD_NORM = 1.0
ADAM_EPS = 1e-8


@dataclass(frozen=True)
class Steps:
    """Some steps to take, one per batch."""

    batches: Sequence[Tensor]
    first: int
    """Steps taken before these."""
    rates: Sequence[float]
    """The learning rate of each."""
    end_the_run: bool = False

    def part(self, start: int, stop: int) -> Steps:
        """Those from `start` up to, not including, `stop`."""
        return Steps(self.batches[start:stop], self.first + start, self.rates[start:stop])


@dataclass(frozen=True)
class StepResult:
    """What some steps of a chunk report."""

    n_active: Float[Tensor, " C"]
    """Latents active, summed over all samples of these steps."""
    metrics: dict[str, Float[Tensor, " C"]] | None
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
        self, chunk: int, steps: Steps, sparsity: Float[Tensor, "n C"], with_metrics: bool
    ) -> StepResult:
        """Take some steps, on prepared batches, with one chunk.

        `sparsity` is the coefficient or k of each SAE at each step, as float64; the metrics are of
        the last step.
        """


def even_slices(n_saes: int, n_chunks: int) -> list[slice]:
    """The rows of each of some chunks, as equal in size as can be."""
    ends = [n_saes * (i + 1) // n_chunks for i in range(n_chunks)]
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def dead_after(
    n_steps: int | Int[Tensor, ""], last_fired: Int[Tensor, "C H"], window: int
) -> Bool[Tensor, "C H"]:
    """Latents that have not fired for longer than the window, once n_steps have been taken."""
    return last_fired < n_steps - 1 - window


def adam_scalars(step: int, lr: float, beta1: float, beta2: float) -> tuple[float, float]:
    """Step size and root of the second moment's bias correction, after `step` steps."""
    return lr / (1 - beta1 ** (step + 1)), math.sqrt(1 - beta2 ** (step + 1))
