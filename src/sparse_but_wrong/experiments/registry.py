"""The experiments and the analyses by name."""

from __future__ import annotations

from sparse_but_wrong.experiments.analysis import Analysis
from sparse_but_wrong.experiments.batchtopk import BATCHTOPK, BatchTopK
from sparse_but_wrong.experiments.cheating import CHEATING, Cheating
from sparse_but_wrong.experiments.ground_truth_init import GROUND_TRUTH_INIT, GroundTruthInit
from sparse_but_wrong.experiments.intuition import INTUITION, Intuition
from sparse_but_wrong.experiments.jumprelu import JUMPRELU, JumpReLU
from sparse_but_wrong.experiments.low_l0 import LOW_L0, LowL0
from sparse_but_wrong.experiments.published_l0 import PUBLISHED_L0, PublishedL0
from sparse_but_wrong.experiments.small import SMALL, SUPERPOSITION, Small, Superposition
from sparse_but_wrong.experiments.strength import (
    CORRELATION_STRENGTH,
    L0_STRENGTH,
    CorrelationStrength,
    L0Strength,
)
from sparse_but_wrong.experiments.sweep import Sweep
from sparse_but_wrong.experiments.transition import TRANSITION, Transition
from sparse_but_wrong.experiments.unknown import UnknownL0
from sparse_but_wrong.runs.spec import ExperimentSpec

EXPERIMENTS: dict[str, ExperimentSpec] = {
    spec.name: spec
    for spec in (
        INTUITION,
        SMALL,
        CORRELATION_STRENGTH,
        L0_STRENGTH,
        SUPERPOSITION,
        LOW_L0,
        CHEATING,
        GROUND_TRUTH_INIT,
        BATCHTOPK,
        JUMPRELU,
        TRANSITION,
        PUBLISHED_L0,
    )
}
"""In the order of the paper, which is also that of `sbw paper`."""

ANALYSES: dict[str, Analysis] = {
    "sweep": Sweep(),
    "activations": UnknownL0(),
    "jumprelu": JumpReLU(),
    "small": Small(),
    "correlation-strength": CorrelationStrength(),
    "l0-strength": L0Strength(),
    "superposition": Superposition(),
    "low-l0": LowL0(),
    "cheating": Cheating(),
    "ground-truth-init": GroundTruthInit(),
    "batchtopk": BatchTopK(),
    "transition": Transition(),
    "intuition": Intuition(),
    "published-l0": PublishedL0(),
}
"""What a spec's `analysis` may be."""


def get_experiment(name: str) -> ExperimentSpec:
    """An experiment by name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {name!r}; there is: {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[name]


def get_analysis(name: str) -> Analysis:
    """An analysis by name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in ANALYSES:
        raise ValueError(f"there is no analysis {name!r}; there is: {', '.join(ANALYSES)}.")
    return ANALYSES[name]
