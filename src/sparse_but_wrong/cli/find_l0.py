"""`sbw find-l0`: the L0 that SAEs on some activations should have."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import click
import torch
from torch import Tensor

from sparse_but_wrong.activations.in_order import contiguous_batches
from sparse_but_wrong.activations.shuffled import ShuffledActivations
from sparse_but_wrong.activations.split import hold_out
from sparse_but_wrong.activations.stored import is_activations, is_hub_name, open_activations
from sparse_but_wrong.atomic import claimed, full_disk_named
from sparse_but_wrong.cli.quiet import quiet_training
from sparse_but_wrong.experiments.registry import EXPERIMENTS, get_experiment
from sparse_but_wrong.l0.find import FindOptions, find_l0
from sparse_but_wrong.l0.recommend import L0Recommendation, recommend_l0
from sparse_but_wrong.l0.sweep import EVALUATION_SAMPLES, measure_sweep
from sparse_but_wrong.report.recommendation import write_recommendation
from sparse_but_wrong.runs.data import load_data, training_stream
from sparse_but_wrong.runs.folder import RunFolder, fresh_path, is_run
from sparse_but_wrong.runs.make import make_world
from sparse_but_wrong.runs.provenance import provenance
from sparse_but_wrong.runs.seeds import world_seed
from sparse_but_wrong.runs.spec import ActivationsSpec
from sparse_but_wrong.runs.spec_file import is_spec_file, read_spec
from sparse_but_wrong.runs.stored_world import StoredWorld

RUNS = Path("runs")
BATCH_SIZE = 1024


@dataclass(frozen=True)
class _Activations:
    title: str
    stream: Iterator[Tensor]
    d_in: int
    n_features: int | None
    """Where they are known."""

    n_held_out: int | None = None
    """With how many samples the stream begins that do not come again; None where none do."""


def find(
    source: str | None,
    *,
    activations: str | None,
    column: str | None,
    world: str | None,
    architecture: str | None,
    d_sae: int | None,
    out: Path | None,
    seed: int,
    threads: int | None,
    save: bool,
) -> None:
    """Find the L0 of a toy world, of stored activations or of a run, and write what was found.

    Raises:
        ValueError, OSError: bad input; the message is meant for the user.
    """
    if (source is None) == (activations is None):
        raise ValueError(
            "name either a SOURCE (an experiment, a YAML file, a run) or --activations."
        )
    if save and source is not None and _is_run(source):
        raise ValueError(f"{source} is a run, whose SAEs are judged; leave out --save.")
    path = out if out is not None else fresh_path(RUNS, "find-l0")
    with claimed(path) as place:
        started = time.monotonic()
        if source is not None and _is_run(source):
            given = (("--architecture", architecture), ("--d-sae", d_sae), ("--column", column))
            for option, value in given:
                if value is not None:
                    raise ValueError(
                        f"{source} is a run, whose SAEs are judged; leave out {option}."
                    )
            if threads is not None:
                torch.set_num_threads(threads)
            title, recommendation = _judge_run(Path(source), world, seed)
            facts: dict[str, object] = {"Sweep": source}
        else:
            found = (
                _world(source, column, world, seed)
                if source is not None and not _is_stored(source)
                else _stored(activations or source or "", column, world, seed)
            )
            title = found.title
            options = FindOptions(
                architecture=architecture or "batchtopk",
                seed=seed,
                threads=threads,
                progress=sys.stderr.isatty(),
            )
            recommendation, facts = _search(found, d_sae, options)
        made = provenance()
        facts |= {
            "Seed": seed,
            "Time": f"{time.monotonic() - started:.0f} s",
            "Command": made["command"],
            "Started": made["created"],
            "Commit": made["commit"] or "–",
        }
        _print_answer(recommendation)  # first, because it is what hours were spent on
        with full_disk_named(
            path, "The answer above is all that is kept; make room and run the command again."
        ):
            write_recommendation(recommendation, place, title, facts, with_sae=save)
    _print_places(recommendation, path, save)


def _search(
    found: _Activations, d_sae: int | None, options: FindOptions
) -> tuple[L0Recommendation, dict[str, object]]:
    """Train sweeps, and say how."""
    width = d_sae if d_sae is not None else found.n_features
    if width is None:
        raise ValueError(
            "how many latents the SAEs are to have does not follow from stored activations; "
            "say it with --d-sae."
        )
    if found.n_held_out is not None:
        options = replace(options, evaluation_samples=found.n_held_out)
    click.echo(f"{found.title}: {options.architecture} SAEs, d_in {found.d_in}, d_sae {width}")
    with quiet_training():
        recommendation = find_l0(found.stream, width, options)
    return recommendation, {
        "Architecture": options.architecture,
        "d_in": found.d_in,
        "d_sae": width,
    }


def _is_stored(source: str) -> bool:
    if is_activations(source):
        return True
    if is_spec_file(source) or source in EXPERIMENTS:
        return False
    # A folder of something else is no experiment either; opening it tells what it lacks.
    return is_hub_name(source) or Path(source).is_dir()


def _is_run(source: str) -> bool:
    # A cache of activations has a manifest too.
    return not is_activations(source) and is_run(Path(source))


def _stored(where: str, column: str | None, world: str | None, seed: int) -> _Activations:
    if world is not None:
        raise ValueError(f"{where} holds activations and no worlds; leave out --world.")
    stored = open_activations(where, column)
    # Most of them are trained on; what directions are counted on is held out.
    batch_size = max(1, min(BATCH_SIZE, stored.n_samples // 8))
    most = min(EVALUATION_SAMPLES, stored.n_samples // 4)
    n_held_out = batch_size * max(1, most // batch_size)
    rest, held_out = hold_out(stored, n_held_out)
    stream = chain(
        _from_all_over(contiguous_batches(held_out, batch_size), seed),
        ShuffledActivations(rest, batch_size, seed),
    )
    title = Path(where).resolve().name if Path(where).exists() else where
    return _Activations(title, stream, stored.d_in, None, n_held_out)


def _world(source: str, column: str | None, world: str | None, seed: int) -> _Activations:
    spec = read_spec(Path(source)) if is_spec_file(source) else get_experiment(source)
    name = _choose(world, list(spec.worlds), source)
    of_spec = spec.worlds[name]
    if isinstance(of_spec, ActivationsSpec):
        return _stored(of_spec.activations, column or of_spec.column, None, seed)
    if column is not None:
        raise ValueError(f"{source} has toy worlds and no data set; leave out --column.")
    made = make_world(of_spec, seed, name=name)
    stream = training_stream(made, BATCH_SIZE, world_seed(seed, "stream", name))
    d_in, n_features = made.directions.shape
    return _Activations(f"The world of {spec.name}", stream, d_in, n_features)


def _judge_run(path: Path, world: str | None, seed: int) -> tuple[str, L0Recommendation]:
    folder = RunFolder.open(path)
    spec = folder.manifest["spec"]
    name = _choose(world, list(spec["worlds"]), str(path))
    n_saes = sum(sae["world"] == name for sae in spec["saes"])
    done = folder.finished_saes(name)
    if not done:
        raise ValueError(f"{path} holds no finished SAE of the world {name!r}.")
    saes = [folder.load_sae(sae_id, "cpu") for sae_id in done]
    data = load_data(folder.checked_world_path(name))
    # A stream of its own: of a toy world not the samples that the SAEs were trained on, of stored
    # activations those held out first.
    n_samples, batch_size = EVALUATION_SAMPLES, BATCH_SIZE
    if isinstance(data, StoredWorld):
        n_samples = min(n_samples, data.n_held_out)
        batch_size = min(batch_size, data.stored.n_samples - data.n_held_out)
    stream = training_stream(data, batch_size, world_seed(seed, "find-l0", name))
    if isinstance(data, StoredWorld):
        neighbours = chain.from_iterable(block.split(_NEIGHBOURS) for block in data.held_out())
        stream = chain(_from_all_over(neighbours, seed), stream)
    missing = "" if len(done) == n_saes else f" of {n_saes}; the run is not finished"
    click.echo(f"{len(saes)} SAEs{missing}: {path}")
    sweep = measure_sweep(saes, stream, done, seed=seed, evaluation_samples=n_samples)
    return f"The sweep in {path}", recommend_l0(sweep)


_NEIGHBOURS = 512


def _from_all_over(batches: Iterator[Tensor], seed: int) -> Iterator[Tensor]:
    """Batches of neighbours in random order: the first few of them come from all over the text,
    and samples of one document still lie side by side."""
    held = list(batches)
    order = torch.randperm(len(held), generator=torch.Generator().manual_seed(seed))
    return (held[i] for i in order.tolist())


def _choose(world: str | None, worlds: list[str], source: str) -> str:
    if world is None and len(worlds) == 1:
        return worlds[0]
    if world not in worlds:
        there = ", ".join(worlds) or "none"
        asked = (
            "several worlds; choose one with --world" if world is None else f"no world {world!r}"
        )
        raise ValueError(f"{source} has {asked}; there is: {there}.")
    return world


def _print_answer(recommendation: L0Recommendation) -> None:
    if recommendation.l0 is not None and recommendation.interval is not None:
        low, high = recommendation.interval
        click.echo(f"L0 {recommendation.l0:.4g}, between {low:.4g} and {high:.4g}")
    else:
        click.echo("No recommendation:")
        for doubt in recommendation.doubts:
            click.echo(f"  - {doubt}")
    click.echo("Why:" if recommendation.l0 is not None else "What was seen:")
    for reason in recommendation.reasons:
        click.echo(f"  - {reason}")


def _print_places(recommendation: L0Recommendation, path: Path, save: bool) -> None:
    if save and recommendation.sae is not None and recommendation.sae_l0 is not None:
        click.echo(
            f"An SAE of L0 {recommendation.sae_l0:.4g}, for sae_lens.SAE.load_from_disk: "
            f"{path / 'sae'}"
        )
    elif save:
        click.echo("No SAE is kept: none was trained at an L0 that is recommended.")
    click.echo(f"Report: {path / 'report.html'}")
