"""Whether a JumpReLU SAE's L0 is where its coefficient puts it, when training ends.

Axes: B batch, D d_in.

Adam divides each gradient by its usual size, so a threshold moves by at most about lr a step, and
once one term of the loss outweighs the others a larger coefficient changes nothing. Measured on the
JumpReLU notebook's world (coefficients 0.3 to 1000, warm-ups of 1,000 and 10,000 steps): where L0
had settled, thresholds drifted at up to 0.2 lr a step and reconstruction's gradient on them was at
least 0.45 of sparsity's; where it was still falling, at 0.8 lr and more; and from where a larger
coefficient no longer lowered L0, reconstruction's gradient was 0.2 of sparsity's and less.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.training.architectures.base import Inputs, Parameters
from sparse_but_wrong.training.architectures.penalty import JumpReLU
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stack import Stack

MOVING = 0.5
"""Drift of the thresholds, in lr per step, above which they have not arrived."""

OUTWEIGHED = 0.25
"""Reconstruction's gradient over sparsity's below which the coefficient is past its reach."""


class ThresholdState(NamedTuple):
    """What the end of a run says about one JumpReLU SAE."""

    drift: float
    """Mean motion of the thresholds, in units of lr per step; positive is up."""
    reconstruction_share: float
    """Norm of reconstruction's gradient on the thresholds over that of sparsity's; NaN if neither
    reaches them."""
    l0: float
    """Latents active per sample of the last batch."""

    def note(self, coefficient: float) -> str | None:
        """What there is to say, and to do; None where all is well."""
        if self.l0 == 0 or self.reconstruction_share < OUTWEIGHED:
            because = (
                "no latent fires any more"
                if self.l0 == 0
                else "on the thresholds its gradient is "
                f"{1 / max(self.reconstruction_share, 1e-9):.0f} times reconstruction's, and Adam "
                "sees the direction only"
            )
            return (
                f"saturated: at the coefficient {coefficient:g} {because}; a larger one would not "
                f"lower L0 ({self.l0:.1f}) further, and how fast it falls is the budget's doing. "
                "Lower the coefficient, or set a TargetL0."
            )
        if abs(self.drift) > MOVING:
            way = "rising" if self.drift > 0 else "falling"
            return (
                f"stopped early: the thresholds were still {way} at {abs(self.drift):.1f} lr per "
                f"step, so L0 ({self.l0:.1f}) is where the budget ended and not where the "
                f"coefficient {coefficient:g} leads. Train longer, raise lr, or start from a "
                "jumprelu_init_threshold nearer to where they are going."
            )
        return None


@torch.no_grad()
def threshold_state(
    cfg: Any,
    row: Stack,
    x: Float[Tensor, "B D"],
    coefficient: float,
    options: TrainOptions,
    n_steps: int,
) -> ThresholdState:
    """The state of one SAE, a row of a stack, after `n_steps` steps, on a scaled batch."""
    mean = row.views(row.exp_avg)["threshold"] / (1 - options.adam_beta1**n_steps)
    square = row.views(row.exp_avg_sq)["threshold"] / (1 - options.adam_beta2**n_steps)
    share, l0 = reconstruction_share(cfg, row.views(row.params), x, coefficient)
    drift = float(-(mean / (square.sqrt() + 1e-8)).mean())
    return ThresholdState(drift=drift, reconstruction_share=share, l0=l0)


@torch.no_grad()
def reconstruction_share(
    cfg: Any, parameters: Parameters, x: Float[Tensor, "B D"], coefficient: float
) -> tuple[float, float]:
    """`ThresholdState.reconstruction_share` and `.l0` of one JumpReLU SAE on a scaled batch.

    Args:
        parameters: [1, …] each, by sae_lens' names.
    """
    threshold = parameters["threshold"].detach().clone().requires_grad_()
    leaves = {**parameters, "threshold": threshold}
    dead = torch.zeros(1, cfg.d_sae, dtype=torch.bool, device=x.device)
    with torch.enable_grad():
        inputs = Inputs(x, torch.full((1, 1), coefficient, device=x.device), dead)
        forward = JumpReLU([cfg], x.device).forward(inputs, leaves)
        losses = list(forward.losses.values())
        reconstruction, whole = (
            torch.autograd.grad(loss, threshold, retain_graph=True)[0]
            for loss in (losses[0].sum(), torch.stack(losses).sum())
        )
    share = reconstruction.norm() / (whole - reconstruction).norm()
    return float(share), float((forward.acts > 0).sum()) / x.shape[0]
