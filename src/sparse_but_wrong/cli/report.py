"""`sbw report`: rebuild the report of a run."""

from __future__ import annotations

from pathlib import Path

import click

from sparse_but_wrong.cli.options import PATH


@click.command()
@click.argument("folder", type=PATH)
def report(folder: Path) -> None:
    """Rebuild report.html of the run in FOLDER, finished or not."""
    from sparse_but_wrong.atomic import full_disk_named
    from sparse_but_wrong.report.run import write_report
    from sparse_but_wrong.runs.folder import RunFolder

    with (
        RunFolder.open_locked(folder) as opened,
        full_disk_named(folder, "The old report is kept; free some space and try again."),
    ):
        click.echo(f"Report: {write_report(opened)}")
