"""The n-th decoder projection of an SAE, on the decoder as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.metrics._order_statistics import check_n
from sparse_but_wrong.metrics.samples import check_activations
from sparse_but_wrong.metrics.working_space import decoder_frame

if TYPE_CHECKING:
    import sae_lens


@torch.no_grad()
def nth_decoder_projection(
    input_acts: Float[Tensor, "*batch d_in"], sae: sae_lens.SAE[Any], n: int
) -> Float[Tensor, ""]:
    """The entry at index n·samples of all projections (x − b_dec)·W_decᵀ, sorted from the top.

    Decoder rows keep the norms they have, and the value grows with them. To compare SAEs, or to
    look at more than one n, use
    `sparse_but_wrong.metrics.projections.decoder_projection_curve`, which scales the rows to
    unit norm and gives every n for the price of one.

    Args:
        input_acts: shape [..., d_in]; every leading dimension counts as samples.
        sae: any sae_lens SAE.
        n: in [0, d_sae).
    Returns:
        a scalar on the device of the SAE; NaN for an SAE whose decoder is not finite.
    Raises:
        ValueError: an n outside [0, d_sae), activations of another width, no samples, or
            non-finite values (the message names the first).
    Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, the definition of s_n^dec.
    """
    d_sae, d_in = sae.W_dec.shape
    asked = check_n([n], d_sae)
    if input_acts.ndim == 0 or input_acts.shape[-1] != d_in:
        raise ValueError(
            f"the SAE reads activations of shape [..., {d_in}], "
            f"but input_acts has shape {list(input_acts.shape)}."
        )
    samples = input_acts.reshape(-1, d_in)
    check_activations(samples, d_in)
    frame = decoder_frame(sae, samples)
    projections = (frame.samples.to(sae.W_dec) - frame.bias) @ sae.W_dec.T
    if frame.unit is not None:
        # Rows have the norms that they have in a reconstruction, other ones for each sample.
        projections = projections * frame.unit
    if not bool(torch.isfinite(projections).all()):
        return projections.new_tensor(torch.nan)
    # Selects instead of sorting, since a single entry is asked for.
    return projections.flatten().kthvalue(projections.numel() - asked[0] * len(samples)).values


# The package has the function under the name of this module: also ask it for what is in here.
nth_decoder_projection.nth_decoder_projection = nth_decoder_projection  # pyright: ignore[reportFunctionMemberAccess]
