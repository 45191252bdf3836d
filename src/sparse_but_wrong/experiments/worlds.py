"""The worlds of the paper's toy experiments, and the SAEs trained on them.

Source of all of them: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, and its notebooks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sparse_but_wrong.runs.spec import (
    ONLY_WORLD,
    CorrelatedPairs,
    CorrelationSpec,
    ExperimentSpec,
    SAESpec,
    WorldSpec,
)
from sparse_but_wrong.training.options import TrainOptions

N_FEATURES, N_SMALL = 50, 5

FIFTY_FEATURES = WorldSpec(
    d_in=100,
    firing_probabilities=tuple(
        round(0.345 * (N_FEATURES - i - 1) / N_FEATURES + 0.05, 4) for i in range(N_FEATURES)
    ),
    std_firing_magnitudes=(0.15,) * N_FEATURES,
    mean_firing_magnitudes=(1.0,) * N_FEATURES,
    correlation=CorrelationSpec(seed=42, correlation_strength_range=(0.3, 0.9)),
)
"""50 correlated features in 100 dimensions, 10.96 of them active at a time."""

BUDGET = TrainOptions(total_training_samples=15_000_000, train_batch_size_samples=1024, lr=3e-4)
"""The published budget of every toy SAE."""


def on_fifty_features(
    name: str,
    title: str,
    claim: str,
    saes: Iterable[SAESpec] = (),
    worlds: Iterable[str] = (ONLY_WORLD,),
    **fields: Any,
) -> ExperimentSpec:
    """An experiment on worlds of 50 features, with an analysis of its own name.

    Args:
        fields: others of the `ExperimentSpec`.
    """
    of_names = dict.fromkeys(worlds, FIFTY_FEATURES)
    return ExperimentSpec(
        name, title, claim, of_names, tuple(saes), BUDGET, analysis=name, **fields
    )


def small_world(correlation: float, *, d_in: int = 20, ortho_num_steps: int = 1000) -> WorldSpec:
    """5 features, 2 of them active at a time; the first is correlated with all others.

    Args:
        correlation: latent correlation of feature 0 with each other feature, in [−0.5, 0.5].
        d_in: width of the activations.
        ortho_num_steps: fewer leave superposition noise between the directions.
    """
    pairs = tuple((0, i, correlation) for i in range(1, N_SMALL)) if correlation else ()
    return WorldSpec(
        d_in=d_in,
        firing_probabilities=(0.4,) * N_SMALL,
        std_firing_magnitudes=(0.15,) * N_SMALL,
        mean_firing_magnitudes=(1.0,) * N_SMALL,
        correlation=CorrelatedPairs(pairs) if pairs else None,
        ortho_num_steps=ortho_num_steps,
    )


def batchtopk(sae_id: str, k: float | int, d_sae: int = N_FEATURES, **fields: Any) -> SAESpec:
    """A BatchTopK SAE of the toy experiments, with k as its factor unless `fields`, others of the
    `SAESpec`, say otherwise."""
    config = {"d_sae": d_sae, "k": k, "normalize_activations": "expected_average_only_in"}
    return SAESpec(sae_id, "batchtopk", config, **{"factors": {"k": k}, **fields})
