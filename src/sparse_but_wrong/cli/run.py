"""`sbw run`: start or resume a run, and print what it found."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import click

from sparse_but_wrong.experiments.registry import get_experiment
from sparse_but_wrong.experiments.runner import (
    Results,
    RunSettings,
    finish_run,
    resume_run,
    start_run,
)
from sparse_but_wrong.runs.folder import RunFolder, fresh_path

RUNS = Path("runs")


def run_experiment(
    name: str,
    *,
    out: Path | None,
    seed: int | None,
    device: str | None,
    threads: int | None,
    resume: bool,
    quick: bool,
) -> None:
    """Run an experiment from the command line.

    Raises:
        ValueError, OSError: bad input; the message is meant for the user.
        KeyboardInterrupt: on Ctrl-C, after a line that says how to go on.
    """
    experiment = get_experiment(name)
    if resume:
        path = out if out is not None else _latest_unfinished(name)
        folder, spec, settings = resume_run(path)
        _check_same(folder, name=name, seed=seed, device=device, quick=quick)
    else:
        settings = RunSettings(seed=seed or 0, device=device or "cpu")
        path = out if out is not None else fresh_path(RUNS, name)
        spec = experiment.spec
        folder = start_run(spec, path, settings, quick=quick)
        spec = spec.quick() if quick else spec
    settings = replace(settings, threads=threads)
    n_samples = spec.training.total_training_samples
    click.echo(
        f"{spec.title}\n{len(spec.saes)} SAEs, {n_samples:,} samples each, seed {settings.seed}, "
        f"{settings.device} → {folder.path}"
    )
    try:
        results = finish_run(folder, spec, settings)
    except KeyboardInterrupt:
        where = shlex.quote(str(folder.path))
        click.echo(f"\nStopped. Go on with: sbw run {name} --out {where} --resume", err=True)
        raise
    print_results(results, folder)


def _latest_unfinished(name: str) -> Path:
    candidates = []
    for path in RUNS.glob(f"{name}*"):
        try:
            manifest = RunFolder.open(path).manifest
        except (OSError, ValueError):  # no run, or a damaged one: not the one that is meant
            continue
        if manifest.get("experiment") == name and manifest.get("status") != "finished":
            candidates.append(path)
    if not candidates:
        raise ValueError(
            f"there is no unfinished run of {name!r} in {RUNS}/; name its folder with --out."
        )
    return max(candidates, key=lambda path: (path / "manifest.json").stat().st_mtime)


def _check_same(
    folder: RunFolder, *, name: str, seed: int | None, device: str | None, quick: bool
) -> None:
    """What is said on the command line must not contradict the run that is taken up."""
    manifest = folder.manifest
    for option, said, have in (
        ("NAME", name, manifest.get("experiment")),
        ("--seed", seed, manifest.get("seed")),
        ("--device", device, manifest.get("device")),
        ("--quick", quick or None, manifest.get("quick")),
    ):
        if said is not None and said != have:
            raise ValueError(
                f"{folder.path} was started with {option} {have}, not {said}; leave it out to "
                "resume that run, or start a new one in another folder."
            )


def print_results(results: Results, folder: RunFolder) -> None:
    """A short table, the findings in words, and where everything lies."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    shown_n = [n for n in (12, 15, 18) if n in results.spec.projection_n]
    table = Table(box=SIMPLE_HEAD, title=f"True L0: {results.true_l0:.2f}", title_justify="left")
    for column in (
        "coef.",
        "L0",
        "dead",
        "MSE",
        "var. expl.",
        "MCC",
        "c_dec",
        *(f"s_{n}" for n in shown_n),
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for row in results.table.sort_values(by="l0").to_dict("records"):
        table.add_row(
            f"{row['l0_coefficient']:g}{'*' if row['added'] else ''}",
            f"{row['l0']:.2f}",
            f"{row['dead_latents']}",
            f"{row['mse']:.3f}",
            f"{row['variance_explained']:.4f}",
            f"{row['mcc']:.3f}",
            f"{row['c_dec']:.3f}",
            *(f"{row[f's_{n}']:.4f}" for n in shown_n),
        )
    # Into a file or a pipe the table gets the width it needs.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(table)
    if any(results.table["added"]):
        console.print("* added to the published grid")
    if folder.manifest["quick"]:
        console.print("A quick run: it shows that everything works, and its figures mean nothing.")
    else:
        for line in folder.manifest["findings_in_words"]:
            console.print(line, soft_wrap=True)
    seconds = folder.manifest["timings"].get("training_seconds", 0.0)
    console.print(
        f"Training took {seconds:.0f} s. Everything is in {folder.path}",
        markup=False,
        soft_wrap=True,
    )
