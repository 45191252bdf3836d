"""What all n-th decoder projections of a large SAE cost, against the product that they come from.

    python -m benchmarks.diagnostics                 D = 2,304, H = 32,768, a few batches
    python -m benchmarks.diagnostics --d-in 576 --d-sae 4608 --batch 4096

In turns in one process: the product of samples and decoder alone, the product and the counts that
give s_n^dec for all n (what `evaluate` does over a stream), and the product and the sort that gave
one n. The exit status says nothing about speed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.machine import describe_machine, is_busy
from sparse_but_wrong.metrics.projections import (
    RELATIVE_ERROR,
    count_projections,
    sorted_entries,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What all n-th decoder projections cost.")
    for name, default in (
        *(("d-in", 2304), ("d-sae", 32_768), ("batch", 1024), ("batches", 3)),
        *(("repeats", 5), ("threads", torch.get_num_threads())),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--no-sort", action="store_true", help="leave out the sort, which is slow")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(options.d_sae, options.d_in, generator=generator)
    directions = torch.nn.functional.normalize(decoder, dim=1)
    b_dec = torch.randn(options.d_in, generator=generator)
    n_samples = options.batch * options.batches
    samples = torch.randn(n_samples, options.d_in, generator=generator)
    batches = samples.split(options.batch)
    ways: dict[str, Callable[[Tensor], object]] = {
        "the product alone": lambda batch: (batch - b_dec) @ directions.T,
        "all n, from counts": lambda batch: sorted_entries(
            count_projections(batch, directions, b_dec),
            torch.arange(options.d_sae) * options.batch,
        ),
    }
    if not options.no_sort:
        ways["one n, from a sort"] = lambda batch: (
            ((batch - b_dec) @ directions.T).flatten().sort(descending=True).values[options.batch]
        )
    seconds = {name: [] for name in ways}
    for turn in range(options.repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            for batch in batches:
                way(batch)
            if turn:  # the first warms up
                seconds[name].append((time.perf_counter() - started) / len(batches))
    print(_report(options, seconds))


def _report(options: argparse.Namespace, seconds: dict[str, list[float]]) -> str:
    machine = describe_machine(torch.device("cpu"))
    floor = statistics.median(seconds["the product alone"])
    values = options.batch * options.d_sae
    lines = [
        f"{machine['cpu']}, {options.threads} threads, torch {torch.__version__}",
        f"d_in {options.d_in}, d_sae {options.d_sae}, batches of {options.batch}; median of "
        f"{options.repeats} turns of {options.batches} batches",
        *(["Others keep this machine busy; wait until it is idle."] if is_busy() else []),
        "",
    ]
    for name, taken in seconds.items():
        typical = statistics.median(taken)
        lines.append(
            f"{name:<22}{1e3 * typical:9.0f} ms a batch  {1e9 * typical / values:7.2f} ns a "
            f"projection  {typical / floor:6.2f} × the product"
        )
    lines += ["", f"Each counted value is within {RELATIVE_ERROR:.5f} of itself of the sorted one."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
