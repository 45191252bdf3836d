"""The n-th decoder projection s_n^dec of an SAE, for every n at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_but_wrong.metrics._order_statistics import check_n, projection_order_statistics
from sparse_but_wrong.metrics.samples import check_activations, unit_rows
from sparse_but_wrong.metrics.working_space import decoder_frame

if TYPE_CHECKING:
    import sae_lens


@dataclass(frozen=True, eq=False)
class DecoderProjectionCurve:
    """s_n^dec of one SAE over n, with unit-norm decoder rows."""

    n: tuple[int, ...]
    """Which n were measured, in the order asked."""
    values: Float[Tensor, " n"]
    """s_n^dec for each, in the units of the activations; on the CPU."""
    n_samples: int
    """How many samples the projections were taken over."""
    d_sae: int
    """How many latents the SAE has."""

    def at(self, n: int) -> float:
        """s_n^dec for one n.

        Raises:
            ValueError: an n that was not measured.
        """
        if n not in self.n:
            raise ValueError(
                f"this curve holds {len(self.n)} of the {self.d_sae} values of n, and n = {n} "
                "is not among them: measure it with decoder_projection_curve(..., n=...)."
            )
        return float(self.values[self.n.index(n)])


@torch.no_grad()
def decoder_projection_curve(
    sae: sae_lens.SAE[Any],
    activations: Float[Tensor, "samples d_in"],
    n: Sequence[int] | None = None,
) -> DecoderProjectionCurve:
    """The n-th largest decoder projections of an SAE (s_n^dec), for every n asked at once.

    With Z = (x − b_dec)·W_decᵀ over all samples and latents, sorted from the largest value down,
    s_n^dec is the entry at index n·samples. Decoder rows are scaled to unit norm first: the
    projections grow with the norms, which say nothing about the directions learned, so SAEs can
    only be compared when all follow this convention. The SAE itself is left as it is. A decoder
    row of zeros, which has no direction, projects everything to 0. For an SAE that normalises each
    sample itself, b_dec is taken back to the units of the sample first (see `working_space`).

    An SAE that diverged (weights that are not finite) has NaN for every n.

    Args:
        sae: any sae_lens SAE.
        activations: shape [samples, d_in], in the units the SAE was trained on.
        n: which n to report; all of 0 … d_sae−1 if left out.
    Raises:
        ValueError: an n outside [0, d_sae), activations of another width, no samples, or
            non-finite values (the message names the first); samples that the SAE cannot normalise.
    Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, the definition of s_n^dec.
    """
    d_sae, d_in = sae.W_dec.shape
    asked = check_n(range(d_sae) if n is None else n, d_sae)
    check_activations(activations, d_in)
    directions = unit_rows(sae.W_dec)
    frame = decoder_frame(sae, activations)
    return DecoderProjectionCurve(
        n=asked,
        values=projection_order_statistics(frame.samples, directions, frame.bias, asked),
        n_samples=activations.shape[0],
        d_sae=d_sae,
    )


class SortedProjections:
    """All projections of samples on directions, kept to be sorted.

    Args:
        directions: shape [H, D], finite, at least float32.
        n_samples: how many there will be.
    """

    relative_error = 0.0

    def __init__(self, directions: Float[Tensor, "H D"], n_samples: int) -> None:
        self._directions = directions
        # The only thing of this size that is ever held: filled chunk by chunk, sorted in place.
        self._values = torch.empty(n_samples, len(directions), dtype=directions.dtype)
        self._start = self._stop = 0
        self._sorted: Tensor | None = None

    def add(self, samples: Float[Tensor, "B D"], bias: Float[Tensor, " D"]) -> None:
        """Add the (x − bias)·directionᵀ of some samples."""
        # The bias is taken off before the product, not after: where it is much larger than the
        # spread of the samples (language models), the difference of two products loses digits.
        device, dtype = self._directions.device, self._directions.dtype
        centred = samples.to(device, dtype) - bias.to(dtype)
        start, self._stop = self._stop, self._stop + len(samples)
        self._values[start : self._stop] = centred @ self._directions.T

    def end_batch(self) -> Float[Tensor, " H"]:
        """s_n for every n, of what was added since the last call."""
        batch = self._values[self._start : self._stop]
        self._start = self._stop
        ranks = torch.arange(len(self._directions)) * len(batch)
        return _sorted_in_place(batch.flatten().clone())[batch.numel() - 1 - ranks]

    def entries(self, ranks: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The entries at some ranks of all, sorted from the largest down."""
        flat = self._all_sorted()
        return flat[len(flat) - 1 - ranks]

    def histogram(self, edges: Float[Tensor, " edges"]) -> Int[Tensor, " bars"]:
        """How many are between the edges; the outermost bars also hold what lies beyond."""
        flat = self._all_sorted()
        below = torch.searchsorted(flat, edges[1:-1].to(flat.dtype))
        ends = torch.tensor([0]), torch.tensor([len(flat)])
        return torch.cat([ends[0], below, ends[1]]).diff()

    def _all_sorted(self) -> Tensor:
        if self._sorted is None:
            self._sorted = _sorted_in_place(self._values.flatten())
        return self._sorted


def _sorted_in_place(flat: Float[Tensor, " count"]) -> Float[Tensor, " count"]:
    # numpy's sort is vectorised: 0.015 s for 100,000 × 50 on one thread, whatever the values,
    # against 0.13 s for numpy.partition at all 50 places and 0.48 s for torch.sort. Partitioning at
    # a single place takes 0.003 s, but 0.16 s on values with many ties, which the right SAE of a
    # toy world has. (Without AVX2: 0.34 s against 0.12 s.)
    flat.numpy().sort()
    return flat
