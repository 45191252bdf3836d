"""Re-initialising dead latents on the residuals of their SAE.

Axes: B batch, D d_in, H d_sae, N latents that are dead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stack import StackState

if TYPE_CHECKING:
    import sae_lens

_SHARE_OF_RUN = 2 / 3
"""Later, a latent would not have the time to settle."""

_NUDGE = 1e-12
"""Keeps a batch that is reconstructed to the last bit from having no residuals to draw from."""


def is_due(n_steps: int, options: TrainOptions) -> bool:
    """Whether dead latents are re-initialised once `n_steps` steps have been taken."""
    every = options.reinit_dead_every
    return every is not None and n_steps % every == 0 and n_steps <= _SHARE_OF_RUN * options.n_steps


@torch.no_grad()
def reinitialize_dead(
    sae: sae_lens.TrainingSAE[Any],
    state: StackState,
    row: int,
    x: Float[Tensor, "B D"],
    n_steps: int,
    options: TrainOptions,
) -> None:
    """Point the latents of one SAE that have not fired lately at samples it reconstructs badly.

    A latent is dead here if it has not fired in the last `options.reinit_dead_every` steps. Its
    decoder row becomes the residual of a sample, drawn with a probability proportional to its
    squared length, at the mean length of the other rows; its encoder column the same direction at
    theirs; its biases and threshold become their means; what Adam remembers of it is forgotten.
    Which samples are drawn follows from the step and the residuals alone, so that an SAE does not
    depend on its neighbours.

    The SAE holds the parameters of its row of the stack, and is not changed; x is scaled.

    Source: resampling of dead latents onto badly reconstructed samples is that of Bricken et al.
        2023, "Towards Monosemanticity"; the lengths and means are ours.
    """
    dead = state.last_fired[row] < n_steps - (options.reinit_dead_every or 0)
    n_dead = int(dead.sum())
    if n_dead in (0, len(dead)) or int(state.diverged_at[row]) >= 0:
        return
    alive = ~dead
    residual = x - sae.decode(sae.encode(x))
    generator = torch.Generator().manual_seed(n_steps)
    chances = residual.square().sum(1).double().cpu() + _NUDGE
    drawn = torch.multinomial(
        chances, n_dead, replacement=n_dead > len(chances), generator=generator
    ).to(x.device)
    directions = torch.nn.functional.normalize(residual[drawn], dim=1)

    params = state.layout.views(state.params[row : row + 1])
    for name, stacked in params.items():
        values = stacked[0]
        if name == "W_dec":
            values[dead] = directions * values[alive].norm(dim=1).mean()
        elif name == "W_enc":
            values[:, dead] = directions.T * values[:, alive].norm(dim=0).mean()
        elif values.shape == dead.shape and name != "b_dec":
            values[dead] = values[alive].mean()
    for memory in (state.exp_avg, state.exp_avg_sq):
        for name, stacked in state.layout.views(memory[row : row + 1]).items():
            if name == "W_enc":
                stacked[0][:, dead] = 0.0
            elif name != "b_dec":
                stacked[0][dead] = 0.0
    state.last_fired[row, dead] = n_steps - 1
