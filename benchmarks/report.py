"""The benchmark's tables, and its results as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.measure import ALONE, ENGINE, FULL_STEPS, NORM_BATCHES, Measured
from benchmarks.targets import Target

LEGEND = f"""\
SAE-step: one step of one SAE. whole run: the notebook's {FULL_STEPS:,} steps per SAE, extrapolated,
with the {NORM_BATCHES} batches drawn to estimate the norm: by (a) for each SAE, from the published
data function where there is one, else once. engine ×: how much faster this engine's whole run is.
of the floor: the time that a step's five matrix products take at the rate of a large product,
measured in the same turns, as a part of the time taken. Times are medians over the turns.
(c) leaves out what reaches no weights in so few steps: firing counts, revival of dead latents."""


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, numbers to the right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def format_group(result: Measured) -> str:
    """One group: a row for every size and way."""
    group = result.group
    rows = []
    for timing in result.timings:
        speedup = result.speedup(timing.n_saes, timing.way)
        is_scaled = timing.n_timed != timing.n_saes
        rows.append(
            (
                timing.way + (f", {timing.n_timed} timed" if is_scaled else ""),
                str(timing.n_saes),
                str(timing.n_steps),
                f"{1 / timing.seconds_per_sae_step:,.0f}",
                f"{timing.seconds_per_sae_step * 1e3:.3f}",
                f"{timing.whole_run_seconds:,.0f} s",
                "" if speedup is None or timing.way == ENGINE else f"{speedup:.1f}",
                f"{result.fraction_of_floor(timing):.2f}",
                f"{timing.peak_bytes / 2**20:,.0f} MiB",
            )
        )
    header = ("", "S", "steps", "SAE-steps/s", "ms/SAE-step", "whole run", "engine ×")
    batch = {t.way: f"{t.batch_seconds * 1e3:.2f} ms" for t in result.timings}
    lines = [
        f"{group.architecture}, {result.world}",
        f"large product {result.rate / 1e9:,.0f} GFLOP/s, one of a step's shape "
        f"{result.shaped_rate / result.rate:.2f} of it; "
        f"a batch takes {batch[ENGINE]} to draw, for (a) {batch[ALONE]}",
    ]
    if not result.is_stacked:
        lines.append("this engine leaves these SAEs to sae_lens' trainer")
    return "\n".join(
        [*lines, format_table((*header, "of the floor", "peak memory"), rows)],
    )


def format_targets(targets: Sequence[Target], results: Sequence[Measured]) -> str:
    """What was meant to be reached, and what was."""
    rows = []
    for target in targets:
        value = target.measured(results)
        measured = "" if value is None else f"{value:.2f}"
        rows.append((target.work, target.wanted, measured, target.verdict(value)))
    return format_table(("work", "target", "measured", ""), rows)


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
    reached = [
        {
            "work": target.work,
            "target": target.wanted,
            "measured": target.measured(results),
            "verdict": target.verdict(target.measured(results)),
        }
        for target in targets
    ]
    content = {"machine": machine, "settings": settings, "groups": groups, "targets": reached}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
