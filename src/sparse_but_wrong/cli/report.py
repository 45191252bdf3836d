"""`sbw report`: write the report of a run anew."""

from __future__ import annotations

from pathlib import Path

import click

from sparse_but_wrong.atomic import full_disk_named
from sparse_but_wrong.report.write import write_report
from sparse_but_wrong.runs.folder import RunFolder


def rebuild_report(path: Path) -> None:
    """Write the report of a run from what lies in its folder, finished or not.

    Raises:
        FileNotFoundError: there is no run in it.
        ValueError: something in it is damaged, or another process works in it.
    """
    with (
        RunFolder.open_locked(path) as folder,
        full_disk_named(path, "The report that was there is kept; make room and try again."),
    ):
        click.echo(f"Report: {write_report(folder)}")
