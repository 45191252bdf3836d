"""Standard and gated SAEs: ReLUs, and activations as a penalty, weighted by the decoder's norms.

Axes: C SAEs, B batch, D d_in, H d_sae.
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
    above,
    decoder_norm,
    mse,
    residual,
)


class Standard(Architecture):
    """The Lp norm of each sample's activations as a penalty.

    Source: Bricken et al. 2023, "Towards Monosemanticity"; weighted as in Anthropic's update of
        April 2024.
    """

    sae_classes = ("sae_lens:StandardTrainingSAE",)
    sparsity = "l1"

    @staticmethod
    def why_not(cfg: Any) -> str | None:
        """Norms that are not of the form (Σ uᵖ)^(1/p) are left to sae_lens."""
        return None if 0 < cfg.lp_norm < math.inf else f"it does not do lp_norm={cfg.lp_norm}"

    @staticmethod
    def stack_key(cfg: Any) -> tuple[object, ...]:
        return (cfg.lp_norm,)

    def forward(self, inputs: Inputs, p: Parameters) -> Forward:
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


class Gated(Architecture):
    """Two paths that share an encoder: a gate says which latents are active, a magnitude how much.

    No gradient passes the gate's jump, so the gate is trained by an L1 penalty on relu(gate) and by
    how well relu(gate) alone reconstructs the input. Unlike in the paper (Rajamanoharan et al.
    2024, arXiv:2404.16014) the decoder learns from that reconstruction, too, as in sae_lens.
    """

    sae_classes = ("sae_lens:GatedTrainingSAE",)
    sparsity = "l1"
    parameters = ("W_enc", "W_dec", "b_gate", "b_mag", "r_mag", "b_dec")

    def forward(self, inputs: Inputs, p: Parameters) -> Forward:
        x = inputs.x
        gate = self.encode(x, p, bias="b_gate")
        via_gate = gate.relu()
        # mag = exp(r_mag) · (gate − b_gate) + b_mag, with the biases taken together first
        scale = p["r_mag"].exp()
        bias = p["b_mag"] - scale * p["b_gate"]
        mag = torch.addcmul(bias.unsqueeze(1), gate, scale.unsqueeze(1))
        acts = mag.relu() * above(gate, 0.0)
        penalty = (via_gate.sum(1, keepdim=True) * decoder_norm(p)).sum((1, 2))
        losses = {
            "mse_loss": mse(residual(x, acts, p)),
            "l1_loss": inputs.sparsity.squeeze(1) / len(x) * penalty,
            "auxiliary_reconstruction_loss": mse(residual(x, via_gate, p)),
        }
        return Forward(losses, acts.detach())
