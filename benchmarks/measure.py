"""Timing the ways against each other: in one process and in turns, so that all meet the same load.

Load does not slow them alike: the ways that spread each operation over several threads wait for the
slowest of them. So `machine.is_busy` asks first, and the report says it.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from benchmarks import ways
from benchmarks.machine import LARGE, PeakMemory, Products, synchronize
from benchmarks.sweeps import evenly, make_sweep
from benchmarks.worlds import BenchWorld
from sparse_but_wrong.runs.make import make_spec_saes
from sparse_but_wrong.runs.spec import SAESpec
from sparse_but_wrong.training.loop import Training
from sparse_but_wrong.training.options import TrainOptions

ALONE = "(a) sae_lens, one by one"
BESIDE = "(b) MultiSAETrainer"
VMAP = "(c) vmap ensemble"
ENGINE = "this engine"

FULL_STEPS = -(-15_000_000 // 1024)  # the notebook's budget for each SAE
NORM_BATCHES = 1000  # drawn first in the notebook, for each SAE

_TOGETHER = {BESIDE: ways.side_by_side, VMAP: ways.vmap_ensemble, ENGINE: ways.engine}
_VMAP_ARCHITECTURES = ("jumprelu", "batchtopk")
_MOST_ALONE = 12
_SAE_STEPS = 12  # per turn, as a multiple of the steps asked for
_FEWEST_STEPS = 0.4  # likewise: below it, first steps, which take longer, would count
_WARM_UP_STEPS = 5


@dataclass(frozen=True)
class Group:
    """What is measured in the same turns: sweeps of one architecture and several sizes."""

    world: str
    architecture: str
    sizes: tuple[int, ...]


@dataclass
class Timing:
    """What one way of training took for one sweep."""

    way: str
    n_saes: int
    """In the sweep."""
    n_timed: int
    """Of them trained; the others of (a) would take as long, one after the other."""
    n_steps: int
    estimates: int
    """How often the whole run draws the batches for the norm."""
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    batch_seconds: float = 0.0
    """To draw one batch of the stream."""

    @property
    def seconds_per_sae_step(self) -> float:
        """The median of the turns, everything that is shared included."""
        return statistics.median(self.seconds) / (self.n_steps * self.n_timed)

    @property
    def whole_run_seconds(self) -> float:
        """The notebook's budget for every SAE, extrapolated, with the batches for the norm."""
        steps = self.seconds_per_sae_step * self.n_saes * FULL_STEPS
        return steps + self.estimates * NORM_BATCHES * self.batch_seconds


@dataclass
class Measured:
    """All timings of a group, and the floor of its turns."""

    group: Group
    world: str
    product_flops: int
    timings: list[Timing]
    rate: float
    """Of a large matrix product, in floating-point operations per second."""
    shaped_rate: float
    """Of a product of the shapes of a step."""
    is_stacked: bool = True
    """Whether the engine trains these SAEs itself, and does not leave them to sae_lens."""

    def of(self, way: str, n_saes: int) -> Timing:
        """One timing; a KeyError if it was not taken."""
        return {(timing.way, timing.n_saes): timing for timing in self.timings}[way, n_saes]

    def fraction_of_floor(self, timing: Timing) -> float:
        """The time of the five matrix products at the large product's rate, of the time taken."""
        return self.product_flops / self.rate / timing.seconds_per_sae_step

    def speedup(self, n_saes: int, against: str) -> float:
        """How many times longer than this engine another way takes for the whole run."""
        other, engine = self.of(against, n_saes), self.of(ENGINE, n_saes)
        return other.whole_run_seconds / engine.whole_run_seconds


@dataclass(frozen=True)
class _Candidate:
    train: Callable[[ways.SAEs, int, Iterator[Tensor], int], None]
    specs: Sequence[SAESpec]
    stream: Iterator[Tensor]
    timing: Timing

    def run(self, world: BenchWorld, n_steps: int) -> tuple[float, int]:
        """Seconds, and bytes at the peak, to train new SAEs for so many steps."""
        saes = make_spec_saes(self.specs, world.d_in, seed=0, device=world.device)
        with _quietly(), PeakMemory(world.device) as peak:
            synchronize(world.device)
            start = time.perf_counter()
            self.train(saes, n_steps, self.stream, world.batch_size)
            synchronize(world.device)
            elapsed = time.perf_counter() - start
        return elapsed, peak.bytes


