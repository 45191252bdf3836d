"""TopK: forward, loss and gradient of a stack of SAEs, by hand.

Axes: C SAEs trained together, B batch, D d_in, H d_sae.

The k latents of each sample with the largest pre-activations are active, if they are positive
(Gao et al. 2024, arXiv:2406.04093). Written out, with `e = x̂ − x`, 1[active] for the choice and
all sums over the batch:

    acts      = pre · 1[active]
    ∂L/∂pre   = 2/B · 1[active] · e W_decᵀ
    ∂L/∂W_dec = 2/B · actsᵀ e

and on top of it what the auxiliary loss on dead latents adds (`auxiliary`).

With `rescale_acts_by_decoder_norm` the pre-activations are multiplied by ‖W_dec‖ before the choice,
and the activations divided by it before they are decoded. The norm thus decides which latents are
active and cancels in all else: its gradient is 0. (A decoder row of exactly 0, at which sae_lens
divides 0 by 0, only makes its latent inactive here.)

`b_dec` is folded into the encoder's bias, so that all SAEs read the same x.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_but_wrong.training import products
from sparse_but_wrong.training.architectures.architecture import (
    Architecture,
    Buffers,
    Workspace,
)
from sparse_but_wrong.training.architectures.auxiliary import AuxiliaryLoss
from sparse_but_wrong.training.architectures.selection import mark_largest
from sparse_but_wrong.training.controls import own_transition
from sparse_but_wrong.training.stack import ParameterViews

if TYPE_CHECKING:
    pass


class TopK(Architecture):
    """The step of a stack of TopK SAEs that share shapes and whether decoder norms count.

    k and the coefficients of the auxiliary loss may differ between the SAEs.
    `use_sparse_activations` says how sae_lens computes, not what, and makes no difference here.
    """

    sae_class = "TopKTrainingSAE"
    knob = "k"

    @classmethod
    def why_impossible(cls, sae: Any, knobs: Sequence[float], batch_size: int) -> str | None:
        """A k that the SAE cannot keep, or of which it is not clear what it is."""
        k = sae.cfg.k
        if not isinstance(k, Integral):
            return f"has cfg.k {k!r}, but TopK keeps a whole number per sample; give an int"
        return why_not_k(sae, knobs, batch_size)

    @staticmethod
    def stack_key(cfg: Any) -> tuple[object, ...]:
        """What SAEs must have in common to be stepped as one."""
        return (cfg.rescale_acts_by_decoder_norm, cfg.aux_loss_coefficient == 0)

    @staticmethod
    def bytes_per_sae(batch_size: int, d_in: int, d_sae: int) -> int:
        """Memory that one SAE's buffers take in a step."""
        return 4 * batch_size * (5 * d_sae + d_in)

    def __init__(self, cfgs: Sequence[Any], device: torch.device) -> None:
        super().__init__(cfgs, device)
        self.rescale: bool = cfgs[0].rescale_acts_by_decoder_norm
        coefficients = [c.aux_loss_coefficient for c in cfgs]
        self.auxiliary = None
        if any(coefficients):
            self.auxiliary = AuxiliaryLoss(self.column(coefficients), self.d_in)

    @property
    def uses_dead_latents(self) -> bool:
        """Whether a step depends on which latents are dead."""
        return self.auxiliary is not None

    def workspace(self, batch_size: int) -> TopKWorkspace:
        """The buffers of one step."""
        return TopKWorkspace(self, batch_size)

    def step(
        self,
        x: Float[Tensor, "B D"],
        params: ParameterViews,
        buffers: Buffers,  # noqa: ARG002  (it has none)
        grads: ParameterViews,
        knob: Float[Tensor, "C 1"],
        dead: Bool[Tensor, "C H"] | None,
        ws: Any,
    ) -> Float[Tensor, "C H"]:
        """Forward and backward on one batch."""
        self._encode(x, params, knob, ws)
        self._decode(x, params, ws)
        self._backward_decoder(params, grads, ws)
        ws.aux_loss.zero_()
        if self.auxiliary is not None and dead is not None:
            self._add_auxiliary(self.auxiliary, params, grads, dead, ws)
        self._backward_encoder(x, params, grads, ws)
        return ws.active.sum(1)

    def _encode(
        self,
        x: Float[Tensor, "B D"],
        params: ParameterViews,
        k: Float[Tensor, "C 1"],
        ws: TopKWorkspace,
    ) -> None:
        ws.pre = products.affine(x, params["W_enc"], self.encoder_bias(params), out=ws.pre_buffer)
        ws.ranked = ws.pre
        if self.rescale:
            norm = torch.linalg.vector_norm(params["W_dec"], dim=2)
            ws.ranked = torch.mul(ws.pre, norm.unsqueeze(1), out=ws.ranked_buffer)
        self._mark_active(ws.ranked, k, out=ws.active)
        # Where fewer are positive than there are places, the places stay empty.
        ws.active.mul_(torch.gt(ws.ranked, 0, out=ws.acts))
        torch.mul(ws.pre, ws.active, out=ws.acts)

    def _mark_active(
        self,
        ranked: Float[Tensor, "C B H"],
        k: Float[Tensor, "C 1"],
        out: Float[Tensor, "C B H"],
    ) -> None:
        """Mark the k largest of each sample.

        Of a fractional k, which only a transition has, the first samples keep one more, so that
        the batch keeps int(k · B) in all.
        """
        batch_size = ranked.shape[1]
        whole = k.floor()
        n_with_one_more = (k * batch_size).floor() - whole * batch_size
        sample = torch.arange(batch_size, device=k.device)
        mark_largest(ranked, (whole + (sample < n_with_one_more)).long(), out=out)

    def _decode(self, x: Float[Tensor, "B D"], params: ParameterViews, ws: Any) -> None:
        ws.error = products.affine_minus(
            ws.acts, params["W_dec"], params["b_dec"], x, out=ws.error_buffer
        )

    def _backward_decoder(self, params: ParameterViews, grads: ParameterViews, ws: Any) -> None:
        """∂L/∂pre in `ws.grad`; here as everywhere B/2 times what it is called."""
        ws.grad = products.times_transposed(ws.error, params["W_dec"], out=ws.grad_buffer)
        ws.grad.mul_(ws.active)
        products.outer(ws.acts, ws.error, out=grads["W_dec"])
        torch.sum(ws.error, 1, out=grads["b_dec"])

    def _add_auxiliary(
        self,
        auxiliary: AuxiliaryLoss,
        params: ParameterViews,
        grads: ParameterViews,
        dead: Bool[Tensor, "C H"],
        ws: Any,
    ) -> None:
        latents = slice(0, self.d_sae)
        auxiliary.add(latents, ws.error, dead, params["W_dec"], grads["W_dec"], ws)

    def _backward_encoder(
        self, x: Float[Tensor, "B D"], params: ParameterViews, grads: ParameterViews, ws: Any
    ) -> None:
        products.outer_shared(x, ws.grad, out=grads["W_enc"])
        torch.sum(ws.grad, 1, out=grads["b_enc"])
        self.unfold_encoder_bias(params, grads, grads["b_enc"])

    def losses(
        self,
        x: Float[Tensor, "B D"],  # noqa: ARG002
        params: ParameterViews,  # noqa: ARG002
        knob: Float[Tensor, "C 1"],  # noqa: ARG002
        dead: Bool[Tensor, "C H"] | None,  # noqa: ARG002
        ws: Any,
    ) -> dict[str, Float[Tensor, " C"]]:
        """The losses of the forward pass that `ws` holds."""
        return {
            "mse_loss": ws.error.square().sum((1, 2)) / ws.batch_size,
            "auxiliary_reconstruction_loss": ws.aux_loss.clone(),
        }


