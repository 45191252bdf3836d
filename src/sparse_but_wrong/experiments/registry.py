"""The experiments and the analyses by name."""

from __future__ import annotations

from sparse_but_wrong.experiments.analysis import Analysis
from sparse_but_wrong.experiments.batchtopk import BATCHTOPK, BatchTopK
from sparse_but_wrong.experiments.intuition import INTUITION, Intuition
from sparse_but_wrong.experiments.low_l0 import LOW_L0, LowL0
from sparse_but_wrong.experiments.mixing import (
    Mixing,
    draw_by_correlation,
    draw_by_k,
    draw_components,
    judge_correlations,
    judge_l0s,
    judge_signs,
    judge_superposition,
)
from sparse_but_wrong.experiments.published_l0 import PUBLISHED_L0, PublishedL0
from sparse_but_wrong.experiments.small import (
    CORRELATION_STRENGTH,
    L0_STRENGTH,
    SMALL,
    SUPERPOSITION,
)
from sparse_but_wrong.experiments.sweep import JUMPRELU, Activations, JumpReLU, Sweep
from sparse_but_wrong.experiments.true_features import (
    CHEATING,
    GROUND_TRUTH_INIT,
    TRANSITION,
    Cheating,
    GroundTruthInit,
    Transition,
)
from sparse_but_wrong.runs.spec import ExperimentSpec

_BUILT_IN: tuple[tuple[ExperimentSpec, Analysis], ...] = (
    (INTUITION, Intuition()),
    (SMALL, Mixing(judge_signs, draw_components)),
    (CORRELATION_STRENGTH, Mixing(judge_correlations, draw_by_correlation)),
    (L0_STRENGTH, Mixing(judge_l0s, draw_by_k)),
    (SUPERPOSITION, Mixing(judge_superposition, draw_components)),
    (LOW_L0, LowL0()),
    (CHEATING, Cheating()),
    (GROUND_TRUTH_INIT, GroundTruthInit()),
    (BATCHTOPK, BatchTopK()),
    (JUMPRELU, JumpReLU()),
    (TRANSITION, Transition()),
    (PUBLISHED_L0, PublishedL0()),
)
"""In the order of the paper, which is also that of `sbw paper`."""

EXPERIMENTS: dict[str, ExperimentSpec] = {spec.name: spec for spec, _ in _BUILT_IN}

ANALYSES: dict[str, Analysis] = {
    "sweep": Sweep(),
    "activations": Activations(),
    **{spec.analysis: analysis for spec, analysis in _BUILT_IN},
}
"""What a spec's `analysis` may be; in users' own, only the first two."""


def get_experiment(name: str) -> ExperimentSpec:
    """An experiment by name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"Unknown experiment {name!r}. Available: {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[name]


def get_analysis(name: str) -> Analysis:
    """An analysis by name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in ANALYSES:
        raise ValueError(f"Unknown analysis {name!r}. Available: {', '.join(ANALYSES)}.")
    return ANALYSES[name]
