"""`sbw report`: write the report of a run anew."""

from __future__ import annotations

from pathlib import Path

import click

from sparse_but_wrong.report.write import write_report
from sparse_but_wrong.runs.folder import RunFolder


def rebuild_report(path: Path) -> None:
    """Write the report of a finished run from what lies in its folder.

    Raises:
        FileNotFoundError: there is no run in it.
        ValueError: the run is not finished, or something in it is damaged.
    """
    folder = RunFolder.open(path)
    if folder.manifest.get("status") != "finished":
        raise ValueError(
            f"the run in {path} is not finished, so there is nothing to report; go on with it: "
            f"sbw run {folder.manifest.get('experiment')} --out {path} --resume"
        )
    with folder.locked():
        click.echo(f"Report: {write_report(folder)}")
