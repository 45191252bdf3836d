"""Which true features each latent points along, latents put in the order of the features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.metrics.recovery import match_latents
from sparse_but_wrong.metrics.samples import at_least_float32
from sparse_but_wrong.tensors import cos_sims

if TYPE_CHECKING:
    import sae_lens


@torch.no_grad()
def matched_cosines(
    sae: sae_lens.SAE[Any], features: Float[Tensor, "d_in n_features"]
) -> Float[Tensor, "d_sae n_features"]:
    """The cosine of every decoder row with every true feature.

    Rows are the latents matched one to one to features (`match_latents`), in the order of their
    features, then the latents without a partner as they were. With at least as many latents as
    features, entry (i, j) is thus the cosine of the latent matched to feature i with feature j: the
    diagonal is how well each feature was recovered, the rest is what was mixed in.

    Args:
        sae: any sae_lens SAE.
        features: shape [d_in, n_features], a direction per column.
    Returns:
        shape [d_sae, n_features], on the CPU; NaN in the rows of latents that diverged.
    Raises:
        ValueError: as `match_latents`.
    """
    match = match_latents(sae, features)
    is_matched = torch.zeros(sae.W_dec.shape[0], dtype=torch.bool)
    is_matched[match.latents] = True
    order = torch.cat([match.latents, (~is_matched).nonzero().squeeze(1)])
    rows = at_least_float32(sae.W_dec)[order.to(sae.W_dec.device)]
    return cos_sims(rows.T, features.to(rows)).clamp_(-1, 1).cpu()
