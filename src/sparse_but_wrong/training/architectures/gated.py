"""Gated SAEs (Rajamanoharan et al. 2024, arXiv:2404.16014).

Two paths share one encoder: the gate says which latents are active, the magnitude how much. No
gradient passes the gate's jump, so the gate is trained by an L1 penalty on relu(gate), weighted by
the decoder's norms, and by how well relu(gate) alone reconstructs the input. Unlike in the paper
the decoder learns from that reconstruction, too, as in sae_lens.

Axes: C SAEs, B batch, D d_in, H d_sae.
"""

from __future__ import annotations

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


class Gated(Architecture):
    """Coefficients may differ between the SAEs."""

    sae_class = "GatedTrainingSAE"
    sparsity = "l1"

    @staticmethod
    def parameter_shapes(d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
        """Each path has a bias in place of `b_enc`, and the magnitude a scale."""
        return {
            "W_enc": (d_in, d_sae),
            "W_dec": (d_sae, d_in),
            "b_gate": (d_sae,),
            "b_mag": (d_sae,),
            "r_mag": (d_sae,),
            "b_dec": (d_in,),
        }

    def forward(self, inputs: Inputs, p: Parameters) -> Forward:
        """The losses on one batch."""
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
