"""The auxiliary loss of TopK SAEs: dead latents learn to reconstruct what the living ones miss.

Axes: C SAEs of one chunk, B batch, D d_in, H d_sae, W some of the latents.

Of the dead latents, the `d_in // 2` with the largest pre-activations of each sample reconstruct
the SAE's residual, as if they were all that is active (Gao et al. 2024, arXiv:2406.04093, A.2).
With `ê = (pre · A) W_dec` for that choice A, `e = x̂ − x`, n_dead dead latents and all sums over
the batch:

    L         = w/B · Σ ‖ê + e‖²,    w = aux_loss_coefficient · min(n_dead / (d_in // 2), 1)
    ∂L/∂pre   = 2w/B · A · (ê + e) W_decᵀ
    ∂L/∂W_dec = 2w/B · (pre · A)ᵀ (ê + e)

The residual is a constant to it, so e has no gradient. There is no ReLU: pre-activations may be
negative.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_but_wrong.training import products
from sparse_but_wrong.training.architectures.selection import mark_largest


class AuxiliaryLoss:
    """The auxiliary loss of C SAEs, whose coefficients may differ."""

    def __init__(self, coefficient: Float[Tensor, "C 1"], d_in: int) -> None:
        self.coefficient = coefficient
        self.k_aux = max(d_in // 2, 1)  # at d_in 1 sae_lens divides by 0

    def add(
        self,
        latents: slice,
        error: Float[Tensor, "C B D"],
        dead: Bool[Tensor, "C H"],
        W_dec: Float[Tensor, "C H D"],
        W_dec_grad: Float[Tensor, "C H D"],
        ws: Any,
    ) -> None:
        """Add the loss of some latents to `ws.aux_loss`, and its gradient to what is there of it.

        On the CPU the dead latents are looked up, and only they are worked on. On a GPU, where
        that would take a look at the device, all go along, and none of the living is chosen.

        Args:
            latents: which take part, with both ends.
            error: x̂ − x.
            dead: which of all latents are dead.
            W_dec_grad: B/2 times ∂L/∂W_dec, moved on.
            ws: of the SAE's step: `pre`; `ranked`, the pre-activations as the latents are ranked
                by them; `grad`, B/2 times ∂L/∂pre, and `aux_loss`, which are moved on.
        """
        if not products.one_by_one(error):
            loss, grad, W_grad = self._gradient(
                self.coefficient,
                dead[:, latents],
                W_dec[:, latents],
                ws.pre[:, :, latents],
                ws.ranked[:, :, latents],
                error,
            )
            ws.aux_loss.add_(loss)
            ws.grad[:, :, latents].add_(grad)
            W_dec_grad[:, latents].add_(W_grad)
            return
        for i in range(len(dead)):
            which = dead[i, latents].nonzero().squeeze(1) + latents.start
            if len(which) == 0:
                continue
            loss, grad, W_grad = self._gradient(
                self.coefficient[i : i + 1],
                dead[i, which].unsqueeze(0),
                W_dec[i, which].unsqueeze(0),
                ws.pre[i].index_select(1, which).unsqueeze(0),
                ws.ranked[i].index_select(1, which).unsqueeze(0),
                error[i : i + 1],
            )
            ws.aux_loss[i].add_(loss[0])
            ws.grad[i].index_add_(1, which, grad[0])
            W_dec_grad[i].index_add_(0, which, W_grad[0])

    def _gradient(
        self,
        coefficient: Float[Tensor, "C 1"],
        dead: Bool[Tensor, "C W"],
        W_dec: Float[Tensor, "C W D"],
        pre: Float[Tensor, "C B W"],
        ranked: Float[Tensor, "C B W"],
        error: Float[Tensor, "C B D"],
    ) -> tuple[Float[Tensor, " C"], Float[Tensor, "C B W"], Float[Tensor, "C W D"]]:
        """The loss and, B/2 times, its gradients by pre and W_dec."""
        batch_size = pre.shape[1]
        n_dead = dead.sum(1, keepdim=True)
        weight = coefficient * (n_dead / self.k_aux).clamp_(max=1.0)

        chosen = torch.empty_like(pre)
        candidates = ranked.masked_fill(~dead.unsqueeze(1), -torch.inf)
        mark_largest(candidates, n_dead.clamp(max=self.k_aux).expand(-1, batch_size), out=chosen)
        acts = torch.mul(pre, chosen, out=candidates)
        miss = products.plus_product(error, acts, W_dec, out=torch.empty_like(error))
        squared = torch.linalg.vector_norm(miss, dim=(1, 2)).square()
        loss = weight.squeeze(1) * squared / batch_size

        miss.mul_(weight.unsqueeze(2))
        grad = products.times_transposed(miss, W_dec, out=torch.empty_like(pre)).mul_(chosen)
        W_dec_grad = torch.empty_like(W_dec)
        products.outer(acts, miss, out=W_dec_grad)
        return loss, grad, W_dec_grad
