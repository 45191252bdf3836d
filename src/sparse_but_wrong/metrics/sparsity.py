"""How many latents of an SAE are active, and which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.metrics.samples import check_activations, chunks, dense

if TYPE_CHECKING:
    import sae_lens


@dataclass(frozen=True, eq=False)
class Sparsity:
    """Which latents of one SAE were active over a set of samples. Active means not zero."""

    l0: float
    """Active latents per sample, on average."""
    dead_latents: int
    """How many latents were active on no sample."""
    densities: Float[Tensor, " d_sae"]
    """The share of samples on which each latent was active; on the CPU."""


class SparsityTotals:
    """Adds up, chunk by chunk, what a `Sparsity` needs."""

    def __init__(self) -> None:
        self._n_samples = 0
        self._active: Tensor | None = None
        self._has_nan: Tensor | None = None

    def add(self, latent_acts: Float[Tensor, "chunk d_sae"]) -> None:
        """Count one chunk of latent activations."""
        # Not zero rather than positive: an AbsTopK SAE has latents that are active when negative.
        active = torch.count_nonzero(latent_acts, dim=0)
        has_nan = latent_acts.sum(dim=0).isnan()
        self._n_samples += latent_acts.shape[0]
        self._active = active if self._active is None else self._active + active
        self._has_nan = has_nan if self._has_nan is None else self._has_nan | has_nan

    def result(self) -> Sparsity:
        """The figures over every chunk so far; there has to be one."""
        if self._active is None or self._has_nan is None:
            raise ValueError("no chunk of latent activations was added yet.")
        active, has_nan = self._active.cpu(), self._has_nan.cpu()
        densities = (active / self._n_samples).masked_fill(has_nan, torch.nan)
        # Whole numbers up to here, so that L0 is exact however many chunks there were.
        l0 = float("nan") if has_nan.any() else int(active.sum()) / self._n_samples
        return Sparsity(l0=l0, dead_latents=int((active == 0).sum()), densities=densities)


@torch.no_grad()
def sparsity(sae: sae_lens.SAE[Any], activations: Float[Tensor, "samples d_in"]) -> Sparsity:
    """Encode the samples and count the active latents.

    A training BatchTopK SAE picks its k per batch, here per chunk of samples: score the
    thresholded (JumpReLU) export instead, whose L0 is the one that holds at inference.

    Where an SAE that diverged gives NaN, `l0` and the densities of those latents are NaN, and
    those latents are not counted as dead.

    Args:
        sae: any sae_lens SAE.
        activations: shape [samples, d_in], in the units the SAE was trained on.
    Raises:
        ValueError: activations of another width, no samples, or non-finite values (the message
            names the first).
    """
    check_activations(activations, sae.cfg.d_in)
    totals = SparsityTotals()
    for chunk in chunks(activations, sae):
        totals.add(dense(sae.encode(chunk)))
    return totals.result()
