"""`sbw bench-l0`: how good recommendations are, on worlds with known answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from sparse_but_wrong.atomic import full_disk_named, locked
from sparse_but_wrong.cli.quiet import quiet_training
from sparse_but_wrong.l0.find import FindOptions
from sparse_but_wrong.l0_benchmark.run import run_benchmark
from sparse_but_wrong.l0_benchmark.summary import in_lines, summarize
from sparse_but_wrong.l0_benchmark.table import append_row, read_table
from sparse_but_wrong.l0_benchmark.worlds import read_worlds


def bench(names: Sequence[str], *, split: str, out: Path, seed: int, threads: int | None) -> None:
    """Run the benchmark, a line per world, then the summary.

    Raises:
        ValueError: a name that no world has, or a table that is damaged.
        OSError: a folder that cannot be made.
    """
    worlds = read_worlds()
    for name in names:
        if name not in worlds:
            raise ValueError(f"there is no world {name!r}; there is: {', '.join(worlds)}.")
    chosen = [worlds[name] for name in dict.fromkeys(names)] or [
        entry for entry in worlds.values() if entry.split == split
    ]
    path = out / f"seed_{seed}.csv"
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):  # or the rows of another process that adds to the table would be lost
        done = set(read_table(path)["world"]) if path.exists() else set()
        left = [entry for entry in chosen if entry.name not in done]
        if len(left) < len(chosen):
            click.echo(
                f"{len(chosen) - len(left)} of the worlds are in {path} already and are not run "
                "again; after a change give another --out."
            )
        kept = f"The rows in {path} are kept; make room and run the command again to go on."
        with quiet_training():
            for row in run_benchmark(left, seed, FindOptions(threads=threads, progress=False)):
                click.echo(row.as_line())
                with full_disk_named(out, kept):
                    append_row(path, row)
    table = read_table(path)
    wanted = {entry.name for entry in chosen}
    table = table.loc[[world in wanted for world in table["world"]]]
    for line in in_lines(summarize(table)):
        click.echo(line)
    click.echo(f"The table: {path}")
