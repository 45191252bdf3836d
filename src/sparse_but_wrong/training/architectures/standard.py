"""The standard SAE: ReLU, and the Lp norm of each sample's activations as a penalty.

Activations are weighted by the decoder's norms (Bricken et al. 2023, "Towards Monosemanticity",
weighted as in Anthropic's update of April 2024). Axes: C SAEs, B batch, D d_in, H d_sae.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from sparse_but_wrong.training.architectures.base import (
    Architecture,
    Forward,
    Inputs,
    Parameters,
    decoder_norm,
    mse,
    residual,
)


class Standard(Architecture):
    """Coefficients may differ between the SAEs."""

    sae_class = "StandardTrainingSAE"
    sparsity = "l1"

    @staticmethod
    def why_not(cfg: Any) -> str | None:
        """Norms that are not of the form (Σ uᵖ)^(1/p) are left to sae_lens."""
        return None if 0 < cfg.lp_norm < math.inf else f"it does not do lp_norm={cfg.lp_norm}"

    @staticmethod
    def stack_key(cfg: Any) -> tuple[object, ...]:
        """What SAEs must share to be stepped as one, beyond shapes."""
        return (cfg.lp_norm,)

    def forward(self, inputs: Inputs, p: Parameters) -> Forward:
        """The losses on one batch."""
        x = inputs.x
        acts = self.encode(x, p).relu()
        if self.cfg.lp_norm == 1:  # the sum over the batch first: less work
            norm = (acts.sum(1, keepdim=True) * decoder_norm(p)).sum((1, 2))
        else:
            weighted = acts * decoder_norm(p)
            norm = torch.linalg.vector_norm(weighted, float(self.cfg.lp_norm), dim=2).sum(1)
        losses = {
            "mse_loss": mse(residual(x, acts, p)),
            "l1_loss": inputs.sparsity.squeeze(1) / len(x) * norm,
        }
        return Forward(losses, acts.detach())
