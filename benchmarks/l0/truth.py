"""At which L0 SAEs recover the features of the large worlds best: what a recommendation is held to.

    python -m benchmarks.l0.truth                            every grid that has no table yet
    python -m benchmarks.l0.truth tune-zipf -a batchtopk     one world and architecture

A table per world and architecture, truth/WORLD_ARCHITECTURE.csv, has a row per SAE: two seeds at
every L0 of a grid in steps of a quarter, which is extended while a best L0 is at its end. The mean
of the activations is subtracted, as in `find_l0`: on some worlds that moves the best L0 by a factor
of two. The SAEs are kept below --saes for whoever wants to try another signal on them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import torch
from torch.nn.functional import normalize

from benchmarks.l0.large import Architecture, LargeWorld, chosen_worlds
from sparse_but_wrong import atomic
from sparse_but_wrong.l0.agreement import firing_rows, pw_mcc, shared_latents
from sparse_but_wrong.l0.options import has_k, training_config
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.sae_lens_compat import inference_copy
from sparse_but_wrong.seeds import derive_seed
from sparse_but_wrong.training.controls import TargetL0
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.make import make_saes
from sparse_but_wrong.training.options import TrainOptions

if TYPE_CHECKING:
    import pandas as pd
    import sae_lens

HERE = Path(__file__).parent / "truth"
STEPS, BATCH_SIZE, LR = 3_000, 512, 1e-3
N_SEEDS = 2
RATIO = 1.25
FACTORS = tuple(0.35 * RATIO**i for i in range(10))
"""The grid, in units of the features active per sample."""

N_SAMPLES = 24_576
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
"""n at which s_n^dec is kept, in units of d_sae."""

TRUTHS = ("best_cosine", "mcc", "f1")
"""By which an L0 is best: mean best cosine of the latents that fire, MCC, and F1 as detectors."""


def train(
    world: LargeWorld, architecture: str, targets: Sequence[float], frozen_decoders: bool = False
) -> list[sae_lens.TrainingSAE[Any]]:
    """SAEs of every target L0, all seeds of one after the other, on one stream."""
    pairs = [(target, seed) for target in targets for seed in range(N_SEEDS)]
    widths = world.world.d_in, world.d_sae
    cfgs = [training_config(architecture, target, *widths) for target, _ in pairs]
    seeds = [derive_seed(seed, "truth", world.name, f"{target:.4g}") for target, seed in pairs]
    saes = make_saes(cfgs, seeds=seeds)
    for sae in saes:
        sae.W_dec.requires_grad_(not frozen_decoders)
    train_saes(
        saes,
        (x - world.mean for x in world.stream(BATCH_SIZE, "truth")),
        TrainOptions(
            total_training_samples=STEPS * BATCH_SIZE,
            train_batch_size_samples=BATCH_SIZE,
            lr=LR,
            lr_decay_steps=STEPS // 5,
            reinit_dead_every=200,
            n_batches_for_norm_estimate=50,
            progress=False,
        ),
        controls=[None if has_k(architecture) else TargetL0(target) for target, _ in pairs],
    )
    return saes


@torch.no_grad()
def rows(
    world: LargeWorld, saes: Sequence[sae_lens.TrainingSAE[Any]], targets: Sequence[float]
) -> Iterator[dict[str, float]]:
    """What is measured of each SAE, with the true features and without."""
    from sae_lens.synthetic import mean_correlation_coefficient

    activations, features = world.samples(N_SAMPLES, "evaluation")
    activations -= world.mean
    directions = world.world.directions.T.contiguous()
    evaluations = evaluate(saes, activations, world.world.directions, features)
    fires = [torch.from_numpy(found.densities) > 0 for found in evaluations]
    firing = [firing_rows(sae, found) for sae, found in zip(saes, evaluations, strict=True)]
    # With the SAE of the same L0 from the other seed.
    agreed = [
        (shared_latents(firing[i], firing[i + 1]), pw_mcc(saes[i].W_dec, saes[i + 1].W_dec).value)
        for i in range(0, len(saes), N_SEEDS)
    ]
    for i, (sae, found) in enumerate(zip(saes, evaluations, strict=True)):
        used, (shared, matched) = inference_copy(sae), agreed[i // N_SEEDS]
        code_norm = 0.0
        for x in activations.split(2048):
            codes = used.encode(x)
            code_norm += float((codes * used.W_dec.norm(dim=1)).norm(dim=1).sum())
        best = (normalize(used.W_dec, dim=1) @ normalize(directions, dim=1).T).amax(1)
        yield {
            "target": targets[i // N_SEEDS],
            "seed": i % N_SEEDS,
            "l0": found.l0,
            "dead_latents": found.dead_latents,
            "dense_latents": found.dense_latents,
            "mse": found.mse,
            "variance_explained": found.variance_explained,
            "shrinkage": found.shrinkage,
            "code_norm": code_norm / N_SAMPLES,
            "input_norm": float((activations - used.b_dec).norm(dim=1).mean()),
            "c_dec": found.c_dec,
            "c_enc": found.c_enc,
            "shared_latents": shared,
            "pw_mcc": matched,
            **{f"s_{s:g}": float(found.projections[round(s * world.d_sae)]) for s in SHARES},
            "best_cosine": float(best[fires[i]].mean()) if fires[i].any() else math.nan,
            # Not that of `evaluate`, which keeps the signs of cosines: published numbers do not.
            "mcc": mean_correlation_coefficient(used.W_dec, directions),
            "uniqueness": found.uniqueness,
            "f1": found.f1,
            "precision": found.precision,
            "recall": found.recall,
        }


def missing_targets(world: LargeWorld, table: pd.DataFrame) -> list[float]:
    """L0s that are still to be trained: the grid, then more of it where a best one is at an end."""
    true_l0, most = world.l0[0], 0.45 * world.d_sae
    if table.empty:
        return [f * true_l0 for f in FACTORS if f * true_l0 < most]
    recovery = table.pivot_table(index="target", values=list(TRUTHS))
    grid = recovery.index.to_numpy(float)
    best = {float(grid[int(recovery[name].to_numpy(float).argmax())]) for name in TRUTHS}
    low, high = float(grid[0]), float(grid[-1])
    further = [low / RATIO**i for i in (1, 2) if low in best and low > 0.1 * true_l0]
    further += [high * RATIO**i for i in (1, 2) if high in best and high < 8 * true_l0]
    return [target for target in further if 1 <= target < most]


@click.command()
@click.argument("names", nargs=-1)
@click.option("-a", "--architecture", type=click.Choice(get_args(Architecture)), multiple=True)
@click.option("--split", type=click.Choice(["tune", "report"]), help="Only the worlds of one.")
@click.option("--saes", type=click.Path(path_type=Path), default=Path("runs/truth"))
def main(
    names: tuple[str, ...], architecture: tuple[str, ...], split: str | None, saes: Path
) -> None:
    """Train the grids that have no table yet, of all large worlds or of those NAMED."""
    import pandas as pd

    for world in chosen_worlds(names, split):
        for name in architecture or get_args(Architecture):
            file = HERE / f"{world.name}_{name}.csv"
            if file.exists():
                continue
            started, table = time.monotonic(), pd.DataFrame()
            while targets := missing_targets(world, table):
                trained = train(world, name, targets)
                new = pd.DataFrame(list(rows(world, trained, targets)))
                for i, sae in enumerate(trained):
                    place = f"{targets[i // N_SEEDS]:.4g}_{i % N_SEEDS}"
                    sae.save_inference_model(str(saes / world.name / name / place))
                table = pd.concat([table, new]).sort_values(["target", "seed"])
                click.echo(f"{world.name}, {name}: {len(table)} SAEs")
                shown = table.pivot_table(index="target", values=["l0", "pw_mcc", *TRUTHS])
                click.echo(shown.round(3).to_string())
            table.insert(0, "true_l0", world.l0[0])
            table.insert(1, "top_l0", world.l0[1])
            table["seconds"] = (time.monotonic() - started) / len(table)
            atomic.write_bytes(file, table.to_csv(index=False).encode())


if __name__ == "__main__":
    main()
