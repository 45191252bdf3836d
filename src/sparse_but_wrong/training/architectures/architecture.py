"""What the engine needs to know of an architecture to step a stack of its SAEs.

Axes: C SAEs trained together, B batch, D d_in, H d_sae.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparse_but_wrong.training import products
from sparse_but_wrong.training.stack import ParameterViews

if TYPE_CHECKING:
    import sae_lens

_GAP = 16  # float32 values: one cache line

Buffers = dict[str, Float[Tensor, " C"]]
"""Scalars that training moves though they are no parameters, one per SAE, by name."""


class Workspace:
    """Buffers of one step of C SAEs on B samples; each architecture adds its own."""

    def __init__(self, c: int, b: int, device: torch.device) -> None:
        self.batch_size = b
        self._c, self._device = c, device

    def buffer(self, width: int, rows: int | None = None) -> Float[Tensor, "C rows width"]:
        """Room for a value per sample (or per row, of as many as are asked for) and column.

        Each SAE's part starts on a cache line, and there is a gap after it. Without the gap PyTorch
        would run through the parts of all SAEs as one, and where its vector loop ends and its
        scalar loop begins, which round differently, would depend on how many there are.
        """
        rows = self.batch_size if rows is None else rows
        size = rows * width
        stride = (size // _GAP + 2) * _GAP
        flat = torch.empty(self._c, stride, dtype=torch.float32, device=self._device)
        return flat[:, :size].view(self._c, rows, width)


class Architecture(ABC):
    """The step of a stack of SAEs of one architecture that share shapes and discrete options.

    An instance steps one chunk of a stack; what may differ between its SAEs it holds as [C, 1].
    Gradients must be those that sae_lens' autograd would give, for each SAE's own loss.
    """

    sae_class: ClassVar[str]
    """sae_lens' name of the training SAEs that it steps."""

    knob: ClassVar[str]
    """What sets an SAE's sparsity: the name of its coefficient in sae_lens, or ``k``."""

    buffers: ClassVar[dict[str, torch.dtype]] = {}
    """Scalar buffers of the sae_lens class that training moves."""

    @classmethod
    def handles(cls, sae: sae_lens.TrainingSAE[Any]) -> bool:
        """Whether an SAE is exactly of sae_lens' class for this (a subclass may differ)."""
        import sae_lens

        return type(sae) is getattr(sae_lens, cls.sae_class)

    @staticmethod
    def why_not(cfg: Any) -> str | None:  # noqa: ARG004
        """The option of an SAE's config that the engine does not do, in words; None if there is
        none."""
        return None

    @classmethod
    def why_impossible(
        cls,
        sae: Any,  # noqa: ARG003
        knobs: Sequence[float],  # noqa: ARG003
        batch_size: int,  # noqa: ARG003
    ) -> str | None:
        """What nobody could train an SAE with, sae_lens included, in words; None if nothing is.

        Args:
            sae: of this architecture.
            knobs: the ends between which its coefficient or k moves.
            batch_size: samples per batch.
        """
        return None

    @staticmethod
    def coefficient_unit(variance: float, l0: float) -> float:
        """The order of the coefficient at which latents are worth their penalty.

        A latent explains about variance / L0 where L0 of them are active, with an activation of
        about the root of that. Here the penalty is one of activations (L1); an architecture that
        counts latents overrides this.

        Args:
            variance: of the (scaled) activations, summed over d_in.
            l0: latents that are to be active.
        """
        return math.sqrt(variance / l0)

    @staticmethod
    def parameter_shapes(d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of one SAE's parameters."""
        return {
            "W_enc": (d_in, d_sae),
            "W_dec": (d_sae, d_in),
            "b_enc": (d_sae,),
            "b_dec": (d_in,),
        }

    @staticmethod
    @abstractmethod
    def stack_key(cfg: Any) -> tuple[object, ...]:
        """What SAEs must have in common to be stepped as one, beyond their shapes."""

    @staticmethod
    @abstractmethod
    def bytes_per_sae(batch_size: int, d_in: int, d_sae: int) -> int:
        """Memory that one SAE's buffers take in a step."""

    def __init__(self, cfgs: Sequence[Any], device: torch.device) -> None:
        cfg = cfgs[0]
        self.n_saes = len(cfgs)
        self.apply_b_dec_to_input: bool = cfg.apply_b_dec_to_input
        self.d_in: int = cfg.d_in
        self.d_sae: int = cfg.d_sae
        self.device = device

    def column(self, values: Sequence[float]) -> Float[Tensor, "C 1"]:
        """A value per SAE."""
        return torch.tensor(values, dtype=torch.float32, device=self.device).unsqueeze(1)

    @property
    def uses_dead_latents(self) -> bool:
        """Whether a step depends on which latents are dead."""
        return False

    @abstractmethod
    def workspace(self, batch_size: int) -> Workspace:
        """The buffers of one step; reused, so that they stay in cache."""

    @abstractmethod
    def step(
        self,
        x: Float[Tensor, "B D"],
        params: ParameterViews,
        buffers: Buffers,
        grads: ParameterViews,
        knob: Tensor,
        dead: Bool[Tensor, "C H"] | None,
        ws: Any,
    ) -> Float[Tensor, "C H"]:
        """Forward and backward on one batch.

        No value may be read back from the device.

        Args:
            x: activations, already scaled.
            params: left as they are, but for what sae_lens itself does to them before a step.
            buffers: moved on in place.
            grads: overwritten with B/2 times the gradient of each SAE's own loss. The factor is
                left to the clipping, which multiplies every gradient anyway.
            knob: the coefficient (float32) or k (float64) of each SAE at this step, [C, 1].
            dead: latents that have not fired for long, before this step; needed if
                `uses_dead_latents`.
            ws: overwritten; `losses` reads it.
        Returns:
            How many samples of the batch each latent fired on.
        """

    @abstractmethod
    def losses(
        self,
        x: Float[Tensor, "B D"],
        params: ParameterViews,
        knob: Tensor,
        dead: Bool[Tensor, "C H"] | None,
        ws: Any,
    ) -> dict[str, Float[Tensor, " C"]]:
        """The losses of the forward pass that `ws` holds, by sae_lens' names.

        To be called after `step` and before the parameters are updated. `mse_loss` is summed over
        d_in and averaged over the batch.
        """

    def encoder_bias(self, params: ParameterViews, bias: str = "b_enc") -> Float[Tensor, "C H"]:
        """The encoder's bias with `b_dec` folded in, so that all SAEs read the same x."""
        if not self.apply_b_dec_to_input:
            return params[bias]
        shift = products.times_vector(params["W_enc"].transpose(1, 2), params["b_dec"])
        return params[bias] - shift

    def unfold_encoder_bias(
        self, params: ParameterViews, grads: ParameterViews, bias_grad: Float[Tensor, "C H"]
    ) -> None:
        """Pass the gradient of a folded bias on to `W_enc` and `b_dec`."""
        if not self.apply_b_dec_to_input:
            return
        b_dec = params["b_dec"]
        grads["W_enc"].sub_(b_dec.unsqueeze(2) * bias_grad.unsqueeze(1))
        grads["b_dec"].sub_(products.times_vector(params["W_enc"], bias_grad))
