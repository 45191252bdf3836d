"""The SAEs that are trained: for each architecture a sweep of its sparsity setting, over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sparse_but_wrong.experiments.registry import JUMPRELU, PUBLISHED_COEFFICIENTS
from sparse_but_wrong.runs.spec import SAESpec

_T = TypeVar("_T")

_NORMALIZED = {"normalize_activations": "expected_average_only_in"}
# Their L0 in the toy world reaches from the truth, about 11, down to 3.
_L1_COEFFICIENTS = (0.3, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0)
_KS = tuple(range(1, 26))  # of the paper's BatchTopK sweep, which takes five seeds of each


def _jumprelu(coefficient: float, d_sae: int) -> dict[str, Any]:
    notebook = dict(JUMPRELU.saes[0].config)
    return {**notebook, "l0_coefficient": coefficient, "d_sae": d_sae}


def _l1(coefficient: float, d_sae: int) -> dict[str, Any]:
    return {**_NORMALIZED, "l1_coefficient": coefficient, "d_sae": d_sae}


def _k(k: float, d_sae: int) -> dict[str, Any]:
    return {**_NORMALIZED, "k": k, "d_sae": d_sae}


def _nested_k(k: float, d_sae: int) -> dict[str, Any]:
    return {**_k(k, d_sae), "matryoshka_widths": [d_sae // 4, d_sae // 2, d_sae]}


@dataclass(frozen=True)
class Sweep:
    """How the SAEs of one architecture differ."""

    values: tuple[float, ...]
    """Of the setting that decides the L0, in order."""

    config: Callable[[float, int], dict[str, Any]]
    """From a value and d_sae to the fields of the SAE's config."""


SWEEPS: dict[str, Sweep] = {
    "standard": Sweep(_L1_COEFFICIENTS, _l1),
    "gated": Sweep(_L1_COEFFICIENTS, _l1),
    "topk": Sweep(_KS, _k),
    "batchtopk": Sweep(tuple(float(k) for k in _KS), _k),
    "matryoshka_batchtopk": Sweep(tuple(float(k) for k in _KS), _nested_k),
    "jumprelu": Sweep(PUBLISHED_COEFFICIENTS, _jumprelu),
}


def make_sweep(architecture: str, n_saes: int, d_sae: int) -> list[SAESpec]:
    """The specs of a sweep of so many SAEs, in order of the setting.

    A sweep of fewer SAEs than there are values takes some evenly; a larger one more seeds of each.
    """
    sweep = SWEEPS[architecture]
    n_values = len(sweep.values)
    chosen = sorted(
        (value, seed) for seed in range(-(-n_saes // n_values)) for value in sweep.values
    )
    return [
        SAESpec(
            sae_id=f"{architecture}_{value:g}_seed_{seed}",
            architecture=architecture,
            config=sweep.config(value, d_sae),
        )
        for value, seed in evenly(chosen, n_saes)
    ]


def evenly(items: Sequence[_T], n: int) -> list[_T]:
    """At most n of the items, spread evenly and to no side."""
    n = min(n, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n)]
