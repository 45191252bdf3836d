"""Re-initialising dead latents on the residuals of their SAE.

Axes: B batch, D d_in, H d_sae.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.seeds import derive_seed
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stack import Stack

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
    row: Stack,
    x: Float[Tensor, "B D"],
    n_steps: int,
    options: TrainOptions,
) -> None:
    """Point the latents of one SAE that have not fired lately at samples it reconstructs badly.

    A latent is dead here if it has not fired in the last `options.reinit_dead_every` steps. Its
    decoder row becomes the residual of a sample, drawn with a probability proportional to its
    squared length, at the mean length of the other rows; its encoder column the same direction at
    theirs; its biases and threshold become their means; what Adam remembers of it is forgotten.
    Which samples are drawn follows from the SAE alone, so that it does not depend on its
    neighbours, and differs between SAEs: two seeds that started again on the same samples would
    share latents for no better reason. A frozen decoder keeps its rows, and the encoder's columns
    start along them.

    The SAE holds the parameters of its row of the stack, and is not changed; x is scaled.

    Source: resampling of dead latents onto badly reconstructed samples is that of Bricken et al.
        2023, "Towards Monosemanticity"; the lengths and means are ours.
    """
    dead = row.last_fired[0] < n_steps - (options.reinit_dead_every or 0)
    n_dead = int(dead.sum())
    if n_dead in (0, len(dead)) or int(row.diverged_at) >= 0:
        return
    residual = x - sae.decode(sae.encode(x))
    which = dead.nonzero().flatten().tolist()
    generator = torch.Generator().manual_seed(
        derive_seed(n_steps, "reinitialize", *map(str, which))
    )
    chances = residual.square().sum(1).double().cpu() + _NUDGE
    drawn = torch.multinomial(
        chances, n_dead, replacement=n_dead > len(chances), generator=generator
    ).to(x.device)
    starts = sae.W_dec[dead] if row.decoder_is_frozen else residual[drawn]
    directions = torch.nn.functional.normalize(starts, dim=1)
    memories = row.views(row.exp_avg), row.views(row.exp_avg_sq)
    for name, (values,) in row.views(row.params).items():
        if name == "b_dec" or (name == "W_dec" and row.decoder_is_frozen):
            continue
        at = (slice(None), dead) if name == "W_enc" else dead
        if name == "W_enc":
            values[at] = directions.T * values[:, ~dead].norm(dim=0).mean()
        elif name == "W_dec":
            values[at] = directions * values[~dead].norm(dim=1).mean()
        else:
            values[at] = values[~dead].mean()
        for memory in memories:
            memory[name][0][at] = 0.0
    row.last_fired[0, dead] = n_steps - 1