class TopKWorkspace(Workspace):
    """Buffers of one step of a TopK architecture on B samples."""

    def __init__(self, sae: TopK, b: int) -> None:
        super().__init__(sae.n_saes, b, sae.device)
        d, h = sae.d_in, sae.d_sae
        self.pre_buffer = self.buffer(h)
        self.error_buffer = self.buffer(d)
        self.grad_buffer = self.buffer(h)
        self.active = self.buffer(h)
        self.acts = self.buffer(h)
        # Of the last step; a product may have made its result elsewhere.
        self.pre = self.pre_buffer
        self.error = self.error_buffer
        self.grad = self.grad_buffer
        # Pre-activations as the latents are ranked by them.
        self.ranked = self.ranked_buffer = self.buffer(h) if sae.rescale else self.pre_buffer
        self.aux_loss = torch.zeros(sae.n_saes, dtype=torch.float32, device=sae.device)


def why_not_k(sae: Any, ks: Sequence[float], batch_size: int) -> str | None:
    """What is wrong with the k that an SAE is to have, in words; None if nothing is."""
    cfg = sae.cfg
    for k in ks:
        if not 1 <= k * batch_size < cfg.d_sae * batch_size + 1:
            return (
                f"is to keep k = {k:g} of {cfg.d_sae} latents; k must be at most d_sae, and enough "
                f"that one is active in a batch of {batch_size}"
            )
    # Where the config moves k by itself, the activation function keeps the k of some step.
    if sae.activation_fn.k != cfg.k and own_transition(cfg) is None:
        return (
            f"has cfg.k {cfg.k} but an activation_fn that keeps {sae.activation_fn.k}; set both to "
            "the same, or make the SAE anew"
        )
    return None
