"""The standard SAE, ReLU and an Lp penalty: forward, loss and gradient of a stack, by hand.

Axes: C SAEs trained together, B batch, D d_in, H d_sae.

The penalty is λ times the Lp norm of each sample's activations, weighted by the decoder's norms
(Bricken et al. 2023; "Towards Monosemanticity", weighted as in Anthropic's update of April 2024).
Written out, with `e = x̂ − x`, `n = ‖W_dec‖` per latent, `u = n·acts`, `N = ‖u‖_p` per sample and
all sums over the batch:

    ∂L/∂u      = λ/B · (u / N)^(p − 1), and 0 where u = 0               (p = 1: λ/B · 1[u > 0])
    ∂L/∂acts   = 2/B · e W_decᵀ + n · ∂L/∂u
    ∂L/∂pre    = 1[pre > 0] · ∂L/∂acts
    ∂L/∂n      = Σ acts · ∂L/∂u

`b_dec` is folded into the encoder's bias, so that all SAEs read the same x.
"""

from __future__ import annotations

import math
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


class Standard(Architecture):
    """The step of a stack of standard SAEs that share shapes and the p of their penalty."""

    sae_class = "StandardTrainingSAE"
    knob = "l1"

    @staticmethod
    def why_not(cfg: sae_lens.StandardTrainingSAEConfig) -> str | None:
        """Norms that are not of the form (Σ uᵖ)^(1/p) are left to sae_lens."""
        if 0 < cfg.lp_norm < math.inf:
            return None
        return f"it does not do lp_norm={cfg.lp_norm}"

    @staticmethod
    def stack_key(cfg: sae_lens.StandardTrainingSAEConfig) -> tuple[object, ...]:
        """What SAEs must have in common to be stepped as one."""
        return (cfg.lp_norm,)

    @staticmethod
    def bytes_per_sae(batch_size: int, d_in: int, d_sae: int) -> int:
        """Memory that one SAE's buffers take in a step."""
        return 4 * batch_size * (5 * d_sae + d_in)

    def __init__(
        self, cfgs: Sequence[sae_lens.StandardTrainingSAEConfig], device: torch.device
    ) -> None:
        super().__init__(cfgs, device)
        self.p = float(cfgs[0].lp_norm)

    def workspace(self, batch_size: int) -> StandardWorkspace:
        """The buffers of one step."""
        return StandardWorkspace(self.n_saes, batch_size, self.d_in, self.d_sae, self.device)

    def step(
        self,
        x: Float[Tensor, "B D"],
        params: ParameterViews,
        buffers: Buffers,  # noqa: ARG002  (it has none)
        grads: ParameterViews,
        knob: Float[Tensor, "C 1"],
        dead: Bool[Tensor, "C H"] | None,  # noqa: ARG002
        ws: StandardWorkspace,
    ) -> Float[Tensor, "C H"]:
        """Forward and backward on one batch."""
        self._forward(x, params, ws)
        return self._backward(x, params, grads, knob, ws)

    def _forward(
        self, x: Float[Tensor, "B D"], params: ParameterViews, ws: StandardWorkspace
    ) -> None:
        W_dec = params["W_dec"]
        pre = products.affine(x, params["W_enc"], self.encoder_bias(params), out=ws.acts_buffer)
        ws.acts = pre.relu_()
        ws.error = products.affine_minus(ws.acts, W_dec, params["b_dec"], x, out=ws.error_buffer)
        torch.linalg.vector_norm(W_dec, dim=2, out=ws.dec_norm)

    def _backward(
        self,
        x: Float[Tensor, "B D"],
        params: ParameterViews,
        grads: ParameterViews,
        coefficient: Float[Tensor, "C 1"],
        ws: StandardWorkspace,
    ) -> Float[Tensor, "C H"]:
        W_dec, scratch = params["W_dec"], ws.scratch

        # ∂L/∂acts; from here on everything is B/2 times what it is called
        grad = products.times_transposed(ws.error, W_dec, out=ws.grad_buffer)
        if self.p == 1:
            # Where a latent is not active, the gradient is about to be cut off anyway.
            grad.add_((coefficient / 2 * ws.dec_norm).unsqueeze(1))
            norm_grad = ws.acts.sum(1).mul_(coefficient / 2)
        else:
            slope = self._slope_of_norm(ws).mul_((coefficient / 2).unsqueeze(1))
            torch.mul(slope, ws.acts, out=scratch)
            norm_grad = scratch.sum(1)
            grad.add_(slope.mul_(ws.dec_norm.unsqueeze(1)))

        # ∂L/∂pre
        torch.gt(ws.acts, 0, out=scratch)
        fired = scratch.sum(1)
        grad.mul_(scratch)

        # the four parameters
        products.outer_shared(x, grad, out=grads["W_enc"])
        torch.sum(grad, 1, out=grads["b_enc"])
        products.outer(ws.acts, ws.error, out=grads["W_dec"])
        torch.sum(ws.error, 1, out=grads["b_dec"])
        self.unfold_encoder_bias(params, grads, grads["b_enc"])
        # A zero row has no direction to move along; PyTorch's norm gives it gradient 0 too.
        per_norm = norm_grad / ws.dec_norm.clamp_min(1e-12)
        grads["W_dec"].addcmul_(W_dec, per_norm.unsqueeze(2))
        return fired

    def _slope_of_norm(self, ws: StandardWorkspace) -> Float[Tensor, "C B H"]:
        """∂N/∂u, with PyTorch's conventions where it has no limit: 0 at u = 0 and at N = 0."""
        u, slope, norm = ws.scratch, ws.slope, ws.norm
        torch.mul(ws.acts, ws.dec_norm.unsqueeze(1), out=u)
        torch.pow(u, self.p - 1, out=slope)
        slope.masked_fill_(u == 0, 0.0)
        torch.sum(u.mul_(slope), 2, keepdim=True, out=norm)  # Nᵖ
        is_zero = norm == 0
        norm.pow_((1 - self.p) / self.p).masked_fill_(is_zero, 0.0)
        return slope.mul_(norm)

    def losses(
        self,
        x: Float[Tensor, "B D"],  # noqa: ARG002
        params: ParameterViews,  # noqa: ARG002
        knob: Float[Tensor, "C 1"],
        dead: Bool[Tensor, "C H"] | None,  # noqa: ARG002
        ws: StandardWorkspace,
    ) -> dict[str, Float[Tensor, " C"]]:
        """The losses of the forward pass that `ws` holds, by sae_lens' names."""
        weighted = ws.acts * ws.dec_norm.unsqueeze(1)
        norm = torch.linalg.vector_norm(weighted, ord=self.p, dim=2)
        return {
            "mse_loss": ws.error.square().sum((1, 2)) / ws.batch_size,
            "l1_loss": (knob * norm).mean(1),
        }


class StandardWorkspace(Workspace):
    """Buffers of one step of C SAEs on B samples."""

    def __init__(self, c: int, b: int, d: int, h: int, device: torch.device) -> None:
        super().__init__(c, b, device)
        self.acts_buffer = self.buffer(h)
        self.error_buffer = self.buffer(d)
        self.grad_buffer = self.buffer(h)
        self.scratch = self.buffer(h)
        self.slope = self.buffer(h)
        self.norm = self.buffer(1)
        self.dec_norm = torch.empty(c, h, dtype=torch.float32, device=device)
        # Of the last forward pass; a product may have made its result elsewhere.
        self.acts = self.acts_buffer
        self.error = self.error_buffer
