"""Every measurement of one SAE together, and as one row of a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.metrics._one_pass import sparsity_and_reconstruction
from sparse_but_wrong.metrics._order_statistics import (
    DecoderProjectionCurve,
    decoder_projection_curve,
)
from sparse_but_wrong.metrics.reconstruction import Reconstruction
from sparse_but_wrong.metrics.recovery import (
    FeatureMatch,
    decoder_similarity,
    encoder_similarity,
    match_latents,
)
from sparse_but_wrong.metrics.sparsity import Sparsity

if TYPE_CHECKING:
    import sae_lens


@dataclass(frozen=True, eq=False)
class SAEScore:
    """All measurements of one SAE on one set of samples."""

    sparsity: Sparsity
    reconstruction: Reconstruction
    c_dec: float
    """Mean |cosine| between decoder rows."""
    c_enc: float
    """Mean |cosine| between encoder columns."""
    match: FeatureMatch | None
    """Latents assigned to true features; None where those were not given."""
    projections: DecoderProjectionCurve
    """s_n^dec for every n."""

    def as_row(self) -> dict[str, float | int]:
        """The measurements as columns of a table, in the order of its columns.

        `l0`, `dead_latents`, `shrinkage`, `mse`, `variance_explained`, `c_dec`, `c_enc`,
        `mean_max_cosine` and `mcc` (NaN where the true features were not given), and
        `s_0` … `s_{d_sae−1}`.
        """
        row: dict[str, float | int] = {
            "l0": self.sparsity.l0,
            "dead_latents": self.sparsity.dead_latents,
            "shrinkage": self.reconstruction.shrinkage,
            "mse": self.reconstruction.mse,
            "variance_explained": self.reconstruction.variance_explained,
            "c_dec": self.c_dec,
            "c_enc": self.c_enc,
            "mean_max_cosine": math.nan if self.match is None else self.match.mean_max_cosine,
            "mcc": math.nan if self.match is None else self.match.mcc,
        }
        values = self.projections.values.tolist()
        row.update({f"s_{n}": s for n, s in zip(self.projections.n, values, strict=True)})
        return row


@torch.no_grad()
def score_sae(
    sae: sae_lens.SAE[Any],
    activations: Float[Tensor, "samples d_in"],
    features: Float[Tensor, "d_in n_features"] | None = None,
) -> SAEScore:
    """Measure an SAE: sparsity, reconstruction, similarity, recovery and decoder projections.

    SAEs that are compared with each other have to be scored on the same activations. The SAE is
    left as it is, and samples are encoded once, in chunks.

    A training BatchTopK SAE picks its k per batch, so that its L0 is k by construction: score
    the thresholded (JumpReLU) export instead. An SAE that diverged is scored too, with NaN.

    Args:
        sae: any sae_lens SAE.
        activations: shape [samples, d_in], in the units the SAE was trained on.
        features: shape [d_in, n_features], the true directions as columns, where they are known;
            for a toy model `toy_model.embed.weight`.
    Raises:
        ValueError: activations of another width, no samples, or non-finite values (the message
            names the first); features of another width, none at all, or non-finite.
    """
    # Cheap checks of the features come before the expensive pass over the samples.
    match = None if features is None else match_latents(sae, features)
    measured_sparsity, measured_reconstruction = sparsity_and_reconstruction(sae, activations)
    return SAEScore(
        sparsity=measured_sparsity,
        reconstruction=measured_reconstruction,
        c_dec=decoder_similarity(sae),
        c_enc=encoder_similarity(sae),
        match=match,
        projections=decoder_projection_curve(sae, activations),
    )
