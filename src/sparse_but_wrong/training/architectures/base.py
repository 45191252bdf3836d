"""What the engine needs to know of an architecture to step a stack of its SAEs.

Axes: C SAEs stepped together, B batch, D d_in, H d_sae.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    import sae_lens

Parameters = Mapping[str, Tensor]
"""One tensor [C, …] per parameter, by sae_lens' name."""
Buffers = dict[str, Float[Tensor, " C"]]
"""Scalars of each SAE that training moves though they are no parameters."""


@dataclass(frozen=True)
class Inputs:
    """What a forward pass reads besides the parameters."""

    x: Float[Tensor, "B D"]
    """Activations, already scaled."""
    sparsity: Float[Tensor, "C 1"]
    """The coefficient (float32) or k (float64) of each SAE at this step."""
    dead: Bool[Tensor, "C H"] | None = None
    """Latents that are dead before this step; None if the losses do not depend on them."""
    buffers: Buffers = field(default_factory=dict)
    """As the last step left them."""


@dataclass(frozen=True)
class Forward:
    """A forward pass; its losses carry the gradient."""

    losses: dict[str, Float[Tensor, " C"]]
    """By sae_lens' names; their sum is what an SAE minimises."""
    acts: Float[Tensor, "C B H"]
    """Feature activations, detached; positive where a latent is active."""
    buffers: Buffers = field(default_factory=dict)
    """New values of the buffers that training moves."""


@dataclass(frozen=True)
class Compiled:
    """What the compiled step is told of an SAE's config."""

    config: Mapping[str, int]
    """Options that the SAEs of a stack share: fields of `compiled_step.Config`."""
    sae: Mapping[str, float]
    """Options of this SAE: fields of `compiled_step.Sae`."""
    losses: Mapping[str, str]
    """sae_lens' name of each loss, and where the compiled step reports it."""


class Architecture(ABC):
    """The losses of a stack of SAEs that share shapes and discrete options; autograd does the rest.

    What may differ between the SAEs of a stack is held as [C, 1, 1].
    """

    sae_class: ClassVar[str]
    """sae_lens' name of the training SAEs that it steps."""
    sparsity: ClassVar[str]
    """What sets an SAE's sparsity: the name of its coefficient in sae_lens, or ``k``."""
    buffers: ClassVar[dict[str, torch.dtype]] = {}
    """Scalar buffers of the sae_lens class that training moves."""
    uses_dead_latents: bool = False
    """Whether the losses depend on which latents are dead."""

    @classmethod
    def handles(cls, sae: sae_lens.TrainingSAE[Any]) -> bool:
        """Whether an SAE is exactly of sae_lens' class for this (a subclass may differ)."""
        import sae_lens

        return type(sae) is getattr(sae_lens, cls.sae_class)

    @staticmethod
    def why_not(cfg: Any) -> str | None:  # noqa: ARG004
        """The option that only sae_lens' own trainer supports, in words."""
        return None

    @classmethod
    def why_impossible(
        cls,
        sae: Any,  # noqa: ARG003
        values: Sequence[float],  # noqa: ARG003
        batch_size: int,  # noqa: ARG003
    ) -> str | None:
        """What nobody could train the SAE with, in words.

        Args:
            sae: of this architecture.
            values: the ends between which its coefficient or k moves.
            batch_size: samples per batch.
        """
        return None

    @staticmethod
    def coefficient_unit(variance: float, l0: float) -> float:
        """The order of the coefficient at which `l0` latents are worth their penalty.

        Of the activations' variance, summed over d_in, a latent explains about variance / l0, with
        an activation of about the root of that; here the penalty is one of activations (L1).
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
    def stack_key(cfg: Any) -> tuple[object, ...]:  # noqa: ARG004
        """What SAEs must share to be stepped as one, beyond shapes."""
        return ()

    @staticmethod
    def compiled(cfg: Any) -> Compiled | None:  # noqa: ARG004
        """The options of an SAE for the compiled step; None if it has no such step."""
        return None

    def __init__(self, cfgs: Sequence[Any], device: torch.device) -> None:
        self.cfg = cfgs[0]
        self.cfgs = cfgs
        self.device = device

    def per_sae(self, name: str, missing: float = 0.0) -> Float[Tensor, "C 1 1"]:
        """A field of each SAE's config."""
        values = [float(getattr(cfg, name) or missing) for cfg in self.cfgs]
        return torch.tensor(values, device=self.device).view(-1, 1, 1)

    @abstractmethod
    def forward(self, inputs: Inputs, p: Parameters) -> Forward:
        """The losses on one batch; no value may be read back from a GPU.

        Parameters are left as they are, but for what sae_lens itself does to them before a step.
        """

    def encode(
        self, x: Float[Tensor, "B D"], p: Parameters, bias: str = "b_enc"
    ) -> Float[Tensor, "C B H"]:
        """Pre-activations; b_dec is folded into the bias, so that all SAEs read the same x."""
        folded = p[bias].unsqueeze(1)
        if self.cfg.apply_b_dec_to_input:
            folded = folded - torch.bmm(p["b_dec"].unsqueeze(1), p["W_enc"])
        return torch.baddbmm(folded, x.expand(len(folded), -1, -1), p["W_enc"])


def residual(
    x: Float[Tensor, "B D"], acts: Float[Tensor, "C B W"], p: Parameters
) -> Float[Tensor, "C B D"]:
    """x̂ − x."""
    return torch.baddbmm(p["b_dec"].unsqueeze(1) - x, acts, p["W_dec"])


def mse(error: Float[Tensor, "C B D"]) -> Float[Tensor, " C"]:
    """Summed over d_in, averaged over the batch, as sae_lens' mse_loss."""
    return error.square().sum((1, 2)) / error.shape[1]


def decoder_norm(p: Parameters) -> Float[Tensor, "C 1 H"]:
    """The length of each latent's decoder row."""
    return torch.linalg.vector_norm(p["W_dec"], dim=2).unsqueeze(1)


def above(values: Tensor, limit: Tensor | float) -> Tensor:
    """1.0 where values exceed a limit that needs no gradient, else 0.0.

    As floats: on the CPU a product with a mask of booleans takes six times as long.
    """
    return torch.gt(values.detach(), limit, out=torch.empty_like(values))  # pyright: ignore
