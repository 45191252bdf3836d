"""`sbw list`, `show`, `run`, `paper` and `report`: the experiments, and their run folders."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sparse_but_wrong.atomic import full_disk_named
from sparse_but_wrong.cli.options import (
    NAME_OR_PATH,
    PATH,
    RUNS,
    device,
    on_cluster,
    out,
    quick,
    ray,
    threads,
)
from sparse_but_wrong.experiments.verdict import in_lines

if TYPE_CHECKING:
    from sparse_but_wrong.cluster.units import Cluster
    from sparse_but_wrong.experiments.analysis import Run
    from sparse_but_wrong.experiments.train import TrainUnits
    from sparse_but_wrong.loggers import Logger
    from sparse_but_wrong.runs.spec import ExperimentSpec

_MOST_ROWS = 40
"""A longer table does not help in a terminal."""

_LOG_TO = (
    "Hand training curves to TensorBoard (files in the run folder) or wandb, which reads its "
    "settings from the environment (WANDB_PROJECT, WANDB_MODE). [default: neither]"
)

_COLUMNS = {
    "l0_coefficient": ("coef.", "g"),
    "l0": ("L0", ".2f"),
    "dead_latents": ("dead", "d"),
    "mse": ("MSE", ".3f"),
    "variance_explained": ("var. expl.", ".4f"),
    "mcc": ("MCC", ".3f"),
    "f1": ("F1", ".3f"),
    "c_dec": ("c_dec", ".3f"),
}
"""Columns of the printed table: their heads and formats."""


@click.command("list")
def list_experiments() -> None:
    """List the experiments that `sbw run` knows."""
    from sparse_but_wrong.experiments.registry import EXPERIMENTS

    for name, spec in EXPERIMENTS.items():
        click.echo(f"{name}: {spec.title}\n    claim: {spec.claim}")


@click.command()
@click.argument("name")
def show(name: str) -> None:
    """Print the spec of the experiment NAME as YAML: a start for your own."""
    from sparse_but_wrong.experiments.registry import get_experiment
    from sparse_but_wrong.runs.spec_file import to_yaml

    click.echo(to_yaml(get_experiment(name)), nl=False)


@click.command()
@click.argument("name", type=NAME_OR_PATH)
@out("NAME")
@click.option("--seed", type=int, help="Seeds initial weights, data and directions. [default: 0]")
@device("to train", default=None)
@threads
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@quick
@click.option("--log-to", type=click.Choice(("tensorboard", "wandb")), help=_LOG_TO)
@ray
def run(
    name: str,
    out: Path | None,
    seed: int | None,
    device: str | None,
    resume: bool,
    quick: bool,
    log_to: str | None,
    ray: str | None,
) -> None:
    """Run the experiment NAME, or the one in a YAML file, and write its run folder.

    Ctrl-C and SIGTERM stop it with a checkpoint, from which --resume continues.
    """
    from sparse_but_wrong.experiments import runner
    from sparse_but_wrong.experiments.registry import get_experiment
    from sparse_but_wrong.runs.folder import fresh_path
    from sparse_but_wrong.runs.spec_file import is_spec_file, read_spec

    spec = read_spec(Path(name)) if is_spec_file(name) else get_experiment(name)
    _check_log_to(log_to, spec, ray)
    if resume:
        started = runner.resume_run(out or _latest_unfinished(spec.name))
    else:
        settings = runner.RunSettings(seed=seed or 0, device=device or "cpu")
        started = runner.start_run(spec, out or fresh_path(RUNS, spec.name), settings, quick=quick)
    with on_cluster(ray) as cluster, started as of_spec:
        if resume:
            asked = {"seed": seed, "device": device, "quick": quick or None}
            runner.check_same(of_spec.folder, spec, **asked)
        settings, budget = of_spec.settings, of_spec.spec.training.total_training_samples
        click.echo(
            f"{of_spec.spec.title}\n{len(of_spec.spec.saes)} SAEs, {budget:,} samples each, seed "
            f"{settings.seed}, {settings.device} → {of_spec.folder.path}"
        )
        try:
            with _logger(log_to, of_spec) as logger:
                of_spec.settings = replace(settings, logger=logger)
                runner.finish_run(of_spec, _train_units(cluster))
        except KeyboardInterrupt:
            path = str(of_spec.folder.path)
            command = shlex.join(["sbw", "run", name, "--out", path, "--resume"])
            click.echo(f"\nStopped. Continue with: {command}", err=True)
            raise
    _print(of_spec)


def _check_log_to(kind: str | None, spec: ExperimentSpec, ray: str | None) -> None:
    """Refuse, before a folder is made, what the curves of a run cannot be handed to."""
    if kind is not None and ray is not None:
        raise ValueError(
            "--log-to takes the curves of SAEs that train in this process; leave it out with --ray."
        )
    if kind == "tensorboard" and find_spec("tensorboard") is None:
        raise ValueError("TensorBoard is missing; pip install 'sparse_but_wrong[tensorboard]'.")
    if kind == "wandb" and len(spec.worlds) > 1:
        raise ValueError(
            f"wandb's steps never go back, but {spec.name} trains on {len(spec.worlds)} worlds, "
            "one after the other; use --log-to tensorboard."
        )


@contextmanager
def _logger(kind: str | None, run: Run) -> Iterator[Logger | None]:
    """What takes the training curves, with its files in the run's folder."""
    path = run.folder.path
    if kind is None:
        yield None
    elif kind == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(path / "tensorboard")) as writer:
            yield writer
    else:
        import wandb

        with wandb.init(name=path.name, dir=path, config=run.spec.to_dict()) as started:
            yield started


