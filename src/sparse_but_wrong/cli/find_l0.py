"""`sbw find-l0`: the L0 that SAEs on some activations should have."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparse_but_wrong.cli.options import (
    NAME_OR_PATH,
    RUNS,
    column,
    made_how,
    out,
    threads,
    use_threads,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sparse_but_wrong.l0.options import FindOptions
    from sparse_but_wrong.l0.recommend import L0Recommendation

_NEIGHBOURS = 512


@click.command("find-l0")
@click.argument("source", required=False, type=NAME_OR_PATH)
@click.option(
    "--activations",
    type=NAME_OR_PATH,
    help="Stored activations: a cache, a folder of shards, a .npy or .safetensors file, or a "
    "dataset.",
)
@column
@click.option("--world", help="Which world, if SOURCE has several.")
@click.option("--architecture", help="SAE architecture, as sae_lens names it. [default: batchtopk]")
@click.option(
    "--d-sae", type=click.IntRange(min=4), help="Latents. [default: the features of a toy world]"
)
@out("find-l0")
@click.option("--seed", type=int, default=0, show_default=True, help="Seeds weights and data.")
@threads
@click.option("--save", is_flag=True, help="Keep an SAE at the recommended L0, ready to use.")
def find(
    source: str | None,
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
    """Find the L0 that SAEs should have, with an interval and reasons, or why there is none.

    SOURCE is an experiment or a YAML file (its world is used), the folder of a run (its SAEs are
    judged as they are), or stored activations of shape [samples, d_in].
    """
    from sparse_but_wrong.atomic import claimed, full_disk_named
    from sparse_but_wrong.l0.options import FindOptions
    from sparse_but_wrong.report.recommendation import write_recommendation
    from sparse_but_wrong.runs.folder import fresh_path

    if (source is None) == (activations is None):
        raise ValueError("Give either SOURCE (an experiment, a YAML file, a run) or --activations.")
    judged = Path(source) if source is not None and _is_run(source) else None
    if judged:
        for option, value in (
            *(("--save", save or None), ("--architecture", architecture)),
            *(("--d-sae", d_sae), ("--column", column)),
        ):
            if value is not None:
                raise ValueError(
                    f"{judged} is a run, whose SAEs are judged as they are; leave out {option}."
                )
    path = out or fresh_path(RUNS, "find-l0")
    with claimed(path) as place:
        started = time.monotonic()
        if judged:
            use_threads(threads)
            title, recommendation = _judge_run(judged, world, seed)
            facts: dict[str, object] = {"Sweep": source}
        else:
            options = FindOptions(
                architecture=architecture or "batchtopk",
                seed=seed,
                threads=threads,
                progress=sys.stderr.isatty(),
            )
            title, recommendation, facts = _search(
                activations or source or "", column, world, d_sae, options
            )
        facts |= {"Seed": seed, **made_how(started)}
        click.echo(str(recommendation))  # first, because it is what hours were spent on
        advice = "Only the answer above is kept; free some space and run the command again."
        with full_disk_named(path, advice):
            write_recommendation(recommendation, place, title, facts, with_sae=save)
    if save and recommendation.sae is not None and recommendation.sae_l0 is not None:
        click.echo(f"SAE of L0 {recommendation.sae_l0:.4g}, a sae_lens folder: {path / 'sae'}")
    elif save:
        click.echo("No SAE is kept: none was trained at a recommended L0.")
    click.echo(f"Report: {path / 'report.html'}")


def _search(
    source: str, column: str | None, world: str | None, d_sae: int | None, options: FindOptions
) -> tuple[str, L0Recommendation, dict[str, object]]:
    """Train sweeps on a toy world or on stored activations: the title, the answer and facts."""
    from sparse_but_wrong.activations.stored import open_activations
    from sparse_but_wrong.experiments.registry import get_experiment
    from sparse_but_wrong.l0.find import find_l0
    from sparse_but_wrong.l0.source import BATCH_SIZE
    from sparse_but_wrong.runs.make import make_world, world_seed
    from sparse_but_wrong.runs.spec import ActivationsSpec
    from sparse_but_wrong.runs.spec_file import is_spec_file, read_spec

    title = Path(source).resolve().name if Path(source).exists() else source
    if _is_stored(source):
        if world is not None:
            raise ValueError(f"{source} holds activations and no worlds; leave out --world.")
        found = open_activations(source, column)
        d_in = found.d_in
    else:
        spec = read_spec(Path(source)) if is_spec_file(source) else get_experiment(source)
        name = _choose(world, list(spec.worlds), source)
        of_spec = spec.worlds[name]
        if isinstance(of_spec, ActivationsSpec):
            found = open_activations(of_spec.activations, column or of_spec.column)
            d_in = found.d_in
        elif column is not None:
            raise ValueError(f"{source} has toy worlds and no dataset; leave out --column.")
        else:
            made = make_world(of_spec, options.seed, name=name)
            seed = world_seed(options.seed, "stream", name)
            found = made.stream(BATCH_SIZE, seed)
            d_in, n_features = made.directions.shape
            d_sae = d_sae or n_features
            title = f"The world of {spec.name}"
    if d_sae is None:
        raise ValueError("Stored activations do not say how many latents to use; give --d-sae.")
    click.echo(f"{title}: {options.architecture} SAEs, d_in {d_in}, d_sae {d_sae}")
    answer = find_l0(found, d_sae, options)
    return title, answer, {"Architecture": options.architecture, "d_in": d_in, "d_sae": d_sae}


def _is_stored(source: str) -> bool:
    from sparse_but_wrong.activations.stored import is_activations, is_hub_name
    from sparse_but_wrong.experiments.registry import EXPERIMENTS
    from sparse_but_wrong.runs.spec_file import is_spec_file

    if is_activations(source):
        return True
    if is_spec_file(source) or source in EXPERIMENTS:
        return False
    # A folder of something else is no experiment either; opening it tells what it lacks.
    return is_hub_name(source) or Path(source).is_dir()


def _is_run(source: str) -> bool:
    from sparse_but_wrong.activations.stored import is_activations
    from sparse_but_wrong.runs.folder import is_run

    # A cache of activations has a manifest too.
    return not is_activations(source) and is_run(Path(source))


def _judge_run(path: Path, world: str | None, seed: int) -> tuple[str, L0Recommendation]:
    from sparse_but_wrong.l0.recommend import recommend_l0
    from sparse_but_wrong.l0.source import BATCH_SIZE, in_random_order
    from sparse_but_wrong.l0.sweep import EVALUATION_SAMPLES, evaluate_sweep
    from sparse_but_wrong.runs.folder import RunFolder
    from sparse_but_wrong.runs.make import load_data, world_seed
    from sparse_but_wrong.runs.stored_world import StoredWorld

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
    stream: Iterator[Tensor] = data.stream(batch_size, world_seed(seed, "find-l0", name))
    if isinstance(data, StoredWorld):
        neighbours = chain.from_iterable(block.split(_NEIGHBOURS) for block in data.held_out())
        stream = chain(in_random_order(neighbours, seed), stream)
    missing = "" if len(done) == n_saes else f" of {n_saes}; the run is not finished"
    click.echo(f"{len(saes)} SAEs{missing}: {path}")
    sweep = evaluate_sweep(saes, stream, done, seed=seed, evaluation_samples=n_samples)
    return f"The sweep in {path}", recommend_l0(sweep)


def _choose(world: str | None, worlds: list[str], source: str) -> str:
    if world is None and len(worlds) == 1:
        return worlds[0]
    if world not in worlds:
        problem = "several worlds; choose one with --world" if world is None else f"no {world!r}"
        raise ValueError(f"{source} has {problem}. Available: {', '.join(worlds) or 'none'}.")
    return world
