"""A stack or two of every architecture, with the options that branch the compiled loops."""

from __future__ import annotations

from typing import Any

from sae_lens import TrainingSAE

from tests.training import makers, oracle, topk_family


def _jumprelu(**options: Any) -> list[TrainingSAE[Any]]:
    return [oracle.make_sae(seed, l0_coefficient=0.2 + seed, **options) for seed in range(2)]


def _other(architecture: str, **options: Any) -> list[TrainingSAE[Any]]:
    return [makers.make_sae(architecture, seed, **options) for seed in range(2)]


def _topk(architecture: str, **options: Any) -> list[TrainingSAE[Any]]:
    # The few that stay dead have the auxiliary loss to reconstruct what is left.
    return [topk_family.make_sae(architecture, seed, k=2 + seed, **options) for seed in range(2)]


STACKS = {
    "jumprelu, tanh": _jumprelu,
    "jumprelu, step": lambda: _jumprelu(
        jumprelu_sparsity_loss_mode="step", jumprelu_ste_to_input=True
    ),
    "jumprelu, quadratic": lambda: _jumprelu(
        jumprelu_sparsity_loss_mode="quadratic", target_l0=2.5, pre_act_loss_coefficient=0.05
    ),
    "standard": lambda: _other("standard", l1_coefficient=0.1),
    "gated": lambda: _other("gated", l1_coefficient=0.1),
    "topk": lambda: _topk("topk"),
    "batchtopk": lambda: _topk("batchtopk"),
    "batchtopk, wide": lambda: _topk("batchtopk", d_sae=40),
    "matryoshka": lambda: _topk("matryoshka", use_matryoshka_aux_loss=True),
}
