"""Gated SAEs: forward, losses and gradient of a stack, by hand.

Axes: C SAEs trained together, B batch, D d_in, H d_sae.

Two paths share one encoder (Rajamanoharan et al. 2024, arXiv:2404.16014). The gate says which
latents are active, the magnitude how much; since no gradient passes the gate's jump, the gate is
trained by an L1 penalty on relu(gate), weighted by the decoder's norms, and by how well relu(gate)
alone reconstructs the input. Unlike in the paper the decoder learns from that reconstruction, too.
Written out, with `z = (x − b_dec) W_enc`, `n = ‖W_dec‖` per latent and all sums over the batch:

    gate = z + b_gate                  via_gate = relu(gate)          a = via_gate W_dec + b_dec − x
    mag  = z · exp(r_mag) + b_mag      acts = 1[gate > 0] · relu(mag) e = acts W_dec + b_dec − x

    ∂L/∂mag    = 1[acts > 0] · 2/B · e W_decᵀ
    ∂L/∂gate   = 1[gate > 0] · (2/B · a W_decᵀ + λ/B · n)
    ∂L/∂z      = ∂L/∂gate + exp(r_mag) · ∂L/∂mag
    ∂L/∂r_mag  = Σ (mag − b_mag) · ∂L/∂mag
    ∂L/∂W_dec  = Σ acts · 2/B · e + Σ via_gate · 2/B · a + λ/B · Σ via_gate · W_dec / n

`b_dec` is folded into the gate's bias, so that all SAEs read the same x, and the magnitude is read
off the gate: `mag = exp(r_mag) · gate + b_mag − exp(r_mag) · b_gate`. Both paths go through the
decoder as one batch of twice the size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_but_wrong.training import products
from sparse_but_wrong.training.architectures.architecture import (
    Architecture,
    Buffers,
    Workspace,
)
from sparse_but_wrong.training.stack import ParameterViews

if TYPE_CHECKING:
    import sae_lens


class Gated(Architecture):
    """The step of a stack of gated SAEs that share shapes; their coefficients may differ."""

    sae_class = "GatedTrainingSAE"
    knob = "l1"

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

    @staticmethod
    def stack_key(cfg: sae_lens.GatedTrainingSAEConfig) -> tuple[object, ...]:  # noqa: ARG004
        """What SAEs must have in common to be stepped as one: nothing beyond their shapes."""
        return ()

    @staticmethod
    def bytes_per_sae(batch_size: int, d_in: int, d_sae: int) -> int:
        """Memory that one SAE's buffers take in a step."""
        return 4 * batch_size * (6 * d_sae + 2 * d_in)

    def workspace(self, batch_size: int) -> GatedWorkspace:
        """The buffers of one step."""
        return GatedWorkspace(self.n_saes, batch_size, self.d_in, self.d_sae, self.device)

    def step(
        self,
        x: Float[Tensor, "B D"],
        params: ParameterViews,
        buffers: Buffers,  # noqa: ARG002  (it has none)
        grads: ParameterViews,
        knob: Float[Tensor, "C 1"],
        dead: Bool[Tensor, "C H"] | None,  # noqa: ARG002
        ws: GatedWorkspace,
    ) -> Float[Tensor, "C H"]:
        """Forward and backward on one batch."""
        self._forward(x, params, ws)
        return self._backward(x, params, grads, knob, ws)

    def _forward(self, x: Float[Tensor, "B D"], params: ParameterViews, ws: GatedWorkspace) -> None:
        W_dec, scratch = params["W_dec"], ws.scratch
        gate_bias = self.encoder_bias(params, "b_gate")
        gate = products.affine(x, params["W_enc"], gate_bias, out=ws.gate_buffer)
        torch.clamp_min(gate, 0.0, out=ws.via_gate)
        torch.gt(gate, 0, out=scratch)

        torch.exp(params["r_mag"], out=ws.mag_scale.squeeze(1))
        mag_bias = params["b_mag"].unsqueeze(1) - ws.mag_scale * params["b_gate"].unsqueeze(1)
        torch.addcmul(mag_bias, gate, ws.mag_scale, out=ws.acts)
        ws.acts.relu_().mul_(scratch)

        xx = torch.cat([x, x])
        ws.errors = products.affine_minus(ws.both, W_dec, params["b_dec"], xx, out=ws.error_buffer)
        torch.linalg.vector_norm(W_dec, dim=2, out=ws.dec_norm)

    def _backward(
        self,
        x: Float[Tensor, "B D"],
        params: ParameterViews,
        grads: ParameterViews,
        coefficient: Float[Tensor, "C 1"],
        ws: GatedWorkspace,
    ) -> Float[Tensor, "C H"]:
        W_dec, scratch = params["W_dec"], ws.scratch
        half_coefficient = coefficient / 2

        # ∂L/∂mag and ∂L/∂gate; from here on everything is B/2 times what it is called
        both = products.times_transposed(ws.errors, W_dec, out=ws.grad_buffer)
        mag_grad, gate_grad = both.split(ws.batch_size, 1)
        torch.gt(ws.acts, 0, out=scratch)
        fired = scratch.sum(1)
        mag_grad.mul_(scratch)
        gate_grad.add_((half_coefficient * ws.dec_norm).unsqueeze(1))
        torch.gt(ws.via_gate, 0, out=scratch)
        gate_grad.mul_(scratch)

        # the magnitude's own parameters; where it has a gradient, acts is mag
        torch.sum(mag_grad, 1, out=grads["b_mag"])
        torch.mul(mag_grad, ws.acts, out=scratch)
        torch.sum(scratch, 1, out=grads["r_mag"])
        grads["r_mag"].sub_(params["b_mag"] * grads["b_mag"])

        # the gate's, and the encoder that both share
        torch.sum(gate_grad, 1, out=grads["b_gate"])
        z_grad = gate_grad.addcmul_(mag_grad, ws.mag_scale)
        products.outer_shared(x, z_grad, out=grads["W_enc"])

        # the decoder
        products.outer(ws.both, ws.errors, out=grads["W_dec"])
        torch.sum(ws.errors, 1, out=grads["b_dec"])
        self.unfold_encoder_bias(params, grads, z_grad.sum(1))
        # A zero row has no direction to move along; PyTorch's norm gives it gradient 0 too.
        norm_grad = half_coefficient * ws.via_gate.sum(1)
        per_norm = norm_grad / ws.dec_norm.clamp_min(1e-12)
        grads["W_dec"].addcmul_(W_dec, per_norm.unsqueeze(2))
        return fired

    def losses(
        self,
        x: Float[Tensor, "B D"],  # noqa: ARG002
        params: ParameterViews,  # noqa: ARG002
        knob: Float[Tensor, "C 1"],
        dead: Bool[Tensor, "C H"] | None,  # noqa: ARG002
        ws: GatedWorkspace,
    ) -> dict[str, Float[Tensor, " C"]]:
        """The losses of the forward pass that `ws` holds, by sae_lens' names."""
        error, error_via_gate = ws.errors.split(ws.batch_size, 1)
        weighted = ws.via_gate.sum(1) * ws.dec_norm
        return {
            "mse_loss": error.square().sum((1, 2)) / ws.batch_size,
            "l1_loss": knob.squeeze(1) / ws.batch_size * weighted.sum(1),
            "auxiliary_reconstruction_loss": error_via_gate.square().sum((1, 2)) / ws.batch_size,
        }


class GatedWorkspace(Workspace):
    """Buffers of one step of C SAEs on B samples."""

    def __init__(self, c: int, b: int, d: int, h: int, device: torch.device) -> None:
        super().__init__(c, b, device)
        self.gate_buffer = self.buffer(h)
        self.scratch = self.buffer(h)
        # Of the magnitude path, and below it of the gate's.
        self.both = self.buffer(h, rows=2 * b)
        self.error_buffer = self.buffer(d, rows=2 * b)
        self.grad_buffer = self.buffer(h, rows=2 * b)
        self.acts, self.via_gate = self.both.split(b, 1)
        self.dec_norm = torch.empty(c, h, dtype=torch.float32, device=device)
        self.mag_scale = self.buffer(h, rows=1)
        # Of the last forward pass; a product may have made its result elsewhere.
        self.errors = self.error_buffer
