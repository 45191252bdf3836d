"""A list of sae_lens SAEs as one stack of flat parameters, and back.

Axes: S SAE, P parameters of one SAE laid out flat (padded).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong import sae_lens_compat

if TYPE_CHECKING:
    import sae_lens

ParameterViews = dict[str, Tensor]
"""Parameters by name, each [S, *shape], as views into one flat tensor."""

_ALIGN = 16  # float32 values in a 64-byte cache line
_ROW_ALIGN = 64  # a multiple of what a vector loop takes at once: twice a register of any width


class ParameterLayout:
    """Where each parameter of one SAE lies in its flat row.

    Every parameter starts on a cache line, and a row is a whole number of the steps that PyTorch's
    vector loops take. Kernels pick their code path by alignment and end in a scalar loop that may
    round differently, so otherwise an SAE's last bits would depend on its place in the stack.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.offsets: dict[str, int] = {}
        end = 0
        for name, shape in shapes.items():
            self.offsets[name] = end
            end += math.ceil(math.prod(shape) / _ALIGN) * _ALIGN
        self.size = math.ceil(end / _ROW_ALIGN) * _ROW_ALIGN

    def views(self, flat: Float[Tensor, "S P"]) -> ParameterViews:
        """Named views into flat rows; the padding belongs to none of them."""
        return {
            name: flat[:, self.offsets[name] : self.offsets[name] + math.prod(shape)].view(
                flat.shape[0], *shape
            )
            for name, shape in self.shapes.items()
        }


def stack_parameters(
    saes: Sequence[sae_lens.TrainingSAE[Any]], layout: ParameterLayout
) -> Float[Tensor, "S P"]:
    """Copy the parameters of several SAEs into one flat tensor; the padding is 0."""
    device = saes[0].W_dec.device
    flat = torch.zeros(len(saes), layout.size, dtype=torch.float32, device=device)
    views = layout.views(flat)
    with torch.no_grad():
        for i, sae in enumerate(saes):
            for name in layout.shapes:
                views[name][i].copy_(getattr(sae, name))
    return flat


def unstack_parameters(
    flat: Float[Tensor, "S P"],
    layout: ParameterLayout,
    saes: Sequence[sae_lens.TrainingSAE[Any]],
) -> None:
    """Copy the rows of a stack back into the parameters of the caller's own SAEs."""
    views = layout.views(flat)
    with torch.no_grad():
        for i, sae in enumerate(saes):
            for name in layout.shapes:
                getattr(sae, name).copy_(views[name][i])


def why_not_stackable(sae: sae_lens.TrainingSAE[Any]) -> str | None:
    """Why the engine must leave an SAE of a known architecture to sae_lens' trainer, if it must.

    Returns:
        The reason in words, or None if the engine's arithmetic is the SAE's own.
    """
    if sae.cfg.normalize_activations not in ("none", "expected_average_only_in"):
        return f"it does not do normalize_activations={sae.cfg.normalize_activations!r}"
    # The threshold is float32 whatever the SAE's dtype, and an SAE's dtype may be out of date.
    dtypes = {sae.dtype, *(p.dtype for p in sae.parameters())} - {torch.float32}
    if dtypes:
        return f"it trains float32 only, not {str(dtypes.pop()).removeprefix('torch.')}"
    if not sae_lens_compat.has_plain_mse_loss(sae):
        return "a custom mse_loss_fn is set"
    if type(sae.activation_fn) is not type(sae.get_activation_fn()):
        return "its activation_fn was replaced"
    if not all(p.requires_grad for p in sae.parameters()):
        return "some of its parameters are frozen"
    if any(point.fwd_hooks or point.bwd_hooks for point in sae.hook_dict.values()):
        return "hooks are attached to it"
    return None
