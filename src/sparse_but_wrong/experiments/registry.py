"""The experiments by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparse_but_wrong.experiments import jumprelu
from sparse_but_wrong.experiments.spec import ExperimentSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sparse_but_wrong.experiments.runner import Results


@dataclass(frozen=True)
class Experiment:
    """A spec, and how its results are drawn."""

    spec: ExperimentSpec
    draw: Callable[[Results], dict[str, Figure]]
    """Figures by their path below the run's `plots` folder, without suffix."""


EXPERIMENTS: dict[str, Experiment] = {
    jumprelu.JUMPRELU.name: Experiment(jumprelu.JUMPRELU, jumprelu.draw),
}


def get_experiment(name: str) -> Experiment:
    """An experiment by name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {name!r}; there is: {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[name]
