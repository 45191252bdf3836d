"""Sparsity and reconstruction from one encoding of the samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.metrics.reconstruction import Reconstruction, ReconstructionTotals
from sparse_but_wrong.metrics.samples import check_activations, chunks, dense
from sparse_but_wrong.metrics.sparsity import Sparsity, SparsityTotals

if TYPE_CHECKING:
    import sae_lens


@torch.no_grad()
def sparsity_and_reconstruction(
    sae: sae_lens.SAE[Any],
    activations: Float[Tensor, "samples d_in"],
    *,
    positive_only: bool = False,
) -> tuple[Sparsity, Reconstruction]:
    """What `sparsity` and `reconstruction` give, for the price of one; they document the rest.

    Args:
        positive_only: count latents as active only above zero.
    """
    check_activations(activations, sae.cfg.d_in)
    sparsity_totals, reconstruction_totals = SparsityTotals(), ReconstructionTotals()
    for chunk in chunks(activations, sae):
        latent_acts = sae.encode(chunk)
        counted = dense(latent_acts)
        sparsity_totals.add(counted.relu() if positive_only else counted)
        reconstruction_totals.add(chunk, sae.decode(latent_acts))
    return sparsity_totals.result(), reconstruction_totals.result()
