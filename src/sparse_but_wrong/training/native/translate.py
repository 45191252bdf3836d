"""Which SAEs the compiled loops can step, and what they must be told of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sparse_but_wrong.training.architectures.architecture import Architecture
from sparse_but_wrong.training.architectures.gated import Gated
from sparse_but_wrong.training.architectures.jumprelu import JumpReLU
from sparse_but_wrong.training.architectures.standard import Standard
from sparse_but_wrong.training.native.bindings import ARCHITECTURES, MODES


@dataclass(frozen=True)
class Translation:
    """A stack's options in the words of kernels.cpp."""

    config: Mapping[str, int]
    """Fields of `bindings.Config` that follow from the options SAEs of a stack share."""

    sae: Callable[[Any], Mapping[str, float]]
    """Fields of `bindings.Sae` that follow from an SAE's own config."""

    losses: Mapping[str, str | int]
    """Where each loss is found: sae_lens' name of it, and a figure's name or an inner level."""


def translate(architecture: type[Architecture], cfg: Any) -> Translation | None:
    """What the compiled loops must be told of a stack of SAEs like this one.

    Returns:
        None if they do not know the architecture, or an option of it.
    """
    translator = _TRANSLATORS.get(architecture)
    return None if translator is None else translator(cfg)


def _jumprelu(cfg: Any) -> Translation:
    losses: dict[str, str | int] = {"mse_loss": "mse", "l0_loss": "sparsity"}
    if cfg.pre_act_loss_coefficient is not None:
        losses["pre_act_loss"] = "pre_act"
    return Translation(
        config={
            "architecture": ARCHITECTURES.index("jumprelu"),
            "mode": MODES.index(cfg.jumprelu_sparsity_loss_mode),
            "ste_to_input": cfg.jumprelu_ste_to_input,
            "has_pre_act_loss": cfg.pre_act_loss_coefficient is not None,
        },
        sae=lambda cfg: {
            "bandwidth": cfg.jumprelu_bandwidth,
            "tanh_scale": cfg.jumprelu_tanh_scale,
            "target_l0": cfg.target_l0 or 1.0,
            "pre_act_coefficient": cfg.pre_act_loss_coefficient or 0.0,
        },
        losses=losses,
    )


def _standard(cfg: Any) -> Translation | None:
    if cfg.lp_norm != 1:
        return None
    return Translation(
        config={"architecture": ARCHITECTURES.index("standard")},
        sae=lambda _: {},
        losses={"mse_loss": "mse", "l1_loss": "sparsity"},
    )


def _gated(_: Any) -> Translation:
    return Translation(
        config={"architecture": ARCHITECTURES.index("gated")},
        sae=lambda _: {},
        losses={
            "mse_loss": "mse",
            "l1_loss": "sparsity",
            "auxiliary_reconstruction_loss": "aux",
        },
    )


_TRANSLATORS: dict[type[Architecture], Callable[[Any], Translation | None]] = {
    JumpReLU: _jumprelu,
    Standard: _standard,
    Gated: _gated,
}
