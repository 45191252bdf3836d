"""Which SAEs the compiled loops can step, and what they must be told of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sparse_but_wrong.training.architectures.architecture import Architecture
from sparse_but_wrong.training.architectures.batchtopk import BatchTopK
from sparse_but_wrong.training.architectures.enhanced_batchtopk import EnhancedBatchTopK
from sparse_but_wrong.training.architectures.gated import Gated
from sparse_but_wrong.training.architectures.jumprelu import JumpReLU
from sparse_but_wrong.training.architectures.matryoshka import Matryoshka
from sparse_but_wrong.training.architectures.standard import Standard
from sparse_but_wrong.training.architectures.topk import TopK
from sparse_but_wrong.training.native.bindings import ARCHITECTURES, MAX_LEVELS, MODES


@dataclass(frozen=True)
class Translation:
    """A stack's options in the words of kernels.cpp."""

    config: Mapping[str, int]
    """Fields of `bindings.Config` that follow from the options SAEs of a stack share."""

    sae: Callable[[Any], Mapping[str, float]]
    """Fields of `bindings.Sae` that follow from an SAE's own config."""

    losses: Mapping[str, str | int]
    """Where each loss is found: sae_lens' name of it, and a figure's name or an inner level."""

    widths: tuple[int, ...] = ()
    """Of the levels of a Matryoshka SAE, the whole one included."""


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


def _topk(cfg: Any) -> Translation:
    return Translation(
        config={
            "architecture": ARCHITECTURES.index("topk"),
            "rescale": cfg.rescale_acts_by_decoder_norm,
        },
        sae=lambda cfg: {"aux_coefficient": cfg.aux_loss_coefficient},
        losses={"mse_loss": "mse", "auxiliary_reconstruction_loss": "aux"},
    )


def _batchtopk(cfg: Any) -> Translation:
    like_topk = _topk(cfg)
    return replace(
        like_topk,
        config={**like_topk.config, "architecture": ARCHITECTURES.index("batchtopk")},
        sae=lambda cfg: {
            **like_topk.sae(cfg),
            "topk_threshold_lr": cfg.topk_threshold_lr,
        },
    )


def _matryoshka(cfg: Any) -> Translation | None:
    widths = tuple(cfg.matryoshka_widths)
    if len(widths) > MAX_LEVELS:
        return None
    like_batchtopk = _batchtopk(cfg)
    return replace(
        like_batchtopk,
        config={
            **like_batchtopk.config,
            "n_levels": len(widths),
            "matryoshka_aux": cfg.use_matryoshka_aux_loss,
        },
        losses={
            **like_batchtopk.losses,
            **{f"inner_mse_loss_{width}": level for level, width in enumerate(widths[:-1])},
        },
        widths=widths,
    )


_TRANSLATORS: dict[type[Architecture], Callable[[Any], Translation | None]] = {
    JumpReLU: _jumprelu,
    Standard: _standard,
    Gated: _gated,
    TopK: _topk,
    BatchTopK: _batchtopk,
    EnhancedBatchTopK: _batchtopk,
    Matryoshka: _matryoshka,
}
