"""How fast sweeps train here: four ways of training the same SAEs, in turns, in one process.

    python -m benchmarks                     what `make bench` runs, about ten minutes on two cores
    python -m benchmarks --quick             whether it works, in a minute
    python -m benchmarks --full              every architecture, size and world
    python -m benchmarks --device cuda       the same on a GPU
    python -m benchmarks --worlds toy --architectures jumprelu --sizes 12,125 --json out.json

The ways: (a) sae_lens' SAETrainer for one SAE after the other, as the notebook does, (b) sae_lens'
MultiSAETrainer, (c) a torch.func.vmap ensemble over autograd (JumpReLU and BatchTopK), and this
package's engine. The exit status says nothing about speed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch

from benchmarks.machine import LARGE, describe_machine, is_busy
from benchmarks.measure import Group, measure
from benchmarks.report import (
    CPU_TARGETS,
    CUDA_TARGETS,
    LEGEND,
    format_group,
    format_targets,
    write_json,
)
from benchmarks.sweeps import SWEEPS
from benchmarks.worlds import WORLDS

SIZES = (1, 4, 12, 32, 125)
_SWEPT_IN_THE_PAPER = ("jumprelu", "batchtopk")

MODERATE = (
    *(Group("toy", architecture, SIZES) for architecture in _SWEPT_IN_THE_PAPER),
    *(Group("toy", a, (12,)) for a in SWEEPS if a not in _SWEPT_IN_THE_PAPER),
    *(Group("mid-size", architecture, (4,)) for architecture in SWEEPS),
    *(Group("LLM-size", architecture, (8,)) for architecture in _SWEPT_IN_THE_PAPER),
)
QUICK = (
    Group("toy", "jumprelu", (1, 12)),
    Group("toy", "batchtopk", (4,)),
    Group("mid-size", "jumprelu", (4,)),
)
_QUICK_LARGE = 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables, and write them as JSON where asked to."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    machine = describe_machine(device)
    targets = CUDA_TARGETS if device.type == "cuda" else CPU_TARGETS
    groups = _choose_groups(options)
    print(
        f"{machine['gpu'] or machine['cpu']}, {options.threads} threads of {machine['cores']} "
        f"cores, torch {torch.__version__}\n"
        f"turns: {options.repeats}; steps of 12 SAEs in a turn: {options.steps}\n\n{LEGEND}\n",
        flush=True,
    )
    if is_busy():
        print(
            f"Others keep this machine busy (load {machine['load']:.1f}): that slows (a), (b) and "
            "(c) more than this\nengine, and the ratios flatter it. Wait until it is idle.\n",
            flush=True,
        )
    worlds = {name: WORLDS[name](device) for name in dict.fromkeys(g.world for g in groups)}
    large, results = _QUICK_LARGE if options.quick else LARGE, []
    for group in groups:
        result = measure(group, worlds[group.world], options.steps, options.repeats, large)
        results.append(result)
        print(format_group(result) + "\n", flush=True)
    print(format_targets(targets, results))
    if options.json is not None:
        write_json(options.json, machine, vars(options), results, targets)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_argument_group("what is measured")
    which.add_argument("--quick", action="store_true", help="little of everything")
    which.add_argument("--full", action="store_true", help="everything: takes an hour or more")
    which.add_argument("--worlds", type=_names(WORLDS), metavar="A,B", help=", ".join(WORLDS))
    kinds = {"type": _names(SWEEPS), "metavar": "A,B", "help": ", ".join(SWEEPS)}
    which.add_argument("--architectures", **kinds)
    which.add_argument("--sizes", type=_sizes, metavar="S,S", help="SAEs in a sweep")
    how = parser.add_argument_group("how")
    how.add_argument("--steps", type=_positive, help="that 12 SAEs take in a turn (100; quick: 4)")
    how.add_argument("--repeats", type=_positive, help="turns that count (3; quick: 1)")
    how.add_argument("--threads", type=_positive, default=torch.get_num_threads())
    how.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    how.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    options = parser.parse_args(arguments)
    options.steps = options.steps or (4 if options.quick else 100)
    options.repeats = options.repeats or (1 if options.quick else 3)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here.")
    return options


def _choose_groups(options: argparse.Namespace) -> Sequence[Group]:
    """The preset, or every combination of what is named; what is not named is all there is."""
    if not (options.full or options.worlds or options.architectures or options.sizes):
        return QUICK if options.quick else MODERATE
    return [
        Group(world, architecture, options.sizes or SIZES)
        for world in options.worlds or WORLDS
        for architecture in options.architectures or SWEEPS
    ]


def _names(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(size) for size in text.split(",")}))


if __name__ == "__main__":
    main()
