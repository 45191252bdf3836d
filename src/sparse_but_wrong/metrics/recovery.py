"""Which true features an SAE recovered, where they are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_but_wrong.metrics.samples import at_least_float32
from sparse_but_wrong.tensors import cos_sims

if TYPE_CHECKING:
    import sae_lens


@dataclass(frozen=True, eq=False)
class FeatureMatch:
    """A one-to-one assignment of the latents of an SAE to true features, on the CPU.

    There are min(d_sae, n_features) pairs, in the order of the features: what is left over on
    the larger side has no partner.
    """

    latents: Int[Tensor, " pairs"]
    """The latent of each pair."""
    features: Int[Tensor, " pairs"]
    """The feature of each pair, ascending."""
    cosines: Float[Tensor, " pairs"]
    """The cosine between the decoder row and the feature direction of each pair."""
    mean_max_cosine: float
    """The mean over *all* features of the best cosine with any latent.

    Two features may share their best latent, and a feature that no latent resembles pulls the
    mean down, also where the SAE has fewer latents than there are features.
    """
    mcc: float
    """Mean correlation coefficient: the mean cosine over the pairs.

    Divided by the number of pairs, as is usual for MCC. An SAE with fewer latents than features
    can therefore reach 1; what it misses shows in `mean_max_cosine`.
    """


@torch.no_grad()
def match_latents(
    sae: sae_lens.SAE[Any], features: Float[Tensor, "d_in n_features"]
) -> FeatureMatch:
    """Assign latents to true features one-to-one, so that the sum of cosines is largest.

    Cosines keep their sign. MCC is often stated with absolute values, because a component found
    by a linear method has no sign of its own; a true feature never fires negative and neither
    does a latent, so a decoder row that points the opposite way has not found the feature.

    A decoder row or feature of zeros has cosine 0 with everything. A latent whose decoder row
    is not finite is paired last; its cosine, and every mean that holds it, is NaN.

    Args:
        sae: any sae_lens SAE.
        features: shape [d_in, n_features], a direction per column, of any norm; for a toy model
            `toy_model.embed.weight`.
    Raises:
        ValueError: directions of another width than the decoder's, none at all, or non-finite.
    Source: for MCC, Song et al. 2025, arXiv:2505.20254.
    """
    from scipy.optimize import linear_sum_assignment

    d_in = sae.W_dec.shape[1]
    if features.ndim != 2 or features.shape[0] != d_in:
        raise ValueError(
            f"features hold a direction of length {d_in} in each column, so their shape is "
            f"[{d_in}, n_features], but it is {list(features.shape)}. "
            "Transpose them if the directions are rows."
        )
    if features.shape[1] == 0:
        raise ValueError("features hold no directions: pass at least one column.")
    if not torch.isfinite(features).all():
        column = int((~torch.isfinite(features)).any(dim=0).nonzero()[0])
        raise ValueError(f"the direction of feature {column} is not finite.")

    rows = at_least_float32(sae.W_dec)
    cosines = cos_sims(features.to(rows), rows.T).clamp_(-1, 1).cpu()
    # The solver refuses NaN. Below any cosine, those of a broken latent are assigned last.
    feature_index, latent_index = linear_sum_assignment(
        cosines.nan_to_num(nan=-2.0).numpy(), maximize=True
    )
    matched = cosines[feature_index, latent_index]
    return FeatureMatch(
        latents=torch.from_numpy(latent_index),
        features=torch.from_numpy(feature_index),
        cosines=matched,
        mean_max_cosine=cosines.max(dim=1).values.mean().item(),
        mcc=matched.mean().item(),
    )