def _train_units(cluster: Cluster | None) -> TrainUnits:
    """What trains the SAEs of a run: a cluster, or this process."""
    from sparse_but_wrong.experiments.train import train_here

    if cluster is None:
        return train_here
    from sparse_but_wrong.cluster.sweep import train_on

    return partial(train_on, cluster)


def _latest_unfinished(name: str) -> Path:
    from sparse_but_wrong.runs.folder import RunFolder

    candidates = []
    for path in RUNS.glob(f"{name}*"):
        try:
            manifest = RunFolder.open(path).manifest
        except (OSError, ValueError):  # no run, or a damaged one: not the one that is meant
            continue
        if manifest.get("experiment") == name and manifest.get("status") != "finished":
            candidates.append(path)
    if not candidates:
        raise ValueError(f"There is no unfinished run of {name!r} in {RUNS}/. Name one with --out.")
    return max(candidates, key=lambda path: (path / "manifest.json").stat().st_mtime)


def _print(results: Run) -> None:
    folder = results.folder
    if 0 < len(results.table) <= _MOST_ROWS:
        click.echo(_table(results))
    click.echo("\n".join((f"Claim: {results.spec.claim}", *in_lines(results.verdict))))
    if results.spec.saes:
        seconds = folder.manifest["timings"].get("training_seconds", 0.0)
        click.echo(f"Training took {seconds:.0f} s.")
    click.echo(f"Run folder: {folder.path}\nReport: {folder.report_path}")


def _table(results: Run) -> str:
    """A row per SAE in order of L0: what sets it apart, and the metrics people ask for."""
    import pandas as pd

    from sparse_but_wrong.metrics.evaluation import join_projections

    spec = results.spec
    table = join_projections(results.table, results.projections).sort_values(by="l0")
    factors = dict.fromkeys(name for sae in spec.saes for name in sae.factors) or ["sae_id"]
    formats = {name: _COLUMNS.get(name, (name, "")) for name in factors}
    marked = list(formats)[-1]
    formats |= {name: column for name, column in _COLUMNS.items() if name in table}
    formats |= {f"s_{n}": (f"s_{n}", ".4f") for n in spec.projection_n[::3][:3]}
    shown = pd.DataFrame(
        {
            name: [_formatted(value, form) for value in table[name]]
            for name, (_, form) in formats.items()
        }
    )
    shown[marked] += ["*" if added else "" for added in table["added"]]
    true_l0 = ", ".join(
        f"True L0: {l0:.2f}" if len(results.true_l0) == 1 else f"{name}: {l0:.2f}"
        for name, l0 in list(results.true_l0.items())[:4]
    )
    note = "\n* added to the published grid" if any(table["added"]) else ""
    heads = [head for head, _ in formats.values()]
    return f"{true_l0}\n{shown.to_string(index=False, header=heads)}{note}\n"


def _formatted(value: object, form: str) -> str:
    return format(value, form or ("g" if isinstance(value, int | float) else ""))


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--out",
    type=PATH,
    default=RUNS / "paper",
    help="Folder of the run folders and the index page. Finished runs in it are kept.",
)
@click.option("--seed", type=int, default=0, help="Seeds every run.")
@device("to train")
@threads
@quick
@ray
def paper(
    names: tuple[str, ...], out: Path, seed: int, device: str, quick: bool, ray: str | None
) -> None:
    """Run every experiment of the paper, or those NAMED, and write an index page of verdicts.

    Started again, it continues with what is not finished.
    """
    from sparse_but_wrong.experiments import runner
    from sparse_but_wrong.experiments.registry import EXPERIMENTS, get_experiment
    from sparse_but_wrong.report.run import outcome_of, write_index
    from sparse_but_wrong.runs.folder import RunFolder, is_run

    def finished() -> list[RunFolder]:
        runs = [RunFolder.open(out / name) for name in EXPERIMENTS if is_run(out / name)]
        return [run for run in runs if run.manifest["status"] == "finished"]

    def index() -> Path:
        advice = "Finished runs are kept; free some space and run the command again."
        with full_disk_named(out, advice):
            return write_index([run.path for run in finished()], out / "index.html")

    specs = [get_experiment(name) for name in names or EXPERIMENTS]
    settings = {"seed": seed, "device": device, "quick": quick}
    for spec in specs:  # before hours are spent on the others
        if is_run(out / spec.name):
            folder = RunFolder.open(out / spec.name)
            runner.check_same(folder, spec, **settings)
            folder.finished_saes()  # refused where some are lost
    with on_cluster(ray) as cluster:
        train_units = _train_units(cluster)
        for spec in specs:
            path = out / spec.name
            if path not in [run.path for run in finished()]:
                click.echo(f"\n{spec.name}: {spec.title}")
                run = runner.run_experiment(
                    spec, path, resume=is_run(path), train_units=train_units, **settings
                )
                click.echo("\n".join(in_lines(run.verdict)))
                index()
    click.echo("")
    for run in finished():
        click.echo(f"{outcome_of(run.manifest):>10}  {run.manifest['experiment']}")
    click.echo(f"Index: {index()}")


@click.command()
@click.argument("folder", type=PATH)
def report(folder: Path) -> None:
    """Rebuild report.html of the run in FOLDER, finished or not."""
    from sparse_but_wrong.report.run import write_report
    from sparse_but_wrong.runs.folder import RunFolder

    advice = "The old report is kept; free some space and try again."
    with RunFolder.open_locked(folder) as opened, full_disk_named(folder, advice):
        click.echo(f"Report: {write_report(opened)}")
