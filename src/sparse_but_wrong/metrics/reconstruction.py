"""How well an SAE gives back its input, as it is or held to another k over the whole batch.

Not a guide to the right L0: there a wrong SAE reconstructs better than the true features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.metrics.moments import BatchMoments
from sparse_but_wrong.metrics.samples import (
    at_least_float32,
    check_activations,
    chunks,
    with_room_for_squares,
)

if TYPE_CHECKING:
    import sae_lens


@dataclass(frozen=True)
class Reconstruction:
    """How close the reconstructions of one SAE came to a set of samples."""

    mse: float
    """Squared error, summed over d_in and averaged over samples (sae_lens' loss convention)."""
    variance_explained: float
    """1 − mean squared error / mean squared distance of the samples from their mean.

    Where all samples are the same there is no variance to explain: 1 if they are reconstructed
    (to rounding), else 0.
    """
    shrinkage: float
    """Mean of ‖reconstruction‖ / ‖input‖ over the samples that are not zero; 1 is none.

    NaN where every sample is zero.
    """
    mse_standard_error: float = field(default=math.nan, compare=False)
    """From how much batches differ; NaN after a single one."""
    variance_explained_standard_error: float = field(default=math.nan, compare=False)


class ReconstructionTotals:
    """Adds up, chunk by chunk, what a `Reconstruction` needs.

    Args:
        dtype: that sums over a chunk are taken in; that of the chunk if left out, which is at least
            float32 and holds the squares.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype
        self._n_samples, self._n_nonzero = 0, 0
        self._squared_error = self._squared_norm = self._squared_offset = self._norm_ratio = 0.0
        self._origin: Tensor | None = None
        self._offset_sum = torch.zeros(0, dtype=torch.float64)
        self._before = (0, 0.0, 0.0)
        self._mse = BatchMoments()
        self._products = torch.zeros(3, dtype=torch.float64)

    def add(
        self, inputs: Float[Tensor, "chunk d_in"], outputs: Float[Tensor, "chunk d_out"]
    ) -> None:
        """Count one chunk of inputs and their reconstructions.

        Raises:
            ValueError: reconstructions of another shape than the inputs.
        """
        if outputs.shape != inputs.shape:
            raise ValueError(
                f"reconstructions of shape {list(outputs.shape)} cannot be compared with inputs "
                f"of shape {list(inputs.shape)}: a transcoder is not a reconstruction of its input."
            )
        inputs, outputs = with_room_for_squares(inputs), with_room_for_squares(outputs)
        if self._origin is None:
            # Any origin gives the same variance; one near the mean leaves nothing to cancel.
            self._origin = inputs.mean(dim=0)
            self._offset_sum = torch.zeros(inputs.shape[1], dtype=torch.float64)
        offsets = inputs - self._origin
        norms = torch.linalg.vector_norm(inputs, dim=1)
        ratios = (torch.linalg.vector_norm(outputs, dim=1) / norms)[norms > 0]

        self._n_samples += inputs.shape[0]
        self._squared_error += self._sum((inputs - outputs).square_())
        self._squared_norm += self._sum(norms.square())
        self._offset_sum += offsets.sum(dim=0, dtype=self._dtype).cpu().double()
        self._squared_offset += self._sum(offsets.square_())
        self._n_nonzero += ratios.shape[0]
        self._norm_ratio += self._sum(ratios)

    def _sum(self, values: Tensor) -> float:
        return values.sum(dtype=self._dtype).item()

    def end_batch(self) -> None:
        """Take the chunks since the last call for one batch, of which standard errors are made."""
        now = (self._n_samples, self._squared_error, self._squared_offset)
        n, e, v = (one - before for one, before in zip(now, self._before, strict=True))
        self._before = now
        self._mse.add(torch.tensor(e / n, dtype=torch.float64), n)
        self._products += torch.tensor([e * e, e * v, v * v], dtype=torch.float64)

    def result(self) -> Reconstruction:
        """The numbers over every chunk so far; there has to be one."""
        if self._origin is None:
            raise ValueError("no chunk of reconstructions was added yet.")
        mse = self._squared_error / self._n_samples
        mean_offset = self._offset_sum / self._n_samples
        variance = self._squared_offset / self._n_samples - mean_offset.square().sum().item()
        # Samples that are all the same still differ from their computed mean by rounding.
        rounding = 16 * torch.finfo(self._origin.dtype).eps
        negligible = rounding**2 * self._squared_norm / self._n_samples
        standard_error = math.nan
        if not math.isfinite(mse) or not math.isfinite(variance):
            variance_explained = math.nan
        elif variance > negligible:
            variance_explained = 1 - mse / variance
            standard_error = self._ratio_standard_error(mse / variance, variance)
        else:
            variance_explained = 1.0 if mse <= negligible else 0.0
        return Reconstruction(
            mse=mse,
            variance_explained=variance_explained,
            shrinkage=self._norm_ratio / self._n_nonzero if self._n_nonzero else math.nan,
            mse_standard_error=float(self._mse.standard_error),
            variance_explained_standard_error=standard_error,
        )

    def _ratio_standard_error(self, ratio: float, variance: float) -> float:
        """That of a ratio of two sums over m batches: √(m/(m−1) · Σ(e − ratio·v)²) / Σv."""
        m = self._mse.n_batches
        if m < 2:
            return math.nan
        ee, ev, vv = self._products.tolist()
        squares = max(0.0, ee - 2 * ratio * ev + ratio**2 * vv)
        return math.sqrt(squares * m / (m - 1)) / (variance * self._n_samples)


@torch.no_grad()
def reconstruction_at_k(
    sae: sae_lens.SAE[Any], activations: Float[Tensor, "samples d_in"], k: float | int
) -> Reconstruction:
    """Keep the int(k · samples) largest latents over all samples, decode them and compare.

    This is what BatchTopK does in training, with all samples as its one batch. It shows SAEs
    trained at different sparsities, or never trained, side by side at one L0. Pre-activations are
    cut off below 0 and ranked as the SAE itself would rank them: times the decoder norms where its
    config has `rescale_acts_by_decoder_norm`. Its own thresholds and k play no part. Where latents
    tie at the cut, those of earlier samples are kept.

    Args:
        sae: with a single encoder, W_enc and b_enc; for training or inference.
        activations: shape [samples, d_in], in the units the SAE was trained on.
        k: latents per sample on average, above 0, at most d_sae; may be fractional.
    Returns:
        The metrics, in the units of the activations. NaN for an SAE that diverged.
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
