"""Where latents point: how alike they are, which true features they found, and what they mixed in.

Axes: H latent, F true feature, D width of the activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_but_wrong.metrics.samples import at_least_float32, unit_rows
from sparse_but_wrong.tensors import cos_sims

if TYPE_CHECKING:
    import sae_lens

_TILE = 2048


@torch.no_grad()
def decoder_similarity(sae: sae_lens.SAE[Any]) -> float:
    """c_dec: the mean |cosine| over all distinct pairs of decoder rows.

    A row of zeros has similarity 0 with every other. NaN for an SAE with a single latent, which
    has no pairs, and for one whose decoder is not finite.

    Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, decoder pairwise cosine similarity.
    """
    return _mean_abs_cosine(sae.W_dec)


@torch.no_grad()
def encoder_similarity(sae: sae_lens.SAE[Any]) -> float:
    """c_enc: as `decoder_similarity`, over pairs of encoder columns."""
    return _mean_abs_cosine(sae.W_enc.T)


def _mean_abs_cosine(vectors: Float[Tensor, "count dim"]) -> float:
    count = vectors.shape[0]
    if count < 2:
        return float("nan")
    tiles = unit_rows(vectors).split(_TILE)
    # Each pair once, a tile of cosines at a time: a whole [d_sae, d_sae] matrix is gigabytes for
    # the SAEs of language models. Tiles are added up in double precision, on the host.
    total = 0.0
    for i, rows in enumerate(tiles):
        total += (rows @ rows.T).abs_().triu_(diagonal=1).sum().item()
        for columns in tiles[i + 1 :]:
            total += (rows @ columns.T).abs_().sum().item()
    return total / (count * (count - 1) / 2)


@dataclass(frozen=True, eq=False)
class FeatureMatch:
    """A one-to-one assignment of the latents of an SAE to true features, on the CPU.

    There are min(d_sae, n_features) pairs, in the order of the features; the others on the larger
    side have no partner.
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

    An SAE with fewer latents than features can reach 1; what it misses shows in
    `mean_max_cosine`.
    """


@torch.no_grad()
def match_latents(sae: sae_lens.SAE[Any], features: Float[Tensor, "D F"]) -> FeatureMatch:
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


@torch.no_grad()
def matched_cosines(sae: sae_lens.SAE[Any], features: Float[Tensor, "D F"]) -> Float[Tensor, "H F"]:
    """The cosine of every decoder row with every true feature, rows in the order of the features.

    Rows are the latents of `match_latents`, then those without a partner. With at least as many
    latents as features, entry (i, j) is the cosine of the latent matched to feature i with feature
    j: the diagonal is how well each feature was recovered, the rest is what was mixed in.

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


@dataclass(frozen=True, eq=False)
class FeatureMixing:
    """What the latents of the other features hold of one feature."""

    feature: int

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
    sae: sae_lens.SAE[Any], directions: Float[Tensor, "D F"]
) -> Float[Tensor, "H F"]:
    """What each latent's decoder row holds of each feature, latent i being that of feature i.

    Entry (h, j) is cos(h, j) − cos(h, h)·G[h, j] for j ≠ h, and cos(h, h) on the diagonal, where G
    holds the cosines between the true directions. A latent that is its feature then has exactly 0
    of all others, also where the directions are not orthogonal.

    Args:
        sae: with as many latents as there are features, in their order.
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
    sae: sae_lens.SAE[Any], directions: Float[Tensor, "D F"], feature: int = 0
) -> FeatureMixing:
    """How much of one feature the latents of all others hold; arguments as `feature_components`.

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


def mean_abs_cosine(directions: Float[Tensor, "D F"]) -> float:
    """Mean |cosine| over all pairs of true directions: 0 if they are orthogonal.

    Raises:
        ValueError: a single direction, which has no pairs.
    """
    n_features = directions.shape[1]
    if n_features < 2:
        raise ValueError("a single direction has no cosine with another.")
    pairs = torch.triu_indices(n_features, n_features, offset=1)
    return cos_sims(directions, directions)[pairs[0], pairs[1]].abs().mean().item()
