"""One step of some rows of a stack by PyTorch's operations, with no look at the device.

Axes: C SAEs of one chunk, B batch, D d_in, H d_sae, P flat parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_but_wrong.training.architectures.architecture import Architecture, Workspace
from sparse_but_wrong.training.optimizer import AdamScalars, adam_, clip_grad_norm_per_sae_
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stack_state import StackState

if TYPE_CHECKING:
    from sparse_but_wrong.training.static_step import StaticStep


@dataclass
class Scratch:
    """Buffers that a chunk needs for the time of its steps."""

    workspace: Workspace
    grads: Float[Tensor, "C P"]
    adam: Float[Tensor, "C P"]
    active: Float[Tensor, " C"]
    """Latents active in all samples since it was last set to 0."""
    static_steps: dict[tuple[int, int], StaticStep] = field(default_factory=dict)
    """By the rows they step; bound to these buffers."""


@dataclass(frozen=True)
class StepInputs:
    """What changes from step to step besides the batch; numbers, or tensors that are refilled."""

    step: int | Int[Tensor, ""]
    knob: Tensor
    adam: AdamScalars


def take_step(
    architecture: Architecture,
    state: StackState,
    rows: slice,
    x: Float[Tensor, "B D"],
    inputs: StepInputs,
    scratch: Scratch,
    options: TrainOptions,
    with_figures: bool,
) -> dict[str, Float[Tensor, " C"]] | None:
    """Step; nothing is changed before all memory that it needs has been had.

    Args:
        with_figures: whether to measure losses, L0, dead latents and the gradient's norm.
    Returns:
        The figures by name, if asked for.
    """
    params = state.params[rows]
    param_views = state.layout.views(params)
    grad_views = state.layout.views(scratch.grads)
    buffers = {name: values[rows] for name, values in state.buffers.items()}
    moved = {name: values.clone() for name, values in buffers.items()}
    last_fired = state.last_fired[rows]

    dead = None
    if with_figures or architecture.uses_dead_latents:
        dead = dead_after(inputs.step, last_fired, options.dead_feature_window)
    fired = architecture.step(
        x, param_views, moved, grad_views, inputs.knob, dead, scratch.workspace
    )
    losses = None
    if with_figures:
        losses = architecture.losses(x, param_views, inputs.knob, dead, scratch.workspace)
    has_fired = fired > 0
    n_active = fired.sum(1)
    grad_norm = clip_grad_norm_per_sae_(scratch.grads, scale=2 / x.shape[0]).squeeze(1)
    diverged_at = state.diverged_at[rows]
    newly = ~torch.isfinite(grad_norm) & (diverged_at < 0)
    figures = None
    if losses is not None:
        fired_last = last_fired.masked_fill(has_fired, inputs.step)
        dead_next = dead_after(inputs.step + 1, fired_last, options.dead_feature_window)
        figures = {
            "loss": torch.stack(list(losses.values())).sum(0),
            **losses,
            "l0": n_active / x.shape[0],
            "dead_latents": dead_next.sum(1),
            "grad_norm": grad_norm,
        }

    # From here on only what exists is changed.
    diverged_at.masked_fill_(newly, inputs.step)
    last_fired.masked_fill_(has_fired, inputs.step)
    state.window_fired[rows].add_(fired)
    scratch.active.add_(n_active)
    for name, values in buffers.items():
        values.copy_(moved[name])
    adam_(
        params,
        state.exp_avg[rows],
        state.exp_avg_sq[rows],
        scratch.grads,
        scratch.adam,
        inputs.adam,
        options.adam_beta1,
        options.adam_beta2,
    )
    return figures


def dead_after(
    n_steps: int | Int[Tensor, ""], last_fired: Int[Tensor, "C H"], window: int
) -> Bool[Tensor, "C H"]:
    """Latents that have not fired for longer than the window, once n_steps have been taken."""
    return last_fired < n_steps - 1 - window
