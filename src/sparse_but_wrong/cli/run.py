"""`sbw run`: start or resume a run, and print what it found."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparse_but_wrong.experiments.analysis import Results
from sparse_but_wrong.experiments.registry import get_experiment
from sparse_but_wrong.experiments.runner import (
    RunSettings,
    check_same_spec,
    finish_run,
    resume_run,
    start_run,
)
from sparse_but_wrong.experiments.verdict import in_lines
from sparse_but_wrong.runs.folder import RunFolder, fresh_path
from sparse_but_wrong.runs.spec_file import is_spec_file, read_spec

if TYPE_CHECKING:
    from rich.table import Table

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
    spec = read_spec(Path(name)) if is_spec_file(name) else get_experiment(name)
    if resume:
        path = out if out is not None else _latest_unfinished(spec.name)
        taken_up = resume_run(path)
    else:
        path = out if out is not None else fresh_path(RUNS, spec.name)
        settings = RunSettings(seed=seed or 0, device=device or "cpu")
        taken_up = start_run(spec, path, settings, quick=quick)
    with taken_up as (folder, of_run, settings):
        if resume:
            _check_same(folder, name=spec.name, seed=seed, device=device, quick=quick)
            check_same_spec(folder, spec)
        settings = replace(settings, threads=threads)
        click.echo(
            f"{of_run.title}\n{len(of_run.saes)} SAEs, "
            f"{of_run.training.total_training_samples:,} samples each, seed {settings.seed}, "
            f"{settings.device} → {folder.path}"
        )
        try:
            results = finish_run(folder, of_run, settings)
        except KeyboardInterrupt:
            command = shlex.join(["sbw", "run", name, "--out", str(folder.path), "--resume"])
            click.echo(f"\nStopped. Go on with: {command}", err=True)
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
    """A short table, the verdict, and where everything lies."""
    from rich.console import Console

    # Into a file or a pipe the table gets the width it needs.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if 0 < len(results.table) <= _MOST_ROWS:
        console.print(_table(results))
        if any(results.table["added"]):
            console.print("* added to the published grid")
    for line in (f"Claim: {results.spec.claim}", *in_lines(results.verdict)):
        console.print(line, soft_wrap=True, markup=False)
    seconds = folder.manifest["timings"].get("training_seconds", 0.0)
    if results.spec.saes:
        console.print(f"Training took {seconds:.0f} s.")
    console.print(f"Everything is in {folder.path}", markup=False, soft_wrap=True)
    console.print(f"Report: {folder.report_path}", markup=False, soft_wrap=True)


def _table(results: Results) -> Table:
    """A row per SAE in order of L0: what sets it apart, and the measurements people ask for."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    spec = results.spec
    factors = list(dict.fromkeys(name for sae in spec.saes for name in sae.factors)) or ["sae_id"]
    shown_n = spec.projection_n[::3][:3]
    title = ", ".join(
        f"True L0: {l0:.2f}" if len(results.true_l0) == 1 else f"{name}: {l0:.2f}"
        for name, l0 in list(results.true_l0.items())[:4]
    )
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left")
    measured = {name: form for name, form in _MEASURED.items() if name in results.table.columns}
    heads = (_HEADS.get(name, name) for name in measured)
    for column in (
        *(_SHORT.get(name, name) for name in factors),
        *heads,
        *map("s_{}".format, shown_n),
    ):
        table.add_column(escape(column), justify="right", no_wrap=True)
    for row in results.table.sort_values(by="l0").to_dict("records"):
        values = [_short(row[name]) for name in factors]
        values[-1] += "*" if row["added"] else ""
        table.add_row(
            *(escape(value) for value in values),
            *(format(row[name], form) for name, form in measured.items()),
            *(f"{row[f's_{n}']:.4f}" for n in shown_n),
        )
    return table


_MOST_ROWS = 40
"""Above that a table is no help in a terminal."""

_MEASURED = {
    "l0": ".2f",
    "dead_latents": "",
    "mse": ".3f",
    "variance_explained": ".4f",
    "mcc": ".3f",
    "c_dec": ".3f",
}
"""What is shown of a row, and how; those that its table has."""

_HEADS = {
    "l0": "L0",
    "dead_latents": "dead",
    "mse": "MSE",
    "variance_explained": "var. expl.",
    "mcc": "MCC",
}

_SHORT = {"l0_coefficient": "coef."}


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
