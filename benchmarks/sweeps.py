"""The SAEs that are trained: for each architecture a sweep of its sparsity setting, over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from benchmarks.worlds import LLM_D_SAE, LLM_L0
from sparse_but_wrong.experiments.registry import JUMPRELU, PUBLISHED_COEFFICIENTS
from sparse_but_wrong.runs.spec import SAESpec

_T = TypeVar("_T")

_NORMALIZED = {"normalize_activations": "expected_average_only_in"}
# Their L0 in the toy world reaches from the truth, about 11, down to 3.
_L1_COEFFICIENTS = (0.3, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0)
_KS = tuple(range(1, 26))  # of the paper's BatchTopK sweep, which takes five seeds of each
# About LLM_L0 latents of unit length fire at it on activations of norm √d_in, as they come from
# `expected_average_only_in`.
_LLM_JUMPRELU = {"decoder_init_norm": 1.0, "jumprelu_init_threshold": 1.9}


def _k(k: float, d_sae: int) -> float:
    """At the size of a language model's SAEs all have one k, and differ in their seeds only."""
    return float(LLM_L0 if d_sae >= LLM_D_SAE else k)


# Of each architecture the values of the setting that decides the L0, in order, and what one of them
# and d_sae make of the config.
SWEEPS: dict[str, tuple[Sequence[float], Callable[[float, int], dict[str, Any]]]] = {
    "standard": (_L1_COEFFICIENTS, lambda c, _: {"l1_coefficient": c}),
    "gated": (_L1_COEFFICIENTS, lambda c, _: {"l1_coefficient": c}),
    "topk": (_KS, lambda k, d_sae: {"k": int(_k(k, d_sae))}),
    "batchtopk": (_KS, lambda k, d_sae: {"k": _k(k, d_sae)}),
    "matryoshka_batchtopk": (
        _KS,
        lambda k, d_sae: {
            "k": _k(k, d_sae),
            "matryoshka_widths": [d_sae // 4, d_sae // 2, d_sae],
        },
    ),
    "jumprelu": (
        PUBLISHED_COEFFICIENTS,
        lambda c, d_sae: {
            **JUMPRELU.saes[0].config,
            **(_LLM_JUMPRELU if d_sae >= LLM_D_SAE else {}),
            "l0_coefficient": c,
        },
    ),
}


def make_sweep(architecture: str, n_saes: int, d_sae: int) -> list[SAESpec]:
    """The specs of a sweep of so many SAEs, in order of the setting.

    A sweep of fewer SAEs than there are values takes some evenly; a larger one more seeds of each.
    """
    values, config = SWEEPS[architecture]
    chosen = sorted((value, seed) for seed in range(-(-n_saes // len(values))) for value in values)
    return [
        SAESpec(
            sae_id=f"{architecture}_{value:g}_seed_{seed}",
            architecture=architecture,
            config={**_NORMALIZED, **config(value, d_sae), "d_sae": d_sae},
        )
        for value, seed in evenly(chosen, n_saes)
    ]


def evenly(items: Sequence[_T], n: int) -> list[_T]:
    """At most n of the items, spread evenly and to no side."""
    n = min(n, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n)]
