"""How well an SAE gives back its input, as it is or held to another k over the whole batch.

Not a guide to the right L0: there a wrong SAE reconstructs better than the true features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.metrics.samples import (
    BatchMoments,
    at_least_float32,
    check_activations,
    chunks,
    with_room_for_squares,
)

if TYPE_CHECKING:
    import sae_lens


@dataclass(frozen=True, eq=False, kw_only=True)
class Reconstruction:
    """How close the reconstructions of one SAE came to a set of samples."""

    mse: float
    """Squared error, summed over d_in and averaged over samples (sae_lens' loss convention)."""
    mse_standard_error: float = math.nan
    """This one and the others: from how much batches differ; NaN after a single batch."""
    variance_explained: float
    """1 − mean squared error / mean squared distance of the samples from their mean.

    Where all samples are the same: 1 if they are reconstructed (to rounding), else 0."""
    variance_explained_standard_error: float = math.nan
    shrinkage: float
    """Mean of ‖reconstruction‖ / ‖input‖ over the samples that are not zero; 1 is none."""


class ReconstructionTotals:
    """Adds up, chunk by chunk, what a `Reconstruction` needs.

    Sums over a chunk are taken in `dtype`, else in its own, which is at least float32.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype
        # Samples, squared errors, squared offsets, squared norms, norm ratios and how many of them.
        self._sums = self._before = torch.zeros(6, dtype=torch.float64)
        self._origin: Tensor | None = None
        self._rounding = 0.0
        self._offsets: Tensor | float = 0.0
        self._mse = BatchMoments()
        self._products = torch.zeros(3, dtype=torch.float64)

    def add(
        self, inputs: Float[Tensor, "chunk d_in"], outputs: Float[Tensor, "chunk d_out"]
    ) -> None:
        """Count one chunk; ValueError for reconstructions of another shape than the inputs."""
        if outputs.shape != inputs.shape:
            raise ValueError(
                f"reconstructions of shape {list(outputs.shape)} cannot be compared with inputs "
                f"of shape {list(inputs.shape)}: a transcoder is not a reconstruction of its input."
            )
        inputs, outputs = with_room_for_squares(inputs), with_room_for_squares(outputs)
        if self._origin is None:
            # Any origin gives the same variance; one near the mean leaves nothing to cancel.
            self._origin = inputs.mean(dim=0)
            # Samples that are all the same still differ from their computed mean by rounding.
            self._rounding = 16 * torch.finfo(inputs.dtype).eps
        offsets = inputs - self._origin
        self._offsets += offsets.sum(dim=0, dtype=self._dtype).cpu().double()
        norms = torch.linalg.vector_norm(inputs, dim=1)
        ratios = (torch.linalg.vector_norm(outputs, dim=1) / norms)[norms > 0]
        summed = ((inputs - outputs).square_(), offsets.square_(), norms.square(), ratios)
        sums = [values.sum(dtype=self._dtype).item() for values in summed]
        sums = [len(inputs), *sums, len(ratios)]
        self._sums = self._sums + torch.tensor(sums, dtype=torch.float64)

    def end_batch(self) -> None:
        """Take the chunks since the last call for one batch, of which standard errors are made."""
        n, e, v = (self._sums - self._before)[:3].tolist()
        self._before = self._sums
        self._mse.add(torch.tensor(e / n, dtype=torch.float64), n)
        self._products += torch.tensor([e * e, e * v, v * v], dtype=torch.float64)

    def result(self) -> Reconstruction:
        """The numbers over every chunk so far; there has to be one."""
        n, squared_error, squared_offset, squared_norm, ratios, n_ratios = self._sums.tolist()
        mse = squared_error / n
        variance = squared_offset / n - (self._offsets / n).square().sum().item()
        negligible = self._rounding**2 * squared_norm / n
        explained = standard_error = math.nan
        if math.isfinite(mse) and math.isfinite(variance):
            explained = 1.0 if mse <= negligible else 0.0
            if variance > negligible:
                ratio, m = mse / variance, self._mse.n_batches
                explained = 1 - ratio
                # Of a ratio of sums over m batches: √(m/(m−1) · Σ(e − ratio·v)²) / Σv.
                ee, ev, vv = self._products.tolist()
                squares = max(0.0, ee - 2 * ratio * ev + ratio**2 * vv)
                if m > 1:
                    standard_error = math.sqrt(squares * m / (m - 1)) / (variance * n)
        return Reconstruction(
            mse=mse,
            mse_standard_error=float(self._mse.standard_error),
            variance_explained=explained,
            variance_explained_standard_error=standard_error,
            shrinkage=ratios / n_ratios if n_ratios else math.nan,
        )


@torch.no_grad()
def reconstruction_at_k(
    sae: sae_lens.SAE[Any], activations: Float[Tensor, "samples d_in"], k: float | int
) -> Reconstruction:
    """Keep the int(k · samples) largest latents over all samples, decode them and compare.

    This is what BatchTopK does in training, with all samples as its one batch. It shows SAEs
    trained at different sparsities, or never trained, side by side at one L0. Pre-activations are
    cut off below 0 and ranked as the SAE itself would rank them: times the decoder norms where its
    config has `rescale_acts_by_decoder_norm`. Its own thresholds and k play no part. Where latents
    tie at the cut, those of earlier samples are kept. NaN for an SAE that diverged.

    Args:
        sae: with a single encoder, W_enc and b_enc; for training or inference.
        k: latents per sample on average, above 0, at most d_sae; may be fractional.
    Raises:
        ValueError: activations as for `evaluate`; a k that is out of range or keeps nothing; an
            SAE with another kind of encoder.
    Source: Bussmann, Leask & Nanda 2024, arXiv:2412.06410, for BatchTopK.
    """
    d_sae = sae.W_dec.shape[0]
    check_activations(activations, sae.cfg.d_in)
    n_places = int(k * len(activations)) if math.isfinite(k) and 0 < k <= d_sae else 0
    if n_places == 0:
        raise ValueError(
            f"k is {k}: an SAE with {d_sae} latents can be held to a k above 0 and up to {d_sae} "
            f"that keeps a latent of {len(activations)} sample(s)."
        )
    if not isinstance(getattr(sae, "b_enc", None), Tensor):
        raise ValueError(
            f"a {type(sae).__name__} has no b_enc, so its pre-activations cannot be ranked; hold "
            "an SAE with a single encoder to a k."
        )
    # A zero, so that where fewer are positive the cut is at 0.
    largest = np.zeros(1, np.float32)
    for chunk in chunks(activations, sae):
        ranked = at_least_float32(_ranked(sae, chunk))
        if ranked.isnan().any():
            return Reconstruction(mse=math.nan, variance_explained=math.nan, shrinkage=math.nan)
        largest = np.concatenate([largest, ranked[ranked > 0].cpu().numpy()])
        if len(largest) > n_places:
            # Ten times as fast as torch's topk.
            largest = np.partition(largest, -n_places)[-n_places:]
    cut = float(largest.min())
    n_at_cut = int((largest == cut).sum())

    # Computed a second time rather than held: for a wide SAE they would be gigabytes.
    totals = ReconstructionTotals()
    for chunk in chunks(activations, sae):
        ranked = _ranked(sae, chunk)
        kept = ranked > cut
        ties = (ranked == cut).nonzero()[:n_at_cut]
        kept[ties[:, 0], ties[:, 1]] = True
        n_at_cut -= len(ties)
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
