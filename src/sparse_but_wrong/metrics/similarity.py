"""How alike the latents of an SAE are to each other: no samples and no free parameter needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.metrics.samples import unit_rows

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
    """The mean |cosine| over all distinct pairs of encoder columns.

    A column of zeros has similarity 0 with every other. NaN for an SAE with a single latent,
    which has no pairs, and for one whose encoder is not finite.
    """
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
