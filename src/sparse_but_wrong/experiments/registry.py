"""The experiments and the analyses by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from sparse_but_wrong.experiments import (
    intuition,
    low_l0,
    published_l0,
    small,
    sweep,
    true_features,
)
from sparse_but_wrong.experiments.analysis import Analysis
from sparse_but_wrong.runs.spec import ExperimentSpec

_Value = TypeVar("_Value")

EXPERIMENTS: dict[str, ExperimentSpec] = {
    spec.name: spec
    for spec in (
        intuition.INTUITION,
        small.SMALL,
        small.CORRELATION_STRENGTH,
        small.L0_STRENGTH,
        small.SUPERPOSITION,
        low_l0.LOW_L0,
        true_features.CHEATING,
        true_features.GROUND_TRUTH_INIT,
        sweep.BATCHTOPK,
        sweep.JUMPRELU,
        true_features.TRANSITION,
        published_l0.PUBLISHED_L0,
    )
}
"""In the order of the paper, which is also that of `sbw paper`."""

ANALYSES: dict[str, Analysis] = {
    name: analysis
    for module in (sweep, intuition, small, low_l0, true_features, published_l0)
    for name, analysis in module.ANALYSES.items()
}
"""What a spec's `analysis` may be; in users' own, only the first two."""


def get_experiment(name: str) -> ExperimentSpec:
    """An experiment by name; ValueError for an unknown one, with a list of those there are."""
    return _named("experiment", name, EXPERIMENTS)


def get_analysis(name: str) -> Analysis:
    """An analysis by name; ValueError likewise."""
    return _named("analysis", name, ANALYSES)


def _named(kind: str, name: str, known: Mapping[str, _Value]) -> _Value:
    if name not in known:
        raise ValueError(f"Unknown {kind} {name!r}. Available: {', '.join(known)}.")
    return known[name]
