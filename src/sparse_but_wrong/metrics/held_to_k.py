"""What an SAE would reconstruct if it were held to another k, chosen over the whole batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.metrics.reconstruction import Reconstruction, ReconstructionTotals
from sparse_but_wrong.metrics.samples import at_least_float32, check_activations, chunks

if TYPE_CHECKING:
    import sae_lens


@torch.no_grad()
def reconstruction_at_k(
    sae: sae_lens.SAE[Any], activations: Float[Tensor, "samples d_in"], k: float | int
) -> Reconstruction:
    """Keep the int(k · samples) largest latents over all samples, decode them and compare.

    This is what BatchTopK does in training, with all samples as its one batch. It shows SAEs
    trained at different sparsities, or never trained, side by side at one L0. Pre-activations are
    cut off below 0 and ranked as the SAE itself would rank them: times the decoder norms where its
    config has `rescale_acts_by_decoder_norm`. Its own thresholds and its own k play no part. Of
    latents that are equal where the cut falls, those of earlier samples are kept. Fewer than
    int(k · samples) are active where fewer are positive.

    Args:
        sae: with a single encoder, W_enc and b_enc; for training or inference.
        activations: shape [samples, d_in], in the units the SAE was trained on.
        k: latents per sample on average, above 0, at most d_sae; may be fractional.
    Returns:
        The figures, in the units of the activations. NaN for an SAE that diverged.
    Raises:
        ValueError: activations of another width, no samples, or non-finite values; a k that is
            out of range or keeps nothing; an SAE with another kind of encoder.
    Source: Bussmann, Leask & Nanda 2024, arXiv:2412.06410, for BatchTopK.
    """
    d_sae = sae.W_dec.shape[0]
    check_activations(activations, sae.cfg.d_in)
    if not (math.isfinite(k) and 0 < k <= d_sae):
        raise ValueError(
            f"k is {k}: an SAE with {d_sae} latents can be held to a k above 0 and up to {d_sae}."
        )
    if not isinstance(getattr(sae, "b_enc", None), Tensor):
        raise ValueError(
            f"a {type(sae).__name__} has no b_enc, so its pre-activations cannot be ranked; hold "
            "an SAE with a single encoder to a k."
        )
    n_places = int(k * activations.shape[0])
    if n_places == 0:
        raise ValueError(
            f"at k = {k} not one latent is kept over {activations.shape[0]} sample(s): pass more."
        )
    largest = _Largest(n_places)
    for chunk in chunks(activations, sae):
        ranked = _ranked(sae, chunk)
        if ranked.isnan().any():
            return Reconstruction(mse=math.nan, variance_explained=math.nan, shrinkage=math.nan)
        largest.add(ranked)
    cut, n_at_cut = largest.cut()

    # Computed a second time rather than held: for a wide SAE they would be gigabytes.
    totals = ReconstructionTotals()
    for chunk in chunks(activations, sae):
        ranked = _ranked(sae, chunk)
        kept, n_at_cut = _kept(ranked, cut, n_at_cut)
        totals.add(chunk, sae.decode(ranked * kept))
    return totals.result()


def _ranked(
    sae: sae_lens.SAE[Any], chunk: Float[Tensor, "chunk d_in"]
) -> Float[Tensor, "chunk d_sae"]:
    """Pre-activations, cut off below 0, as they are ranked; `decode` reads them in these units."""
    hidden_pre = sae.process_sae_in(chunk) @ sae.W_enc + cast("Tensor", sae.b_enc)
    ranked = torch.relu(hidden_pre)
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        ranked = ranked * sae.W_dec.norm(dim=-1)
    return ranked


def _kept(ranked: Float[Tensor, "chunk d_sae"], cut: float, n_at_cut: int) -> tuple[Tensor, int]:
    """Which latents of a chunk are kept, and how many places at the cut are left after it."""
    kept = ranked > cut
    ties = (ranked == cut).nonzero()[:n_at_cut]
    kept[ties[:, 0], ties[:, 1]] = True
    return kept, n_at_cut - len(ties)


class _Largest:
    """The largest of many positive values, told chunk by chunk.

    Args:
        count: how many of them, at least 1.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._held: list[np.ndarray] = []
        self._n_held = 0
        self._floor = 0.0
        """What is below it cannot be among the largest any more."""

    def add(self, values: Tensor) -> None:
        """Count in some more values."""
        values = at_least_float32(values).cpu()
        # Not below the floor: what is equal to it may still tie for the last places.
        new = values[(values > 0) & (values >= self._floor)].numpy()
        self._held.append(new)
        self._n_held += len(new)
        if self._n_held > 2 * self._count:
            self._shrink()

    def cut(self) -> tuple[float, int]:
        """The smallest value kept, and how many values equal to it are kept.

        All positive values are kept where there are no more than `count`; the cut is then at 0.
        """
        if self._floor == 0 and self._n_held <= self._count:
            return 0.0, 0
        self._shrink()
        (held,) = self._held
        return self._floor, int((held == self._floor).sum())

    def _shrink(self) -> None:
        held = np.concatenate(self._held)
        held.partition(len(held) - self._count)
        held = held[len(held) - self._count :].copy()
        self._floor = float(held[0])
        self._held, self._n_held = [held], len(held)
