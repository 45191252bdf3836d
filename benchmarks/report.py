"""The benchmark's tables and its results as JSON: what was reached, beside what was meant to be."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from benchmarks.measure import (
    ALONE,
    BESIDE,
    ENGINE,
    FULL_STEPS,
    NORM_BATCHES,
    VMAP,
    Measured,
)

LEGEND = f"""\
SAE-step: one step of one SAE. whole run: the notebook's {FULL_STEPS:,} steps per SAE, extrapolated,
with the {NORM_BATCHES} batches drawn to estimate the norm: by (a) for each SAE, from the published
data function where there is one, else once. engine ×: how much faster this engine's whole run is.
of the floor: the time that a step's five matrix products take at the rate of a large product,
measured in the same turns, as a part of the time taken. Times are medians over the turns.
(c) leaves out what reaches no weights in so few steps: firing counts, revival of dead latents."""

# Two sweeps never take the same time twice; a turn's noise on an idle machine is about this large.
NOISE = 0.05


@dataclass(frozen=True)
class Target:
    """A number to reach in one group of sweeps. Printed beside what was; nothing is asserted."""

    work: str
    world: str
    architecture: str
    metric: Callable[[Measured], float]
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
        """The metric in these results; None if it was not measured."""
        for result in results:
            if (result.group.world, result.group.architecture) == (self.world, self.architecture):
                try:
                    return self.metric(result)
                except KeyError:
                    return None
        return None

    def verdict(self, value: float | None) -> str:
        """``met``, ``missed`` or ``not measured``."""
        if value is None:
            return "not measured"
        return "met" if (value <= self.bound if self.at_most else value >= self.bound) else "missed"


def _growth(result: Measured) -> float:
    """Time per SAE-step, S = 125 over S = 12."""
    large, small = result.of(ENGINE, 125), result.of(ENGINE, 12)
    return large.seconds_per_sae_step / small.seconds_per_sae_step


def _of_floor(result: Measured, n_saes: int = 12) -> float:
    return result.fraction_of_floor(result.of(ENGINE, n_saes))


def _of_llm_size(times: float, of_floor: float) -> tuple[Target, ...]:
    """What is meant to be reached against (a) and of the floor, by both of the paper's sweeps."""
    return tuple(
        target
        for name, kind in (("BatchTopK", "batchtopk"), ("JumpReLU", "jumprelu"))
        for work, place in ((f"8 {name} SAEs, LLM-size", ("LLM-size", kind)),)
        for target in (
            Target(f"{work}, × (a)", *place, lambda r: r.speedup(8, ALONE), times),
            Target(f"{work}, of the floor", *place, lambda r: _of_floor(r, 8), of_floor),
        )
    )


_NOTEBOOK = "12 JumpReLU SAEs of the notebook"
_BATCHTOPK = "125 BatchTopK SAEs (k = 1…25 × 5 seeds)"
_MID = "4 JumpReLU SAEs, mid-size"
_GROWTH = "time per SAE-step, S = 125 over S = 12"
_JUMPRELU = ("toy", "jumprelu")

CPU_TARGETS = (
    Target(f"{_NOTEBOOK}, × (a)", *_JUMPRELU, lambda r: r.speedup(12, ALONE), 16, mark=20),
    Target(f"{_NOTEBOOK}, × (b)", *_JUMPRELU, lambda r: r.speedup(12, BESIDE), 5),
    Target(f"{_NOTEBOOK}, × (c)", *_JUMPRELU, lambda r: r.speedup(12, VMAP), 2.5),
    Target(f"{_NOTEBOOK}, of the floor", *_JUMPRELU, _of_floor, 0.5),
    Target(f"{_BATCHTOPK}, × (a)", "toy", "batchtopk", lambda r: r.speedup(125, ALONE), 16),
    Target(f"JumpReLU: {_GROWTH}", *_JUMPRELU, _growth, 1 + NOISE, at_most=True),
    Target(f"BatchTopK: {_GROWTH}", "toy", "batchtopk", _growth, 1 + NOISE, at_most=True),
    Target(f"{_MID}, × (b)", "mid-size", "jumprelu", lambda r: r.speedup(4, BESIDE), 1.5),
    *_of_llm_size(times=3, of_floor=0.8),
)
CUDA_TARGETS = (
    Target(f"{_NOTEBOOK}, × (a)", *_JUMPRELU, lambda r: r.speedup(12, ALONE), 60),
    Target(f"{_BATCHTOPK}, × (a)", "toy", "batchtopk", lambda r: r.speedup(125, ALONE), 150),
    *_of_llm_size(times=2, of_floor=0.6),
)