def measure(
    group: Group, world: BenchWorld, steps: int, repeats: int, large: int = LARGE
) -> Measured:
    """Train every sweep of a group in every way, in turns.

    Args:
        steps: that 12 SAEs take in a turn, in the toy world. Other numbers of SAEs take as many
            SAE-steps together, but each at most four times and at least 0.4 times as many steps.
        repeats: turns; one that does not count goes before.
        large: size of the matrices whose product sets the floor.
    """
    candidates = _candidates(group, world, -(-steps // world.step_cost))
    products = [
        Products(large, large, large, world.device),
        Products(world.batch_size, world.d_in, world.d_sae, world.device),
    ]
    draws: dict[int, list[float]] = {id(c.stream): [] for c in candidates}
    for turn in range(-1, repeats):
        for product in products:
            product.measure()
        for candidate in candidates:
            timing = candidate.timing
            n_steps = min(_WARM_UP_STEPS, timing.n_steps) if turn < 0 else timing.n_steps
            seconds, peak = candidate.run(world, n_steps)
            if turn >= 0:
                timing.seconds.append(seconds)
                timing.peak_bytes = max(timing.peak_bytes, peak)
        for stream in {id(c.stream): c.stream for c in candidates}.values():
            draws[id(stream)].append(_seconds_per_batch(stream, world.device))
    for candidate in candidates:
        candidate.timing.batch_seconds = statistics.median(draws[id(candidate.stream)][1:])
    # (a) once for each size, then the others as they are, in order of size.
    alone, *others = (candidate.timing for candidate in candidates)
    spread = [replace(alone, n_saes=n_saes, estimates=n_saes) for n_saes in group.sizes]
    return Measured(
        group=group,
        world=str(world),
        product_flops=world.product_flops,
        timings=sorted([*spread, *others], key=lambda timing: timing.n_saes),
        rate=statistics.median(products[0].rates[1:]),
        shaped_rate=statistics.median(products[1].rates[1:]),
        is_stacked=_is_stacked(group, world),
    )


def _candidates(group: Group, world: BenchWorld, steps: int) -> list[_Candidate]:
    """What takes part in each turn. (a) does so once: an SAE alone does not know the others."""
    largest = max(group.sizes)
    alone = evenly(make_sweep(group.architecture, largest, world.d_sae), _MOST_ALONE)
    timing = Timing(ALONE, largest, len(alone), steps, estimates=largest)
    candidates = [_Candidate(ways.one_by_one, alone, world.published or world.fast, timing)]
    for n_saes in group.sizes:
        specs = make_sweep(group.architecture, n_saes, world.d_sae)
        factor = min(4.0, max(_FEWEST_STEPS, _SAE_STEPS / n_saes))
        n_steps = max(1, round(factor * steps))
        for way, train in _TOGETHER.items():
            if way != VMAP or group.architecture in _VMAP_ARCHITECTURES:
                timing = Timing(way, n_saes, n_saes, n_steps, estimates=1)
                candidates.append(_Candidate(train, specs, world.fast, timing))
    return candidates


def _is_stacked(group: Group, world: BenchWorld) -> bool:
    specs = make_sweep(group.architecture, 1, world.d_sae)
    saes = make_spec_saes(specs, world.d_in, seed=0, device=world.device)
    with _quietly():
        training = Training(saes, world.fast, TrainOptions(progress=False))
    return "sae_lens" not in training.steps


def _quietly() -> contextlib.AbstractContextManager[object]:
    """Without progress bars, and without the line about SAEs left to sae_lens."""
    return contextlib.redirect_stderr(io.StringIO())


def _seconds_per_batch(stream: Iterator[Tensor], device: torch.device, n: int = 10) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(n):
        next(stream)
    synchronize(device)
    return (time.perf_counter() - start) / n
