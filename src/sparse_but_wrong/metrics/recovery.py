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
def pairwise_similarity(vectors: Float[Tensor, "count dim"]) -> float:
    """The mean |cosine| over all pairs: c_dec of decoder rows, c_enc of encoder columns.

    A vector of zeros has similarity 0 with every other. NaN for a single one, which has no pairs,
    and where one is not finite.

    Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, decoder pairwise cosine similarity.
    """
    count = len(vectors)
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
    """A one-to-one assignment of min(d_sae, n_features) latents to true features, on the CPU."""

    latents: Int[Tensor, " pairs"]
    features: Int[Tensor, " pairs"]
    """Ascending."""
    cosines: Float[Tensor, " pairs"]
    """Of the decoder row and the feature direction of each pair."""
    mean_max_cosine: float
    """The mean over *all* features of the best cosine with any latent.

    Two features may share their best latent, and a feature without one pulls the mean down."""
    mcc: float
    """Mean correlation coefficient: the mean cosine over the pairs.

    An SAE with fewer latents than features can reach 1; `mean_max_cosine` shows what it misses."""
    uniqueness: float
    """Different features among those that latents are nearest to, as a share of the latents.

    Nearest by |cosine|, as `sae_lens.synthetic` defines it."""


@torch.no_grad()
def match_latents(sae: sae_lens.SAE[Any], features: Float[Tensor, "D F"]) -> FeatureMatch:
    """Assign latents to true features one-to-one, so that the sum of cosines is largest.

    Cosines keep their sign: neither a true feature nor a latent fires negative, so a decoder row
    that points the opposite way has not found the feature. sae_lens' `mean_correlation_coefficient`
    takes |cosine|, and so is never below this MCC.

    A decoder row or feature of zeros has cosine 0 with everything. A latent whose decoder row
    is not finite is paired last; its cosine, and every mean that holds it, is NaN.

    Args:
        features: a direction per column, of any norm; for a toy model `toy_model.embed.weight`.
    Raises:
        ValueError: directions of another width than the decoder's, none at all, or non-finite.
    Source: for MCC, Song et al. 2025, arXiv:2505.20254.
    """
    from scipy.optimize import linear_sum_assignment

    from sparse_but_wrong.sae_lens_compat import feature_uniqueness

    d_in = sae.W_dec.shape[1]
    if features.ndim != 2 or features.shape[0] != d_in or features.shape[1] == 0:
        raise ValueError(
            f"features hold a direction of length {d_in} in each column, so their shape is "
            f"[{d_in}, n_features], at least one, but it is {list(features.shape)}. "
            "Transpose them if the directions are rows."
        )
    is_finite = torch.isfinite(features).all(dim=0)
    if not is_finite.all():
        raise ValueError(f"the direction of feature {int(is_finite.int().argmin())} is not finite.")

    rows = at_least_float32(sae.W_dec)
    cosines = cos_sims(features.to(rows), rows.T).clamp_(-1, 1).cpu()
    # The solver refuses NaN. Below any cosine, those of a broken latent are assigned last.
    feature_index, latent_index = linear_sum_assignment(
        cosines.nan_to_num(nan=-2.0).numpy(), maximize=True
    )
    matched = cosines[feature_index, latent_index]
    unique = feature_uniqueness(unit_rows(rows), unit_rows(features.to(rows).T))
    return FeatureMatch(
        latents=torch.from_numpy(latent_index),
        features=torch.from_numpy(feature_index),
        cosines=matched,
        mean_max_cosine=cosines.max(dim=1).values.mean().item(),
        mcc=matched.mean().item(),
        uniqueness=unique if torch.isfinite(rows).all() else float("nan"),
    )


@torch.no_grad()
def matched_cosines(sae: sae_lens.SAE[Any], features: Float[Tensor, "D F"]) -> Float[Tensor, "H F"]:
    """The cosine of every decoder row with every true feature, rows in the order of the features.

    Rows are the latents of `match_latents`, which refuses what it cannot match, then those without
    a partner. With at least as many latents as features, the diagonal is how well each feature was
    recovered, the rest is what was mixed in. On the CPU; NaN where a latent diverged.
    """
    matched = match_latents(sae, features).latents.tolist()
    others = [latent for latent in range(len(sae.W_dec)) if latent not in set(matched)]
    rows = at_least_float32(sae.W_dec)[matched + others]
    return cos_sims(rows.T, features.to(rows)).clamp_(-1, 1).cpu()


@torch.no_grad()
def feature_components(
    sae: sae_lens.SAE[Any], directions: Float[Tensor, "D F"]
) -> Float[Tensor, "H F"]:
    """What each latent's decoder row holds of each feature, latent i being that of feature i.

    Entry (h, j) is cos(h, j) − cos(h, h)·G[h, j] for j ≠ h, and cos(h, h) on the diagonal, where G
    holds the cosines between the true directions, which are columns. A latent that is its feature
    then has exactly 0 of all others, also where the directions are not orthogonal. On the CPU,
    float32; NaN where the SAE diverged.

    Raises:
        ValueError: an SAE of another width, or another number of latents than features.
    """
    features = directions.detach().cpu().float()
    rows = sae.W_dec.detach().cpu().float()
    if rows.shape != features.T.shape:
        raise ValueError(
            f"the SAE has {rows.shape[0]} latents in {rows.shape[1]} dimensions and the world "
            f"{features.shape[1]} features in {features.shape[0]}: latent i is to be that of "
            "feature i, so both must agree."
        )
    cosines = cos_sims(rows.T, features)
    between = cos_sims(features, features).fill_diagonal_(0)
    return cosines - cosines.diagonal()[:, None] * between


def mean_abs_cosine(directions: Float[Tensor, "D F"]) -> float:
    """Mean |cosine| over all pairs of at least two true directions: 0 if they are orthogonal."""
    n_features = directions.shape[1]
    if n_features < 2:
        raise ValueError("a single direction has no cosine with another.")
    first, second = torch.triu_indices(n_features, n_features, offset=1)
    return cos_sims(directions, directions)[first, second].abs().mean().item()
