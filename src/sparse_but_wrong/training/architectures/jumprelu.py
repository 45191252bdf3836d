"""JumpReLU: forward, loss and gradient of a stack of SAEs, by hand.

Axes: C SAEs trained together, B batch, D d_in, H d_sae.

The gradient is the one sae_lens' JumpReLUTrainingSAE defines: exact for everything but the jump,
where a straight-through estimator with a rectangle kernel of width `jumprelu_bandwidth` stands in
(Rajamanoharan et al. 2024, arXiv:2407.14435). Written out, with `e = x̂ − x`, `n = ‖W_dec‖` per
latent, gate = 1[|pre − θ| < bandwidth / 2] and all sums over the batch:

    ∂L/∂acts   = 2/B · e W_decᵀ + λ/B · c·n · (1 − tanh²(c·n·acts))     (second term: tanh mode)
    q          = gate · (θ · ∂L/∂acts + ∂L/∂step) / bandwidth           (∂L/∂step: step, quadratic)
    ∂L/∂θ      = −Σ q
    ∂L/∂pre    = 1[pre > θ] · ∂L/∂acts  (+ q with jumprelu_ste_to_input)

`b_dec` is folded into the encoder's bias, so that all SAEs read the same x.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class JumpReLU(Architecture):
    """The step of a stack of JumpReLU SAEs that share shapes and loss mode.

    Coefficients, bandwidths, tanh scales and target L0s may differ between the SAEs.
    """

    sae_class = "JumpReLUTrainingSAE"
    knob = "l0"

    @staticmethod
    def coefficient_unit(variance: float, l0: float) -> float:
        """As the base class; the penalty is one of each latent that is active."""
        return variance / l0

    @staticmethod
    def parameter_shapes(d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
        """Those of every SAE, and a threshold per latent."""
        return {**Architecture.parameter_shapes(d_in, d_sae), "threshold": (d_sae,)}

    @staticmethod
    def stack_key(cfg: sae_lens.JumpReLUTrainingSAEConfig) -> tuple[object, ...]:
        """What SAEs must have in common to be stepped as one."""
        return (
            cfg.jumprelu_sparsity_loss_mode,
            cfg.jumprelu_ste_to_input,
            cfg.pre_act_loss_coefficient is not None,
        )

    @staticmethod
    def bytes_per_sae(batch_size: int, d_in: int, d_sae: int) -> int:
        """Memory that one SAE's buffers take in a step."""
        return 4 * batch_size * (6 * d_sae + d_in)

    def __init__(
        self, cfgs: Sequence[sae_lens.JumpReLUTrainingSAEConfig], device: torch.device
    ) -> None:
        super().__init__(cfgs, device)
        cfg = cfgs[0]
        self.mode = cfg.jumprelu_sparsity_loss_mode
        self.ste_to_input = cfg.jumprelu_ste_to_input
        self.bandwidth = self.column([c.jumprelu_bandwidth for c in cfgs])
        self.half_bandwidth = self.bandwidth / 2
        self.tanh_scale = self.column([c.jumprelu_tanh_scale for c in cfgs])
        self.target_l0 = self.column([c.target_l0 or 1.0 for c in cfgs])
        self.pre_act_coefficient = None
        if cfg.pre_act_loss_coefficient is not None:
            self.pre_act_coefficient = self.column(
                [c.pre_act_loss_coefficient or 0.0 for c in cfgs]
            )

    @property
    def uses_dead_latents(self) -> bool:
        """Whether a step depends on which latents are dead."""
        return self.pre_act_coefficient is not None

    def workspace(self, batch_size: int) -> JumpReLUWorkspace:
        """The buffers of one step."""
        return JumpReLUWorkspace(self.n_saes, batch_size, self.d_in, self.d_sae, self.device)

    def step(
        self,
        x: Float[Tensor, "B D"],
        params: ParameterViews,
        buffers: Buffers,  # noqa: ARG002  (it has none)
        grads: ParameterViews,
        knob: Float[Tensor, "C 1"],
        dead: Bool[Tensor, "C H"] | None,
        ws: JumpReLUWorkspace,
    ) -> Float[Tensor, "C H"]:
        """Forward and backward on one batch.

        `threshold` is projected to ≥ 0 in place, as sae_lens does before each step.
        """
        self._forward(x, params, ws)
        return self._backward(x, params, grads, knob, dead, ws)

    def _forward(
        self, x: Float[Tensor, "B D"], params: ParameterViews, ws: JumpReLUWorkspace
    ) -> None:
        W_enc, W_dec, b_dec = params["W_enc"], params["W_dec"], params["b_dec"]
        threshold = params["threshold"].clamp_(min=0.0).unsqueeze(1)
        ws.pre = products.affine(x, W_enc, self.encoder_bias(params), out=ws.pre_buffer)
        torch.gt(ws.pre, threshold, out=ws.active)
        torch.mul(ws.pre, ws.active, out=ws.acts)
        ws.error = products.affine_minus(ws.acts, W_dec, b_dec, x, out=ws.error_buffer)
        torch.linalg.vector_norm(W_dec, dim=2, out=ws.dec_norm)

    def _backward(
        self,
        x: Float[Tensor, "B D"],
        params: ParameterViews,
        grads: ParameterViews,
        coefficient: Float[Tensor, "C 1"],
        dead: Bool[Tensor, "C H"] | None,
        ws: JumpReLUWorkspace,
    ) -> Float[Tensor, "C H"]:
        W_dec, threshold = params["W_dec"], params["threshold"]
        scratch, gate = ws.scratch, ws.gate
        norm_grad: Tensor | None = None

        # ∂L/∂acts; from here on everything is B/2 times what it is called
        grad = products.times_transposed(ws.error, W_dec, out=ws.grad_buffer)
        if self.mode == "tanh":
            # 1 − tanh²(u) = 4σ(2u)(1 − σ(2u)), and the sigmoid is a tenth of the work.
            slope = self.tanh_scale * ws.dec_norm
            torch.mul(ws.acts, (2 * slope).unsqueeze(1), out=scratch)
            scratch.sigmoid_()
            torch.addcmul(scratch, scratch, scratch, value=-1, out=gate)
            gate.mul_((2 * coefficient * slope).unsqueeze(1))
            grad.add_(gate)
            torch.mul(gate, ws.acts, out=scratch)
            norm_grad = scratch.sum(1) / ws.dec_norm.clamp_min(1e-12)

        # q, the straight-through part, and with it ∂L/∂θ
        torch.sub(ws.pre, threshold.unsqueeze(1), out=gate)
        gate.abs_().lt_(self.half_bandwidth.unsqueeze(1))
        torch.mul(grad, (threshold / self.bandwidth).unsqueeze(1), out=scratch)
        fired = ws.active.sum(1)
        if self.mode == "step":
            scratch.add_((coefficient / (2 * self.bandwidth)).unsqueeze(1))
        elif self.mode == "quadratic":
            pull = 2 * coefficient / (self.bandwidth * self.target_l0)
            excess = ws.active.sum(2, keepdim=True) - self.target_l0.unsqueeze(1)
            scratch.add_(excess.mul_(pull.unsqueeze(1)))
        scratch.mul_(gate)
        torch.sum(scratch, 1, out=grads["threshold"])
        grads["threshold"].neg_()

        # ∂L/∂pre
        grad.mul_(ws.active)
        if self.ste_to_input:
            grad.add_(scratch)
        if self.pre_act_coefficient is not None and dead is not None:
            weight = (self.pre_act_coefficient / 2) * dead
            torch.sub(threshold.unsqueeze(1), ws.pre, out=scratch)
            scratch.relu_()
            pulled = scratch.sum(1) * weight
            norm_grad = pulled if norm_grad is None else norm_grad + pulled
            torch.gt(scratch, 0, out=gate)
            gate.mul_((weight * ws.dec_norm).unsqueeze(1))
            grads["threshold"].add_(gate.sum(1))
            grad.sub_(gate)

        # the five parameters
        products.outer_shared(x, grad, out=grads["W_enc"])
        torch.sum(grad, 1, out=grads["b_enc"])
        products.outer(ws.acts, ws.error, out=grads["W_dec"])
        torch.sum(ws.error, 1, out=grads["b_dec"])
        self.unfold_encoder_bias(params, grads, grads["b_enc"])
        if norm_grad is not None:
            # A zero row has no direction to move along; PyTorch's norm gives it gradient 0 too.
            per_norm = norm_grad / ws.dec_norm.clamp_min(1e-12)
            grads["W_dec"].addcmul_(W_dec, per_norm.unsqueeze(2))
        return fired

    def losses(
        self,
        x: Float[Tensor, "B D"],  # noqa: ARG002
        params: ParameterViews,
        knob: Float[Tensor, "C 1"],
        dead: Bool[Tensor, "C H"] | None,
        ws: JumpReLUWorkspace,
    ) -> dict[str, Float[Tensor, " C"]]:
        """The losses of the forward pass that `ws` holds."""
        batch_size = ws.pre.shape[1]
        weight = knob.squeeze(1) / batch_size
        losses = {"mse_loss": ws.error.square().sum((1, 2)) / batch_size}
        if self.mode == "tanh":
            slope = (self.tanh_scale * ws.dec_norm).unsqueeze(1)
            losses["l0_loss"] = weight * torch.tanh(ws.acts * slope).sum((1, 2))
        elif self.mode == "step":
            losses["l0_loss"] = weight * ws.active.sum((1, 2))
        else:
            excess = ws.active.sum(2) - self.target_l0
            losses["l0_loss"] = weight * (2 / self.target_l0 * excess.square()).sum(1)
        if self.pre_act_coefficient is not None and dead is not None:
            below = (params["threshold"].unsqueeze(1) - ws.pre).relu_().sum(1)
            losses["pre_act_loss"] = (
                self.pre_act_coefficient.squeeze(1)
                / batch_size
                * (below * dead * ws.dec_norm).sum(1)
            )
        return losses


class JumpReLUWorkspace(Workspace):
    """Buffers of one step of C SAEs on B samples."""

    def __init__(self, c: int, b: int, d: int, h: int, device: torch.device) -> None:
        super().__init__(c, b, device)
        self.pre_buffer = self.buffer(h)
        self.error_buffer = self.buffer(d)
        self.grad_buffer = self.buffer(h)
        self.active = self.buffer(h)
        self.acts = self.buffer(h)
        self.gate = self.buffer(h)
        self.scratch = self.buffer(h)
        self.dec_norm = torch.empty(c, h, dtype=torch.float32, device=device)
        # Of the last forward pass; a product may have made its result elsewhere.
        self.pre = self.pre_buffer
        self.error = self.error_buffer
