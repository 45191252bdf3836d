"""`sbw paper`: every experiment of the paper, one after the other, and an index of verdicts."""

from __future__ import annotations

from pathlib import Path

import click

from sparse_but_wrong.cli.options import PATH, device, quick, threads


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--out",
    type=PATH,
    default=Path("runs/paper"),
    help="Folder of the run folders and the index page. Finished runs in it are kept.",
)
@click.option("--seed", type=int, default=0, help="Seeds every run.")
@device("to train")
@threads
@quick
def paper(names: tuple[str, ...], out: Path, seed: int, device: str, quick: bool) -> None:
    """Run every experiment of the paper, or those NAMED, and write an index page of verdicts.

    Started again, it continues with what is not finished.
    """
    from sparse_but_wrong.experiments import runner
    from sparse_but_wrong.experiments.registry import EXPERIMENTS, get_experiment
    from sparse_but_wrong.experiments.verdict import in_lines
    from sparse_but_wrong.report.run import outcome_of
    from sparse_but_wrong.runs.folder import RunFolder, is_run

    specs = [get_experiment(name) for name in names or EXPERIMENTS]
    for spec in specs:  # before hours are spent on the others
        if is_run(out / spec.name):
            folder = RunFolder.open(out / spec.name)
            runner.check_same(folder, spec, seed=seed, device=device, quick=quick)
            folder.finished_saes()  # refused where some are lost
    settings = runner.RunSettings(seed=seed, device=device)
    for spec in specs:
        path = out / spec.name
        if path in _finished(out):
            continue
        click.echo(f"\n{spec.name}: {spec.title}")
        started = (
            runner.resume_run(path)
            if is_run(path)
            else runner.start_run(spec, path, settings, quick=quick)
        )
        with started as run:
            runner.finish_run(run)
        click.echo("\n".join(in_lines(run.verdict)))
        _write_index(out)
    click.echo("")
    for path in _finished(out):
        manifest = RunFolder.open(path).manifest
        click.echo(f"{outcome_of(manifest):>10}  {manifest['experiment']}")
    click.echo(f"Index: {_write_index(out)}")


def _write_index(out: Path) -> Path:
    from sparse_but_wrong.atomic import full_disk_named
    from sparse_but_wrong.report.run import write_index

    with full_disk_named(out, "Finished runs are kept; free some space and run the command again."):
        return write_index(_finished(out), out / "index.html")


def _finished(out: Path) -> list[Path]:
    """The finished runs in a folder, in the paper's order."""
    from sparse_but_wrong.experiments.registry import EXPERIMENTS
    from sparse_but_wrong.runs.folder import RunFolder, is_run

    paths = [out / name for name in EXPERIMENTS if is_run(out / name)]
    return [path for path in paths if RunFolder.open(path).manifest.get("status") == "finished"]
