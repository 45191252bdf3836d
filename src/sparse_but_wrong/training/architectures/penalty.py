"""Architectures with a penalty, whose coefficient sets their sparsity: standard, gated, JumpReLU.

Coefficients may differ between the SAEs of a stack, and the losses and estimators are sae_lens'.
Axes: C SAEs stepped together, B batch, D d_in, H d_sae.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_but_wrong.training.architectures.base import (
    Architecture,
    Compiled,
    Forward,
    Inputs,
    Parameters,
    above,
    decoder_norm,
    mse,
    residual,
)

_MODES = ("step", "tanh", "quadratic")  # in the order of kernels.cpp


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


class JumpReLU(Architecture):
    """JumpReLU (Rajamanoharan et al. 2024, arXiv:2407.14435).

    No gradient passes the jump at the threshold θ; a rectangle of width `jumprelu_bandwidth` stands
    in. With gate = 1[|pre − θ| < bandwidth / 2], and the gradients of `acts` and of the step
    1[pre > θ]:

        q         = gate · (θ · ∂L/∂acts + ∂L/∂step) / bandwidth
        ∂L/∂θ     = −Σ q
        ∂L/∂pre   = 1[pre > θ] · ∂L/∂acts  (+ q with jumprelu_ste_to_input)

    Bandwidths, tanh scales and target L0s may differ between the SAEs, too.
    """

    sae_classes = ("sae_lens:JumpReLUTrainingSAE",)
    sparsity = "l0"
    parameters = (*Architecture.parameters, "threshold")
    policy = 0

    @staticmethod
    def coefficient_unit(variance: Tensor, l0: Tensor) -> Tensor:
        """As the base class; the penalty is one of each latent that is active."""
        return variance / l0

    @staticmethod
    def stack_key(cfg: Any) -> tuple[object, ...]:
        has_pre_act_loss = cfg.pre_act_loss_coefficient is not None
        return cfg.jumprelu_sparsity_loss_mode, cfg.jumprelu_ste_to_input, has_pre_act_loss

    @classmethod
    def compiled(cls, cfg: Any) -> Compiled:
        has_pre_act_loss = cfg.pre_act_loss_coefficient is not None
        options = {
            "policy": cls.policy,
            "mode": _MODES.index(cfg.jumprelu_sparsity_loss_mode),
            "ste_to_input": cfg.jumprelu_ste_to_input,
            "has_pre_act_loss": has_pre_act_loss,
            "bandwidth": cfg.jumprelu_bandwidth,
            "tanh_scale": cfg.jumprelu_tanh_scale,
            "target_l0": cfg.target_l0 or 1.0,
            "pre_act_coefficient": cfg.pre_act_loss_coefficient or 0.0,
        }
        losses = "mse_loss", "l0_loss", *["pre_act_loss"] * has_pre_act_loss
        return Compiled(options, losses, [cfg.d_sae])

    def __init__(self, cfgs: Sequence[Any], device: torch.device) -> None:
        super().__init__(cfgs, device)
        self.uses_dead_latents = self.cfg.pre_act_loss_coefficient is not None
        self.bandwidth = self.per_sae("jumprelu_bandwidth")
        self.tanh_scale = self.per_sae("jumprelu_tanh_scale")
        self.target_l0 = self.per_sae("target_l0", missing=1.0).view(-1, 1)
        self.pre_act_coefficient = self.per_sae("pre_act_loss_coefficient")

    def forward(self, inputs: Inputs, p: Parameters) -> Forward:
        x = inputs.x
        p["threshold"].detach().clamp_(min=0.0)  # as sae_lens does
        threshold = p["threshold"].unsqueeze(1)
        pre = self.encode(x, p)
        ste = (self.bandwidth, self.cfg.jumprelu_ste_to_input)
        acts = _Jump.apply(pre, threshold, *ste, False)
        if self.cfg.jumprelu_sparsity_loss_mode == "tanh":
            # tanh(u) = 2σ(2u) − 1, and the sigmoid is a sixth of the work.
            twice = 2 * self.tanh_scale * decoder_norm(p)
            l0 = 2 * torch.sigmoid(acts * twice).sub(0.5).sum((1, 2))
        else:
            l0 = _Jump.apply(pre, threshold, *ste, True).sum(2)  # type: ignore[union-attr]
            if self.cfg.jumprelu_sparsity_loss_mode == "quadratic":
                l0 = 2 / self.target_l0 * (l0 - self.target_l0).square()
            l0 = l0.sum(1)
        losses = {
            "mse_loss": mse(residual(x, acts, p)),
            "l0_loss": inputs.sparsity.squeeze(1) / len(x) * l0,
        }
        if inputs.dead is not None:
            below = (threshold - pre).relu().sum(1, keepdim=True) * inputs.dead.unsqueeze(1)
            pulled = self.pre_act_coefficient / len(x) * below * decoder_norm(p)
            losses["pre_act_loss"] = pulled.sum((1, 2))
        return Forward(losses, acts.detach())


class _Jump(torch.autograd.Function):
    """pre · 1[pre > θ], or the step 1[pre > θ] alone."""

    @staticmethod
    def forward(
        ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: Tensor, to_input: bool, is_step: bool
    ) -> Any:
        active = above(pre, threshold)
        ctx.save_for_backward(pre, threshold, bandwidth, active)
        ctx.to_input, ctx.is_step = to_input, is_step
        return active if is_step else pre * active

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        pre, threshold, bandwidth, active = ctx.saved_tensors
        q = (pre - threshold).abs_().lt_(bandwidth / 2)
        if ctx.is_step:
            q.mul_(grad / bandwidth)
            by_pre = q if ctx.to_input else None
        else:
            q.mul_(grad).mul_(threshold / bandwidth)
            by_pre = active * grad
            by_pre = by_pre.add_(q) if ctx.to_input else by_pre
        return by_pre, -q.sum(1, keepdim=True), None, None, None
