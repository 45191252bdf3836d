"""The n-th largest decoder projections, for any scaling of the decoder rows."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.metrics.samples import check_activations, decoder_frame, unit_rows

if TYPE_CHECKING:
    import sae_lens

_CHUNK_SAMPLES = 8192


def check_n(n: Sequence[int], d_sae: int) -> tuple[int, ...]:
    """The asked n as plain ints, or a ValueError that names the first one out of range."""
    asked = tuple(operator.index(one) for one in n)
    if not asked:
        raise ValueError("no n was asked for: pass at least one, or leave n out for all of them.")
    for one in asked:
        if not 0 <= one < d_sae:
            raise ValueError(
                f"n = {one} is outside [0, {d_sae}): an SAE with {d_sae} latents has a "
                f"projection s_n for n = 0 … {d_sae - 1}."
            )
    return asked


@torch.no_grad()
def projection_order_statistics(
    activations: Float[Tensor, "samples d_in"],
    directions: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    n: tuple[int, ...],
) -> Float[Tensor, " n"]:
    """Entries n·samples of all the (x − b_dec)·directionᵀ, sorted from the largest down.

    Args:
        activations: shape [samples, d_in], finite.
        directions: shape [d_sae, d_in], a decoder row per latent, scaled as the caller wants.
        b_dec: shape [d_in].
        n: each in [0, d_sae).
    Returns:
        shape [len(n)], on the CPU, float32 (float64 where the directions are float64); NaN
        throughout where the directions or the bias are not finite, as those of an SAE that
        diverged are: no order exists then.
    """
    dtype = torch.promote_types(directions.dtype, torch.float32)
    n_samples, d_sae = activations.shape[0], directions.shape[0]
    if not (torch.isfinite(directions).all() and torch.isfinite(b_dec).all()):
        return torch.full((len(n),), torch.nan, dtype=dtype)
    directions_t = directions.to(dtype).T
    b_dec = b_dec.to(dtype)

    # Z is the only thing of this size that is ever held: filled chunk by chunk, sorted in place.
    projections = torch.empty(n_samples, d_sae, dtype=dtype)
    for source, target in zip(
        activations.split(_CHUNK_SAMPLES), projections.split(_CHUNK_SAMPLES), strict=True
    ):
        # The bias is taken off before the product, not after: where it is much larger than the
        # spread of the samples (language models), the difference of two products loses digits.
        centred = source.to(directions.device, dtype) - b_dec
        target.copy_(centred @ directions_t)

    # One sort of everything, because numpy's is vectorised: 0.015 s for 100,000 × 50 on one
    # thread, whatever the values, against 0.13 s for numpy.partition at all 50 places and 0.48 s
    # for torch.sort. Partitioning at a single place takes 0.003 s, but 0.16 s on values with many
    # ties, which the right SAE of a toy world has. (Without AVX2: 0.34 s against 0.12 s.)
    flat = projections.flatten()
    flat.numpy().sort()
    last = flat.shape[0] - 1
    return flat[torch.tensor([last - one * n_samples for one in n])]


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
