"""What a stack of SAEs carries from step to step.

Axes: S SAE, H d_sae, P parameters of one SAE laid out flat (padded).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from sparse_but_wrong.training.stack import ParameterLayout


@dataclass(frozen=True)
class StackState:
    """Everything that a step changes, in place; steppers work on rows of it."""

    layout: ParameterLayout
    params: Float[Tensor, "S P"]
    exp_avg: Float[Tensor, "S P"]
    """Adam's mean gradient."""
    exp_avg_sq: Float[Tensor, "S P"]
    """Adam's mean squared gradient."""
    buffers: dict[str, Float[Tensor, " S"]]
    """Scalars that training moves though they are no parameters."""
    last_fired: Int[Tensor, "S H"]
    """The step each latent last fired at; −1 stands for before the first."""
    window_fired: Float[Tensor, "S H"]
    """Samples each latent fired on in the current sampling window."""
    diverged_at: Int[Tensor, " S"]
    """The first step whose gradient was not finite; −1 where there was none."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {
            "params": self.params,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "last_fired": self.last_fired,
            "window_fired": self.window_fired,
            "diverged_at": self.diverged_at,
            **{f"buffer.{name}": values for name, values in self.buffers.items()},
        }
