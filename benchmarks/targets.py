"""What the engine is meant to reach. Printed beside what it reached; nothing is asserted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.measure import ALONE, BESIDE, ENGINE, VMAP, Measured

# Two sweeps never take the same time twice; a turn's noise on an idle machine is about this large.
NOISE = 0.05


@dataclass(frozen=True)
class Target:
    """A number to reach in one group of sweeps."""

    work: str
    world: str
    architecture: str
    figure: Callable[[Measured], float | None]
    bound: float
    at_most: bool = False
    mark: float | None = None
    """Beyond the target: the number to beat."""

    @property
    def wanted(self) -> str:
        """The target in words."""
        sign = "≤" if self.at_most else "≥"
        mark = "" if self.mark is None else f" (mark {self.mark:g})"
        return f"{sign} {self.bound:g}{mark}"

    def measured(self, results: Sequence[Measured]) -> float | None:
        """The figure in these results; None if it was not measured."""
        for result in results:
            if (result.group.world, result.group.architecture) == (self.world, self.architecture):
                return self.figure(result)
        return None

    def verdict(self, value: float | None) -> str:
        """``met``, ``missed`` or ``not measured``."""
        if value is None:
            return "not measured"
        return "met" if (value <= self.bound if self.at_most else value >= self.bound) else "missed"


def _speedup(n_saes: int, against: str) -> Callable[[Measured], float | None]:
    return lambda result: result.speedup(n_saes, against)


def _fraction_of_floor(n_saes: int) -> Callable[[Measured], float | None]:
    def figure(result: Measured) -> float | None:
        timing = result.of(ENGINE, n_saes)
        return None if timing is None else result.fraction_of_floor(timing)

    return figure


def _growth(small: int, large: int) -> Callable[[Measured], float | None]:
    def figure(result: Measured) -> float | None:
        before, after = result.of(ENGINE, small), result.of(ENGINE, large)
        if before is None or after is None:
            return None
        return after.seconds_per_sae_step / before.seconds_per_sae_step

    return figure


_NOTEBOOK = "12 JumpReLU SAEs of the notebook"
_BATCHTOPK = "125 BatchTopK SAEs (k = 1…25 × 5 seeds)"
_GROWTH = "time per SAE-step, S = 125 over S = 12"

CPU_TARGETS = (
    Target(f"{_NOTEBOOK}, × (a)", "toy", "jumprelu", _speedup(12, ALONE), 16, mark=20),
    Target(f"{_NOTEBOOK}, × (b)", "toy", "jumprelu", _speedup(12, BESIDE), 5),
    Target(f"{_NOTEBOOK}, × (c)", "toy", "jumprelu", _speedup(12, VMAP), 2.5),
    Target(f"{_NOTEBOOK}, of the floor", "toy", "jumprelu", _fraction_of_floor(12), 0.5),
    Target(f"{_BATCHTOPK}, × (a)", "toy", "batchtopk", _speedup(125, ALONE), 16),
    Target(f"JumpReLU: {_GROWTH}", "toy", "jumprelu", _growth(12, 125), 1 + NOISE, at_most=True),
    Target(f"BatchTopK: {_GROWTH}", "toy", "batchtopk", _growth(12, 125), 1 + NOISE, at_most=True),
    Target("4 JumpReLU SAEs, mid-size, × (b)", "mid-size", "jumprelu", _speedup(4, BESIDE), 1.5),
)

CUDA_TARGETS = (
    Target(f"{_NOTEBOOK}, × (a)", "toy", "jumprelu", _speedup(12, ALONE), 60),
    Target(f"{_BATCHTOPK}, × (a)", "toy", "batchtopk", _speedup(125, ALONE), 150),
)
