"""How good recommendations of an L0 are, on worlds with known answers.

python -m benchmarks.l0                      every world that is reported, hours on two cores
python -m benchmarks.l0 constant-small       one of them
python -m benchmarks.l0 --split tune         those that settings may be chosen by
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from benchmarks.l0.run import run_benchmark
from benchmarks.l0.summary import in_lines, summarize
from benchmarks.l0.table import append_row, read_table
from benchmarks.l0.worlds import read_worlds
from sparse_but_wrong.atomic import full_disk_named, locked
from sparse_but_wrong.l0.find import FindOptions


@click.command()
@click.argument("names", nargs=-1)
@click.option("--split", type=click.Choice(["tune", "report"]), default="report", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/bench-l0"),
    help="Folder of the table; worlds that are in it already are not run again.",
)
@click.option("--seed", type=int, default=0, help="Of streams and initial weights. [default: 0]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")
def bench(names: Sequence[str], split: str, out: Path, seed: int, threads: int | None) -> None:
    """Measure `find_l0` on worlds with known answers, all of a split or those NAMED.

    \f

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


if __name__ == "__main__":
    bench()
