"""How much of one true feature the latents of the others have taken on.

Axes: H latent, F true feature, D width of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.tensors import cos_sims

if TYPE_CHECKING:
    import sae_lens


@dataclass(frozen=True, eq=False)
class FeatureMixing:
    """What the latents of the other features hold of one feature."""

    feature: int
    """The feature that is looked for."""

    components: Float[Tensor, " others"]
    """Of each other feature's latent, in the order of the features; 0 for a clean latent."""

    own: Float[Tensor, " others"]
    """Cosine of each of these latents with its own feature; 1 for a clean latent."""

    elsewhere: float
    """The largest |component| that these latents hold of any third feature; 0 if there is none."""

    @property
    def mean(self) -> float:
        """Mean of the components, with their signs."""
        return self.components.mean().item()


@torch.no_grad()
def feature_components(
    sae: sae_lens.SAE[Any], directions: Float[Tensor, "d_in n_features"]
) -> Float[Tensor, "d_sae n_features"]:
    """What each latent's decoder row holds of each feature, latent i being that of feature i.

    Entry (h, j) is cos(h, j) − cos(h, h)·G[h, j] for j ≠ h, and cos(h, h) on the diagonal, where G
    holds the cosines between the true directions. A latent that is its feature then has exactly 0
    of all others, also where the directions are not orthogonal.

    Args:
        sae: with as many latents as there are features, in their order, as an SAE has that started
            at the true features.
        directions: the true features' directions as columns.
    Returns:
        on the CPU, float32; NaN where the SAE diverged.
    Raises:
        ValueError: an SAE of another width, or another number of latents than features.
    """
    features = directions.detach().cpu().float()
    rows = sae.W_dec.detach().cpu().float()
    if rows.shape != (features.shape[1], features.shape[0]):
        raise ValueError(
            f"the SAE has {rows.shape[0]} latents in {rows.shape[1]} dimensions and the world "
            f"{features.shape[1]} features in {features.shape[0]}: latent i is to be that of "
            "feature i, so both must agree."
        )
    cosines = cos_sims(rows.T, features)
    between = cos_sims(features, features)
    between.fill_diagonal_(0)
    return cosines - cosines.diagonal()[:, None] * between


def feature_mixing(
    sae: sae_lens.SAE[Any], directions: Float[Tensor, "d_in n_features"], feature: int = 0
) -> FeatureMixing:
    """How much of one feature the latents of all others hold.

    Args:
        sae: as for `feature_components`.
        directions: the true features' directions as columns.
        feature: which.
    Raises:
        ValueError: as `feature_components`, or no such feature.
    """
    matrix = feature_components(sae, directions)
    if not 0 <= feature < len(matrix):
        raise ValueError(f"feature is {feature}, but they are numbered 0 to {len(matrix) - 1}.")
    foreign = matrix - matrix.diag().diag()
    others = [latent for latent in range(len(matrix)) if latent != feature]
    return FeatureMixing(
        feature=feature,
        components=matrix[others, feature],
        own=matrix.diagonal()[others],
        elsewhere=foreign[others][:, others].abs().max().item() if others else 0.0,
    )


def mean_abs_cosine(directions: Float[Tensor, "d_in n_features"]) -> float:
    """Mean |cosine| over all pairs of true directions: 0 if they are orthogonal.

    Raises:
        ValueError: a single direction, which has no pairs.
    """
    n_features = directions.shape[1]
    if n_features < 2:
        raise ValueError("a single direction has no cosine with another.")
    pairs = torch.triu_indices(n_features, n_features, offset=1)
    return cos_sims(directions, directions)[pairs[0], pairs[1]].abs().mean().item()
