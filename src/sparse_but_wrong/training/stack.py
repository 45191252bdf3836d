"""A list of sae_lens SAEs as one stack of flat parameters, and back.

Axes: S SAE, H d_sae, P parameters of one SAE laid out flat (padded).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_but_wrong import sae_lens_compat

if TYPE_CHECKING:
    import sae_lens

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

    def views(self, flat: Float[Tensor, "S P"]) -> dict[str, Tensor]:
        """Parameters by name, each [S, *shape], as views; the padding belongs to none of them."""
        return {
            name: flat[:, self.offsets[name] : self.offsets[name] + math.prod(shape)].view(
                flat.shape[0], *shape
            )
            for name, shape in self.shapes.items()
        }


@dataclass(frozen=True)
class StackState:
    """Everything that a step changes, in place; steppers work on rows of it."""

    layout: ParameterLayout
    params: Float[Tensor, "S P"]
    exp_avg: Float[Tensor, "S P"]
    """Adam's mean gradient."""
    exp_avg_sq: Float[Tensor, "S P"]
    """Adam's mean squared gradient."""
    buffers: dict[str, Float[Tensor, " S"]]
    """Scalars that training moves though they are no parameters."""
    last_fired: Int[Tensor, "S H"]
    """The step each latent last fired at; −1 stands for before the first."""
    window_fired: Float[Tensor, "S H"]
    """Samples each latent fired on in the current sampling window."""
    diverged_at: Int[Tensor, " S"]
    """The first step whose gradient was not finite; −1 where there was none."""

    @classmethod
    def of(
        cls,
        saes: Sequence[sae_lens.TrainingSAE[Any]],
        shapes: dict[str, tuple[int, ...]],
        buffers: Mapping[str, torch.dtype],
    ) -> StackState:
        """The SAEs as they are before the first step; the padding is 0."""
        layout = ParameterLayout(shapes)
        n, device = len(saes), saes[0].W_dec.device
        params = torch.zeros(n, layout.size, dtype=torch.float32, device=device)
        views = layout.views(params)
        with torch.no_grad():
            for i, sae in enumerate(saes):
                for name in shapes:
                    views[name][i].copy_(getattr(sae, name))
        d_sae = saes[0].cfg.d_sae
        return cls(
            layout=layout,
            params=params,
            exp_avg=torch.zeros_like(params),
            exp_avg_sq=torch.zeros_like(params),
            buffers={
                name: torch.stack([getattr(sae, name).detach().to(dtype) for sae in saes])
                for name, dtype in buffers.items()
            },
            last_fired=torch.full((n, d_sae), -1, dtype=torch.int64, device=device),
            window_fired=torch.zeros(n, d_sae, device=device),
            diverged_at=torch.full((n,), -1, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def write_into(self, saes: Sequence[sae_lens.TrainingSAE[Any]], first: int = 0) -> None:
        """Copy rows, from the first on, into the parameters and buffers of sae_lens SAEs."""
        views = self.layout.views(self.params)
        for row, sae in enumerate(saes, first):
            for name in self.layout.shapes:
                getattr(sae, name).copy_(views[name][row])
            for name, values in self.buffers.items():
                getattr(sae, name).copy_(values[row])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {
            "params": self.params,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "last_fired": self.last_fired,
            "window_fired": self.window_fired,
            "diverged_at": self.diverged_at,
            **{f"buffer.{name}": values for name, values in self.buffers.items()},
        }


def why_not_stackable(sae: sae_lens.TrainingSAE[Any]) -> str | None:
    """Why an SAE of a known architecture must be left to sae_lens' trainer, in words; or None."""
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
