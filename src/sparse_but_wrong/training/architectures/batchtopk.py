"""BatchTopK: the k · B largest pre-activations of a batch are active, if they are positive.

Axes: C SAEs trained together, B batch, D d_in, H d_sae.

The choice apart (Bussmann et al. 2024, arXiv:2412.06410), forward pass, losses and gradient are
those of TopK. Besides, each SAE keeps a running threshold, the mean of the smallest activation of
each batch, which the JumpReLU SAE that it is saved as for inference has in place of the choice:

    threshold ← (1 − topk_threshold_lr) · threshold + topk_threshold_lr · min {acts > 0}

in the units that the choice is made in. A batch without active latents leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_but_wrong.training.architectures.architecture import Buffers
from sparse_but_wrong.training.architectures.selection import mark_largest
from sparse_but_wrong.training.architectures.topk import TopK, TopKWorkspace, why_not_k
from sparse_but_wrong.training.stack import ParameterViews

if TYPE_CHECKING:
    pass


class BatchTopK(TopK):
    """The step of a stack of BatchTopK SAEs that share shapes and whether decoder norms count.

    k, the threshold's learning rate and the coefficients of the auxiliary loss may differ between
    the SAEs.
    """

    sae_class = "BatchTopKTrainingSAE"

    buffers = {"topk_threshold": torch.float64}  # noqa: RUF012

    @classmethod
    def why_impossible(cls, sae: Any, knobs: Sequence[float], batch_size: int) -> str | None:
        """A k that the SAE cannot keep, or of which it is not clear what it is."""
        return why_not_k(sae, knobs, batch_size)

    def __init__(self, cfgs: Sequence[Any], device: torch.device) -> None:
        super().__init__(cfgs, device)
        self.threshold_lr = torch.tensor(
            [c.topk_threshold_lr for c in cfgs], dtype=torch.float64, device=device
        )

    def step(
        self,
        x: Float[Tensor, "B D"],
        params: ParameterViews,
        buffers: Buffers,
        grads: ParameterViews,
        knob: Float[Tensor, "C 1"],
        dead: Bool[Tensor, "C H"] | None,
        ws: Any,
    ) -> Float[Tensor, "C H"]:
        """Forward and backward on one batch."""
        fired = super().step(x, params, buffers, grads, knob, dead, ws)
        self._move_threshold(buffers["topk_threshold"], ws)
        return fired

    def _mark_active(
        self,
        ranked: Float[Tensor, "C B H"],
        k: Float[Tensor, "C 1"],
        out: Float[Tensor, "C B H"],
    ) -> None:
        """Mark the int(k · B) largest of the batch; a batch has no more than it has."""
        n_places = (k * ranked.shape[1]).long().clamp_(max=ranked.shape[1] * ranked.shape[2])
        mark_largest(ranked.flatten(1).unsqueeze(1), n_places, out=out.view(len(out), 1, -1))

    def _move_threshold(self, threshold: Float[Tensor, " C"], ws: TopKWorkspace) -> None:
        # 1/active − 1 is 0 where a latent is active and infinite where it is not.
        excluded = torch.reciprocal(ws.active, out=ws.grad_buffer).sub_(1)
        smallest = excluded.add_(ws.ranked).amin((1, 2)).double()
        moved = (1 - self.threshold_lr) * threshold + self.threshold_lr * smallest
        threshold.copy_(torch.where(smallest < torch.inf, moved, threshold))
