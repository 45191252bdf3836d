"""How well an SAE gives back its input. Not a guide to the right L0: see the docstring below."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.metrics.moments import BatchMoments
from sparse_but_wrong.metrics.samples import (
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
def reconstruction(
    sae: sae_lens.SAE[Any], activations: Float[Tensor, "samples d_in"]
) -> Reconstruction:
    """Encode and decode the samples and compare.

    At a low L0 a wrong SAE reconstructs *better* than the true features held to the same L0, by
    mixing them: these figures say whether training went well, never which L0 is right.

    A training BatchTopK SAE picks its k per batch, here per chunk of samples: score the
    thresholded (JumpReLU) export instead. An SAE that diverged has NaN figures.

    Args:
        sae: any sae_lens SAE (not a transcoder).
        activations: shape [samples, d_in], in the units the SAE was trained on.
    Raises:
        ValueError: activations of another width, no samples, or non-finite values (the message
            names the first); an SAE whose output is not of the shape of its input.
    Source: for the warning, Chanin & Garriga-Alonso 2025, arXiv:2508.16560.
    """
    check_activations(activations, sae.cfg.d_in)
    totals = ReconstructionTotals()
    for chunk in chunks(activations, sae):
        totals.add(chunk, sae.decode(sae.encode(chunk)))
    return totals.result()
