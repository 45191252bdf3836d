"""Matryoshka BatchTopK: nested SAEs, each of which is to reconstruct by itself.

Axes: C SAEs trained together, B batch, D d_in, H d_sae, L levels.

The latents are BatchTopK's. Those below each width of `matryoshka_widths` make up one level, whose
reconstruction has a loss of its own (Bussmann et al. 2025, arXiv:2503.17547). With `e_l` the error
of level l, a latent that joins at level g answers for the errors of all levels that it is part of:

    L         = 1/B · Σ_l ‖e_l‖²
    ∂L/∂pre   = 2/B · 1[active] · E_g W_decᵀ,    E_g = Σ_{l ≥ g} e_l
    ∂L/∂W_dec = 2/B · actsᵀ E_g
    ∂L/∂b_dec = 2/B · Σ E_1

With `use_matryoshka_aux_loss` the dead latents that join at a level reconstruct the residual of
that level, level by level; otherwise that of the whole SAE, as in TopK.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_but_wrong.training import products
from sparse_but_wrong.training.architectures.auxiliary import AuxiliaryLoss
from sparse_but_wrong.training.architectures.batchtopk import BatchTopK
from sparse_but_wrong.training.architectures.topk import TopKWorkspace
from sparse_but_wrong.training.stack import ParameterViews

if TYPE_CHECKING:
    pass


class Matryoshka(BatchTopK):
    """The step of a stack of Matryoshka BatchTopK SAEs that share shapes, widths and switches."""

    sae_class = "MatryoshkaBatchTopKTrainingSAE"

    @classmethod
    def why_impossible(cls, sae: Any, knobs: Sequence[float], batch_size: int) -> str | None:
        """Widths that are no nested levels, or a k that the SAE cannot keep."""
        widths = sae.cfg.matryoshka_widths
        ends = [0, *widths]
        if any(wide <= narrow for narrow, wide in pairwise(ends)) or ends[-1] != sae.cfg.d_sae:
            return (
                f"has the matryoshka_widths {widths}; they must rise and end at d_sae = "
                f"{sae.cfg.d_sae}"
            )
        return super().why_impossible(sae, knobs, batch_size)

    @staticmethod
    def stack_key(cfg: Any) -> tuple[object, ...]:
        """What SAEs must have in common to be stepped as one."""
        return (
            *BatchTopK.stack_key(cfg),
            tuple(cfg.matryoshka_widths),
            cfg.use_matryoshka_aux_loss,
        )

    @staticmethod
    def bytes_per_sae(batch_size: int, d_in: int, d_sae: int) -> int:
        """Memory that one SAE's buffers take in a step; levels' errors are taken to be four."""
        return 4 * batch_size * (6 * d_sae + 5 * d_in)

    def __init__(self, cfgs: Sequence[Any], device: torch.device) -> None:
        super().__init__(cfgs, device)
        self.widths: list[int] = cfgs[0].matryoshka_widths
        self.auxiliary_by_level: bool = cfgs[0].use_matryoshka_aux_loss
        self.levels = [slice(start, end) for start, end in pairwise([0, *self.widths])]

    def workspace(self, batch_size: int) -> MatryoshkaWorkspace:
        """The buffers of one step."""
        return MatryoshkaWorkspace(self, batch_size)

    def _decode(self, x: Float[Tensor, "B D"], params: ParameterViews, ws: Any) -> None:
        W_dec, b_dec = params["W_dec"], params["b_dec"]
        inner = self.levels[0]
        ws.error = products.affine_minus(
            ws.acts[:, :, inner], W_dec[:, inner], b_dec, x, out=ws.level_buffers[0]
        )
        ws.errors = [ws.error]
        for level, buffer in zip(self.levels[1:], ws.level_buffers[1:], strict=True):
            ws.error = products.plus_product(
                ws.error, ws.acts[:, :, level], W_dec[:, level], out=buffer
            )
            ws.errors.append(ws.error)

    def _backward_decoder(self, params: ParameterViews, grads: ParameterViews, ws: Any) -> None:
        """∂L/∂pre in `ws.grad`, from the outermost level inwards; all of it B/2 times."""
        ws.total.copy_(ws.error)
        for i in reversed(range(len(self.levels))):
            if i < len(self.levels) - 1:
                ws.total.add_(ws.errors[i])
            level = self.levels[i]
            back = products.times_transposed(
                ws.total, params["W_dec"][:, level], out=ws.back_buffers[i]
            )
            torch.mul(back, ws.active[:, :, level], out=ws.grad[:, :, level])
            products.outer(ws.acts[:, :, level], ws.total, out=grads["W_dec"][:, level])
        torch.sum(ws.total, 1, out=grads["b_dec"])

    def _add_auxiliary(
        self,
        auxiliary: AuxiliaryLoss,
        params: ParameterViews,
        grads: ParameterViews,
        dead: Bool[Tensor, "C H"],
        ws: Any,
    ) -> None:
        if not self.auxiliary_by_level:
            super()._add_auxiliary(auxiliary, params, grads, dead, ws)
            return
        for level, error in zip(self.levels, ws.errors, strict=True):
            auxiliary.add(level, error, dead, params["W_dec"], grads["W_dec"], ws)

    def losses(
        self,
        x: Float[Tensor, "B D"],
        params: ParameterViews,
        knob: Float[Tensor, "C 1"],
        dead: Bool[Tensor, "C H"] | None,
        ws: Any,
    ) -> dict[str, Float[Tensor, " C"]]:
        """The losses of the forward pass that `ws` holds."""
        losses = super().losses(x, params, knob, dead, ws)
        for width, error in zip(self.widths[:-1], ws.errors[:-1], strict=True):
            losses[f"inner_mse_loss_{width}"] = error.square().sum((1, 2)) / ws.batch_size
        return losses


class MatryoshkaWorkspace(TopKWorkspace):
    """Buffers of one step of a Matryoshka architecture on B samples."""

    def __init__(self, sae: Matryoshka, b: int) -> None:
        super().__init__(sae, b)
        self.level_buffers = [self.error_buffer, *(self.buffer(sae.d_in) for _ in sae.widths[1:])]
        self.back_buffers = [self.buffer(level.stop - level.start) for level in sae.levels]
        self.total = self.buffer(sae.d_in)
        # Of the last forward pass, by level; a product may have made its result elsewhere.
        self.errors: list[Tensor] = []
