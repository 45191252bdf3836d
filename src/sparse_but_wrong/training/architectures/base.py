"""What the engine needs to know of an architecture to step a stack of its SAEs.

Axes: C SAEs stepped together, B batch, D d_in, H d_sae.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    import sae_lens

Parameters = Mapping[str, Tensor]
"""One tensor [C, …] per parameter, by sae_lens' name."""


class Inputs(NamedTuple):
    """What a forward pass reads besides the parameters."""

    x: Float[Tensor, "B D"]
    """Activations, already scaled."""
    sparsity: Float[Tensor, "C 1"]
    """The coefficient (float32) or k (float64) of each SAE at this step."""
    dead: Bool[Tensor, "C H"] | None = None
    """Latents that are dead before this step; None if the losses do not depend on them."""
    buffers: Parameters = {}  # noqa: RUF012
    """As the last step left them."""


class Forward(NamedTuple):
    """A forward pass; its losses carry the gradient."""

    losses: dict[str, Float[Tensor, " C"]]
    """By sae_lens' names; their sum is what an SAE minimises."""
    acts: Float[Tensor, "C B H"]
    """Feature activations, detached; positive where a latent is active."""
    buffers: Parameters = {}  # noqa: RUF012
    """New values of the buffers that training moves."""


class Compiled(NamedTuple):
    """What the compiled step is told of an SAE's config."""

    options: Mapping[str, float]
    """Fields of the structures that `compiled_step` hands over."""
    losses: Sequence[str]
    """Those that it reports, by sae_lens' names; first the reconstruction loss of each level."""
    widths: Sequence[int]
    """How many latents are in each of the nested levels, the last of which is the whole SAE."""


class Architecture(ABC):
    """The losses of a stack of SAEs that share shapes and discrete options; autograd does the rest.

    What may differ between the SAEs of a stack is held as [C, 1, 1].
    """

    sae_classes: ClassVar[tuple[str, ...]]
    """The classes of training SAEs that it steps, as ``module:name``; a subclass may differ."""
    sparsity: ClassVar[str]
    """What sets an SAE's sparsity: the name of its coefficient in sae_lens, or ``k``."""
    parameters: ClassVar[tuple[str, ...]] = ("W_enc", "W_dec", "b_enc", "b_dec")
    buffers: ClassVar[tuple[str, ...]] = ()
    """Scalars of each SAE, float64, that training moves though they are no parameters."""
    policy: ClassVar[int | None] = None
    """Its number in kernels.cpp; None if it has no compiled step."""
    uses_dead_latents: bool = False
    """Whether the losses depend on which latents are dead."""

    @classmethod
    def handles(cls, sae: sae_lens.TrainingSAE[Any]) -> bool:
        """Whether an SAE is of exactly one of its classes."""
        return type(sae) in map(pkgutil.resolve_name, cls.sae_classes)

    @staticmethod
    def why_not(cfg: Any) -> str | None:  # noqa: ARG004
        """The option that only sae_lens' own trainer supports, in words."""
        return None

    @classmethod
    def why_impossible(cls, sae: Any, values: Sequence[float], batch_size: int) -> str | None:  # noqa: ARG003
        """What nobody could train the SAE with, in words.

        `values` are the ends between which its coefficient or k moves.
        """
        return None

    @staticmethod
    def coefficient_unit(
        variance: Float[Tensor, ""], l0: Float[Tensor, " S"]
    ) -> Float[Tensor, " S"]:
        """The order of the coefficient at which `l0` latents are worth their penalty.

        Of the activations' variance, summed over d_in, a latent explains about variance / l0, with
        an activation of about the root of that; here the penalty is one of activations (L1).
        """
        return (variance / l0).sqrt()

    @staticmethod
    def stack_key(cfg: Any) -> tuple[object, ...]:  # noqa: ARG004
        """What SAEs must share to be stepped as one, beyond shapes."""
        return ()

    @classmethod
    def compiled(cls, cfg: Any) -> Compiled | None:  # noqa: ARG003
        """What the compiled step is told of an SAE; None if it has no such step."""
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
        return product(folded, x.expand(len(folded), -1, -1), p["W_enc"])


def residual(
    x: Float[Tensor, "B D"], acts: Float[Tensor, "C B W"], p: Parameters
) -> Float[Tensor, "C B D"]:
    """x̂ − x."""
    return product(p["b_dec"].unsqueeze(1) - x, acts, p["W_dec"])


def product(
    plus: Float[Tensor, "C _B N"], a: Float[Tensor, "C B M"], b: Float[Tensor, "C M N"]
) -> Float[Tensor, "C B N"]:
    """a @ b + plus in float32, also where autocast takes the product in bfloat16."""
    if torch.is_autocast_enabled(a.device.type):
        return torch.bmm(a, b).float() + plus
    return torch.baddbmm(plus, a, b)


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
