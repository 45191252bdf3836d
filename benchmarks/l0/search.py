"""What `find_l0` says on the large worlds, from activations alone; its regret is in `regret.py`.

    python -m benchmarks.l0.search --split report                 every world that has no row yet
    python -m benchmarks.l0.search eighth --control shuffled      what has to be declined

SAEs have the budget of the grids of `truth.py`. Rows are added to search.csv one by one, and what
the SAEs of each search share to a file in searches/, so that another way to read it needs no SAEs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import torch
from torch import Tensor

from benchmarks.l0.large import Architecture, LargeWorld, chosen_worlds
from benchmarks.l0.truth import BATCH_SIZE, LR, N_SEEDS, STEPS, missing_targets, train
from sparse_but_wrong import atomic
from sparse_but_wrong.l0.find import FindOptions, find_l0
from sparse_but_wrong.l0.recommend import L0Recommendation, recommend_l0
from sparse_but_wrong.l0.sweep import evaluate_sweep
from sparse_but_wrong.seeds import derive_seed

TABLE = Path(__file__).parent / "search.csv"
SHARED = Path(__file__).parent / "searches"
CONTROLS = ("none", "noise", "shuffled", "random-decoders")
"""Activations as they are; Gaussian noise of their mean and covariance; each coordinate shuffled
over the samples of a batch; SAEs of the grid of `truth.py` whose decoders stay as they begin."""

_COVARIANCE_SAMPLES = 50_000


def source(world: LargeWorld, control: str) -> Iterator[Tensor]:
    """Batches without end, of a world or of a control made from it."""
    stream = world.stream(BATCH_SIZE, "search")
    generator = torch.Generator().manual_seed(derive_seed(0, control, world.name))
    if control == "noise":
        samples = world.samples(_COVARIANCE_SAMPLES, "covariance")[0]
        factor = torch.linalg.cholesky(samples.T.cov())
        while True:
            drawn = torch.randn(BATCH_SIZE, world.d_in, generator=generator)
            yield samples.mean(0) + drawn @ factor.T
    for x in stream:
        if control == "shuffled":
            x = x.gather(0, torch.rand(x.shape, generator=generator).argsort(0))
        yield x


def search(
    world: LargeWorld, architecture: str, control: str, options: FindOptions
) -> L0Recommendation:
    """What `find_l0` says."""
    if control == "random-decoders":
        return _judge_random_decoders(world, architecture)
    return find_l0(source(world, control), world.d_sae, options)


def row_of(found: L0Recommendation, true_l0: float) -> dict[str, object]:
    """A recommendation as numbers; NaN for what it does not say."""
    low, high = found.interval or (math.nan, math.nan)
    active = found.active
    active_low, active_high = active.interval or (math.nan, math.nan)
    return {
        "l0": math.nan if found.l0 is None else found.l0,
        "low": low,
        "high": high,
        "basis": found.basis,
        "true_l0": true_l0,
        "active": math.nan if active.l0 is None else active.l0,
        "active_low": active_low,
        "active_high": active_high,
        "counted": math.nan if active.counted is None else active.counted,
        "n_saes": len(found.sweep.table),
    }


def _judge_random_decoders(world: LargeWorld, architecture: str) -> L0Recommendation:
    import pandas as pd

    targets = missing_targets(world, pd.DataFrame())
    saes = train(world, architecture, targets, frozen_decoders=True)
    groups = [f"seed_{i % N_SEEDS}" for i in range(len(saes))]
    stream = (x - world.mean for x in world.stream(BATCH_SIZE, "search"))
    return recommend_l0(evaluate_sweep(saes, stream, groups=groups))


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "-a",
    "--architecture",
    type=click.Choice(get_args(Architecture)),
    default="batchtopk",
    show_default=True,
)
@click.option("--control", type=click.Choice(CONTROLS), default="none", show_default=True)
@click.option("--split", type=click.Choice(["tune", "report"]), help="Only the worlds of one.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [default: all cores]")
@click.option("--table", type=click.Path(path_type=Path), default=TABLE, show_default=True)
def main(
    names: tuple[str, ...],
    architecture: str,
    control: str,
    split: str | None,
    threads: int | None,
    table: Path,
) -> None:
    """Search for the L0 of all large worlds, or of those NAMED, that have no row yet."""
    import pandas as pd

    options = FindOptions(
        architecture=architecture, fine_steps=STEPS, lr=LR, threads=threads, progress=False
    )
    for world in chosen_worlds(names, split):
        rows = pd.read_csv(table) if table.exists() else pd.DataFrame()
        key = {"world": world.name, "architecture": architecture, "control": control}
        if len(rows) and rows[list(key)].eq(pd.Series(key)).to_numpy().all(1).any():
            continue
        started = time.monotonic()
        found = search(world, architecture, control, options)
        row = key | row_of(found, world.l0[0])
        row |= {"seconds": time.monotonic() - started, "doubts": " ".join(found.doubts)}
        click.echo(", ".join(f"{name}: {value}" for name, value in row.items()))
        shared = found.sweep.table.to_csv(index=False)
        atomic.write_bytes(SHARED / f"{'_'.join(key.values())}.csv", shared.encode())
        text = pd.concat([rows, pd.DataFrame([row])]).to_csv(index=False)
        atomic.write_bytes(table, text.encode())


if __name__ == "__main__":
    main()
