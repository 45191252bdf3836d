"""What may move an SAE's sparsity while it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sparse_but_wrong.training.options import TrainOptions


@dataclass(frozen=True)
class KTransition:
    """k moves linearly from `initial_k` to the config's own k (BatchTopK, TopK, Matryoshka).

    Raises:
        ValueError: a value that no transition can have; the message names the field.
    """

    initial_k: float
    """k until the transition starts."""
    start_step: int
    """The last step, counted from 0, that is taken at `initial_k`."""
    duration_steps: int
    """Steps from there to the first one that is taken at the config's k."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.initial_k) and self.initial_k > 0):
            raise ValueError(f"KTransition.initial_k must be positive, got {self.initial_k}.")
        for name, least in (("start_step", 0), ("duration_steps", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(
                    f"KTransition.{name} must be at least {least} and whole, got {value!r}."
                )

    @property
    def end_step(self) -> int:
        """The first step that is taken at the config's k."""
        return self.start_step + self.duration_steps

    def k_at(self, step: int, final_k: float) -> float:
        """The k of a step, counted from 0, on the way to `final_k`."""
        moved = min(max((step - self.start_step) / self.duration_steps, 0.0), 1.0)
        way = final_k - self.initial_k
        # From the nearer end, as torch.lerp does: exact at both.
        return self.initial_k + moved * way if moved < 0.5 else final_k - (1 - moved) * way


@dataclass(frozen=True)
class TargetL0:
    """The coefficient is moved until the SAE's L0 settles at `l0` (JumpReLU, standard, gated).

    The search begins and stays where the target and the variance of the activations suggest; the
    config's own coefficient and warm-up are ignored. The coefficient is held for the last fiftieth
    of the run and written into the SAE's config at the end. `sparsity` explains the method.

    Raises:
        ValueError: a value that cannot be a target; the message names the field.
    """

    l0: float
    """Latents active per sample."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.l0) and self.l0 > 0):
            raise ValueError(f"TargetL0.l0 must be positive, got {self.l0}.")


Control = KTransition | TargetL0


def own_transition(cfg: Any) -> KTransition | None:
    """How an SAE's config itself moves its k in training; None if it does not."""
    return getattr(cfg, "k_transition", None)


def why_not_controlled(
    control: Control | None, sparsity: str | None, options: TrainOptions
) -> str | None:
    """Why a control cannot move an SAE's sparsity, in words that follow the SAE's name; or None.

    `sparsity` is ``k``, the name of its coefficient, or None for sae_lens' own trainer.
    """
    name, last_step = type(control).__name__, options.n_steps - 1
    if control is None:
        return None
    if sparsity is None:
        return f"is trained by sae_lens' own trainer, which has no {name}; give it None"
    if isinstance(control, TargetL0):
        no_coefficient = "has a k and no coefficient that a TargetL0 could move; give it None, and "
        return f"{no_coefficient}the L0 as its k" if sparsity == "k" else None
    if sparsity != "k":
        return (
            f"has no k that a KTransition could move, but the coefficient {sparsity!r}; give it "
            "None or a TargetL0"
        )
    if control.end_step > last_step:
        return (
            f"reaches its k at step {control.end_step}, but the last step of the run is "
            f"{last_step}; shorten the KTransition or raise total_training_samples"
        )
    return None
