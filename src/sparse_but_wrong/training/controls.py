"""What may move an SAE's sparsity while it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class KTransition:
    """k moves linearly from `initial_k` to the config's own k (BatchTopK, TopK, Matryoshka).

    Raises:
        ValueError: a value that no transition can have; the message names the field.
    """

    initial_k: float
    """k until the transition starts."""

    start_step: int
    """Steps taken at `initial_k`."""

    duration_steps: int
    """Steps from `initial_k` to k; afterwards k stays."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.initial_k) and self.initial_k > 0):
            raise ValueError(f"KTransition.initial_k must be positive, got {self.initial_k}.")
        if self.start_step < 0:
            raise ValueError(f"KTransition.start_step must not be negative, got {self.start_step}.")
        if self.duration_steps < 1:
            raise ValueError(
                f"KTransition.duration_steps must be at least 1, got {self.duration_steps}."
            )


@dataclass(frozen=True)
class TargetL0:
    """The coefficient is moved until the SAE's L0 settles at `l0` (JumpReLU, standard).

    The config's coefficient is where the search begins.

    Raises:
        ValueError: a value that cannot be aimed at; the message names the field.
    """

    l0: float
    """Latents active per sample."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.l0) and self.l0 > 0):
            raise ValueError(f"TargetL0.l0 must be positive, got {self.l0}.")


Control = KTransition | TargetL0
