"""`sbw paper`: every experiment of the paper, one after the other, and an index of verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from sparse_but_wrong.atomic import full_disk_named
from sparse_but_wrong.experiments.registry import EXPERIMENTS, get_experiment
from sparse_but_wrong.experiments.runner import (
    RunSettings,
    check_same_spec,
    finish_run,
    resume_run,
    start_run,
)
from sparse_but_wrong.experiments.verdict import in_lines
from sparse_but_wrong.report.index import write_index
from sparse_but_wrong.report.verdict import shown_verdict
from sparse_but_wrong.runs.folder import RunFolder, is_run
from sparse_but_wrong.runs.spec import ExperimentSpec


def run_paper(
    names: Sequence[str],
    *,
    out: Path,
    seed: int,
    device: str,
    threads: int | None,
    quick: bool,
) -> None:
    """Run experiments into folders below one, and write an index page of their verdicts there.

    Args:
        names: of the experiments; all of them if there are none.
        out: folder of the run folders; finished runs in it are kept, unfinished ones taken up.
        seed, device, threads, quick: of every run.
    Raises:
        ValueError: an unknown name, or a run in `out` that was started otherwise.
        KeyboardInterrupt: on Ctrl-C, with a checkpoint written.
    """
    specs = [get_experiment(name) for name in names or EXPERIMENTS]
    settings = RunSettings(seed=seed, device=device)
    for spec in specs:  # before hours are spent on the others
        _check_same(out / spec.name, spec, settings, quick)
    for spec in specs:
        path = out / spec.name
        if is_run(path) and RunFolder.open(path).manifest["status"] == "finished":
            continue
        click.echo(f"\n{spec.name}: {spec.title}")
        with (
            resume_run(path) if is_run(path) else start_run(spec, path, settings, quick=quick) as (
                folder,
                of_run,
                of_settings,
            )
        ):
            results = finish_run(folder, of_run, replace(of_settings, threads=threads))
        click.echo("\n".join(in_lines(results.verdict)))
        _write_index(out)
    click.echo("")
    for path in _finished(out):
        manifest = RunFolder.open(path).manifest
        click.echo(f"{shown_verdict(manifest).badge.outcome:>10}  {manifest['experiment']}")
    click.echo(f"Index: {_write_index(out)}")


def _write_index(out: Path) -> Path:
    with full_disk_named(out, "Finished runs are kept; make room and run the command again."):
        return write_index(_finished(out), out / "index.html")


def _finished(out: Path) -> list[Path]:
    """The finished runs of the paper's experiments in a folder, in the paper's order."""
    paths = [out / name for name in EXPERIMENTS]
    return [
        path
        for path in paths
        if is_run(path) and RunFolder.open(path).manifest.get("status") == "finished"
    ]


def _check_same(path: Path, spec: ExperimentSpec, settings: RunSettings, quick: bool) -> None:
    """A run that is kept or taken up must be what is asked for now."""
    if not is_run(path):
        return
    folder = RunFolder.open(path)
    manifest = folder.manifest
    for option, asked in (
        ("seed", settings.seed),
        ("device", settings.device),
        ("quick", quick),
    ):
        if manifest.get(option) != asked:
            raise ValueError(
                f"the run in {path} was started with {option} {manifest.get(option)}, not {asked}; "
                "choose another folder with --out."
            )
    check_same_spec(folder, spec)
    folder.finished_saes()  # refused where some are lost: its verdict could not be looked into
