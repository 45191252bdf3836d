"""`sbw find-l0`: the L0 that SAEs on some activations should have."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from torch import Tensor

from sparse_but_wrong.activations.stored import SUFFIXES, StoredActivations, read_activations
from sparse_but_wrong.activations.toy import ToyActivations
from sparse_but_wrong.atomic import is_free
from sparse_but_wrong.cli.quiet import quiet_training
from sparse_but_wrong.experiments.make import make_world
from sparse_but_wrong.experiments.registry import get_experiment
from sparse_but_wrong.experiments.seeds import world_seed
from sparse_but_wrong.experiments.spec_file import is_spec_file, read_spec
from sparse_but_wrong.l0.find import FindOptions, find_l0
from sparse_but_wrong.l0.recommend import L0Recommendation, recommend_l0
from sparse_but_wrong.l0.sweep import measure_sweep
from sparse_but_wrong.report.recommendation import write_recommendation
from sparse_but_wrong.runs.folder import RunFolder, fresh_path, is_run
from sparse_but_wrong.runs.provenance import provenance
from sparse_but_wrong.toy_models.world import World

RUNS = Path("runs")
BATCH_SIZE = 1024


@dataclass(frozen=True)
class _Activations:
    title: str
    stream: Iterator[Tensor]
    d_in: int
    n_features: int | None
    """Where they are known."""


def find(
    source: str,
    *,
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
    path = out if out is not None else fresh_path(RUNS, "find-l0")
    if not is_free(path):
        raise FileExistsError(f"{path} is not empty, and nothing is overwritten; choose another.")
    started = time.monotonic()
    if is_run(Path(source)):
        for option, value in (("--architecture", architecture), ("--d-sae", d_sae)):
            if value is not None:
                raise ValueError(f"{source} is a run, whose SAEs are judged; leave out {option}.")
        title, recommendation = _judge_run(Path(source), world, seed)
        facts: dict[str, object] = {"Sweep": source}
    else:
        found = _activations(source, world, seed)
        title = found.title
        width = d_sae if d_sae is not None else found.n_features
        if width is None:
            raise ValueError(
                "how many latents the SAEs are to have does not follow from a file; say it with "
                "--d-sae."
            )
        options = FindOptions(
            architecture=architecture or "batchtopk",
            seed=seed,
            threads=threads,
            progress=sys.stderr.isatty(),
        )
        click.echo(f"{title}: {options.architecture} SAEs, d_in {found.d_in}, d_sae {width}")
        with quiet_training():
            recommendation = find_l0(found.stream, width, options)
        facts = {"Architecture": options.architecture, "d_in": found.d_in, "d_sae": width}
    made = provenance()
    facts |= {
        "Seed": seed,
        "Time": f"{time.monotonic() - started:.0f} s",
        "Command": made["command"],
        "Started": made["created"],
        "Commit": made["commit"] or "–",
    }
    report = write_recommendation(recommendation, path, title, facts, with_sae=save)
    _print(recommendation, path, report, save)


def _activations(source: str, world: str | None, seed: int) -> _Activations:
    if source.endswith(SUFFIXES):
        if world is not None:
            raise ValueError(f"{source} holds activations and no worlds; leave out --world.")
        activations = read_activations(Path(source))
        stream = StoredActivations(activations, min(BATCH_SIZE, len(activations)), seed)
        return _Activations(Path(source).name, stream, activations.shape[1], None)
    spec = read_spec(Path(source)) if is_spec_file(source) else get_experiment(source)
    name = _choose(world, list(spec.worlds), source)
    made = make_world(spec.worlds[name], seed, name=name)
    stream = ToyActivations(
        made.model, made.sampler, BATCH_SIZE, seed=world_seed(seed, "stream", name)
    )
    d_in, n_features = made.directions.shape
    return _Activations(f"The world of {spec.name}", stream, d_in, n_features)


def _judge_run(path: Path, world: str | None, seed: int) -> tuple[str, L0Recommendation]:
    folder = RunFolder.open(path)
    spec = folder.manifest["spec"]
    name = _choose(world, list(spec["worlds"]), str(path))
    ids = [sae["sae_id"] for sae in spec["saes"] if sae["world"] == name]
    done = [sae_id for sae_id in ids if folder.has_sae(sae_id)]
    if not done:
        raise ValueError(f"{path} holds no finished SAE of the world {name!r}.")
    saes = [folder.load_sae(sae_id, "cpu") for sae_id in done]
    made = World.load(folder.world_path(name))
    # A stream of its own: not the samples that the SAEs were trained on.
    stream = ToyActivations(
        made.model, made.sampler, BATCH_SIZE, seed=world_seed(seed, "find-l0", name)
    )
    click.echo(f"{len(saes)} SAEs of {path}")
    return f"The sweep in {path}", recommend_l0(measure_sweep(saes, stream, done, seed=seed))


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


def _print(recommendation: L0Recommendation, path: Path, report: Path, save: bool) -> None:
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
    if save and recommendation.sae is not None:
        click.echo(f"An SAE at that L0, for sae_lens.SAE.load_from_disk: {path / 'sae'}")
    click.echo(f"Report: {report}")