def format_group(result: Measured) -> str:
    """One group: a row for every size and way."""
    rows = {}
    for timing in result.timings:
        is_scaled = timing.n_timed != timing.n_saes
        name = timing.way + (f", {timing.n_timed} timed" if is_scaled else "")
        times = f"{result.speedup(timing.n_saes, timing.way):.1f}"
        rows[name, timing.n_saes] = {
            "steps": timing.n_steps,
            "SAE-steps/s": f"{1 / timing.seconds_per_sae_step:,.0f}",
            "ms/SAE-step": f"{timing.seconds_per_sae_step * 1e3:.3f}",
            "whole run": f"{timing.whole_run_seconds:,.0f} s",
            "engine ×": "" if timing.way == ENGINE else times,
            "of the floor": f"{result.fraction_of_floor(timing):.2f}",
            "peak memory": f"{timing.peak_bytes / 2**20:,.0f} MiB",
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    batch = {t.way: f"{t.batch_seconds * 1e3:.2f} ms" for t in result.timings}
    return "\n".join(
        [
            f"{result.group.architecture}, {result.world}",
            f"large product {result.rate / 1e9:,.0f} GFLOP/s, one of a step's shape "
            f"{result.shaped_rate / result.rate:.2f} of it; "
            f"a batch takes {batch[ENGINE]} to draw, for (a) {batch[ALONE]}",
            *([] if result.is_stacked else ["this engine leaves these SAEs to sae_lens' trainer"]),
            _aligned(table.rename_axis(["", "S"]).reset_index()),
        ]
    )


def format_targets(targets: Sequence[Target], results: Sequence[Measured]) -> str:
    """What was meant to be reached, and what was."""
    return _aligned(pd.DataFrame(_reached(targets, results)))


def _reached(targets: Sequence[Target], results: Sequence[Measured]) -> list[dict[str, object]]:
    return [
        {
            "work": target.work,
            "target": target.wanted,
            "measured": target.measured(results),
            "verdict": target.verdict(target.measured(results)),
        }
        for target in targets
    ]


def _aligned(table: pd.DataFrame) -> str:
    """Columns of text: the first to the left, the others to the right."""
    first = table.columns[0]
    width = table[first].str.len().max()
    left = {first: f"{{:<{width}}}".format}
    return table.to_string(index=False, formatters=left, float_format="{:.2f}".format, na_rep="")


def write_json(
    file: Path,
    machine: Mapping[str, object],
    settings: Mapping[str, object],
    results: Sequence[Measured],
    targets: Sequence[Target],
) -> None:
    """Everything that was measured, turn by turn, with the machine it was measured on."""
    groups = []
    for result in results:
        timings = [
            {
                **asdict(timing),
                "seconds_per_sae_step": timing.seconds_per_sae_step,
                "whole_run_seconds": timing.whole_run_seconds,
                "engine_times_faster": result.speedup(timing.n_saes, timing.way),
                "fraction_of_floor": result.fraction_of_floor(timing),
            }
            for timing in result.timings
        ]
        groups.append({**asdict(result), "timings": timings})
    content = {"machine": machine, "settings": settings, "groups": groups}
    content["targets"] = _reached(targets, results)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")
