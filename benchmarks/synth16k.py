"""SynthSAEBench-16k, rebuilt: its protocol beside the published numbers, and a search for an L0.

    python -m benchmarks.synth16k --device cuda    the published protocol: 70 SAEs of 200 M samples
    python -m benchmarks.synth16k --samples 500_000 --features 1024 --d-in 192 --d-sae 256 --seeds 1

The world is rebuilt from its published configuration, so its directions are not the published ones.
Below --out lie the world, every SAE as a sae_lens folder, a row per SAE, and the table of means. A
second call with the same settings reads what is there and goes on with the rest.

Source: arXiv:2602.14687 for the world, the protocol and the published numbers.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch

from benchmarks.l0.large import kept_world
from sparse_but_wrong import atomic
from sparse_but_wrong.api import FoundL0, find_l0
from sparse_but_wrong.l0.options import FindOptions, training_config
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.seeds import derive_seed
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.make import make_saes
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.worlds.synthetic import SyntheticWorld

if TYPE_CHECKING:
    import pandas as pd
    import sae_lens

ARCHITECTURES = ("batchtopk", "matryoshka_batchtopk")
BATCH_SIZE, LR = 1_024, 3e-4
PUBLISHED: Mapping[tuple[str, float], tuple[float, float]] = {
    ("batchtopk", 20): (0.818, 0.753),
    ("batchtopk", 25): (0.732, 0.757),
    ("matryoshka_batchtopk", 20): (0.860, 0.745),
    ("matryoshka_batchtopk", 25): (0.879, 0.793),
}
"""F1 and MCC by architecture and L0, means over five seeds."""

_SHOWN = [
    *("architecture", "l0", "seeds", "f1", "published_f1", "mcc", "published_mcc"),
    *("explained_variance", "dead_latents", "export_l0", "export_f1"),
]
"""Columns of the table that are printed; the file has all."""

_L0_SAMPLES = 20 * BATCH_SIZE
_OURS_AT_MOST = 16_384
"""Samples that `evaluate` gets: it holds the firings of all features in all of them."""


@dataclass(frozen=True)
class Protocol:
    """What the numbers follow from; the defaults are the published ones."""

    n_features: int = 16_384
    d_in: int = 768
    orthogonalization_steps: int = 100
    d_sae: int = 4_096
    matryoshka_widths: tuple[int, ...] = ()
    """A quarter, half and all of d_sae if left out; the published ones are not known here."""

    l0s: tuple[float, ...] = (15, 20, 25, 30, 35, 40, 45)
    n_seeds: int = 5
    n_samples: int = 200_000_000
    evaluation_samples: int = 100_000

    @property
    def n_steps(self) -> int:
        """Batches that each SAE is trained on."""
        return math.ceil(self.n_samples / BATCH_SIZE)

    @property
    def is_of_published_shape(self) -> bool:
        """Whether world and SAEs are those that the published numbers are of, at any budget."""
        names = ("n_features", "d_in", "orthogonalization_steps", "d_sae")
        return all(getattr(self, name) == getattr(Protocol(), name) for name in names)

    @property
    def sae_ids(self) -> dict[str, tuple[float, int]]:
        """The L0 and the seed of every SAE of an architecture, by its name."""
        pairs = itertools.product(range(self.n_seeds), self.l0s)
        return {f"l0_{l0:g}_seed_{seed}": (l0, seed) for seed, l0 in pairs}

    def world(self) -> dict[str, Any]:
        """The `SyntheticModelConfig`; smaller worlds have as many of their features in trees."""
        return {
            "num_features": self.n_features,
            "hidden_dim": self.d_in,
            "firing_probability": {
                "generator_name": "zipfian",
                "exponent": 0.5,
                "max_prob": 0.4,
                "min_prob": 5e-4,
            },
            "hierarchy": {
                "total_root_nodes": self.n_features // 128,
                "branching_factor": 4,
                "max_depth": 3,
                "mutually_exclusive_portion": 1.0,
                "compensate_probabilities": True,
                "scale_children_by_parent": True,
            },
            "correlation": {"rank": 25, "correlation_scale": 0.1},
            "mean_firing_magnitudes": {"generator_name": "linear", "start": 5.0, "end": 4.0},
            "std_firing_magnitudes": {"generator_name": "folded_normal", "mean": 0.5, "std": 0.5},
            "orthogonalization": {"num_steps": self.orthogonalization_steps, "lr": 3e-4},
            "bias": True,
            "seed": 42,
        }

    def saes(self, architecture: str, device: str) -> list[sae_lens.TrainingSAE[Any]]:
        """Untrained SAEs in the order of `sae_ids`."""
        own = {"normalize_activations": "none", **self._own(architecture)}
        pairs = self.sae_ids.values()
        cfgs = [training_config(architecture, l0, self.d_in, self.d_sae, **own) for l0, _ in pairs]
        seeds = [derive_seed(seed, architecture, f"{l0:g}") for l0, seed in pairs]
        return make_saes(cfgs, seeds, device=device)

    def search(self, architecture: str, device: str) -> FindOptions:
        """A search whose SAEs get a tenth of the budget, and its own defaults if that is less."""
        fine = min(self.n_steps, max(FindOptions.fine_steps, self.n_steps // 10))
        return FindOptions(
            architecture=architecture,
            sae_config=self._own(architecture),
            device=device,
            coarse_steps=math.ceil(fine * 2 / 3),
            fine_steps=fine,
            learning_batches=min(FindOptions.learning_batches, self.n_steps),
        )

    def _own(self, architecture: str) -> dict[str, Any]:
        if architecture != "matryoshka_batchtopk":
            return {}
        default: Any = training_config(architecture, 1.0, self.d_in, self.d_sae)
        return {"matryoshka_widths": list(self.matryoshka_widths or default.matryoshka_widths)}


def true_l0(world: SyntheticWorld, width: int) -> tuple[float, float]:
    """Features active per sample: all, and the first so many, which are the most frequent."""
    generator = world.stream(BATCH_SIZE, derive_seed(0, "true_l0")).generator
    firings = torch.zeros(world.n_features, device=generator.device)
    for _ in range(_L0_SAMPLES // BATCH_SIZE):
        firings += (world.sampler.sample(BATCH_SIZE, generator) > 0).sum(0)
    active = firings / _L0_SAMPLES
    return float(active.sum()), float(active[:width].sum())


def train(world: SyntheticWorld, protocol: Protocol, architecture: str, folder: Path) -> None:
    """Train the SAEs of an architecture in one stack into a new folder."""
    saes = protocol.saes(architecture, str(world.directions.device))
    options = TrainOptions(
        total_training_samples=protocol.n_samples, train_batch_size_samples=BATCH_SIZE, lr=LR
    )
    log = train_saes(saes, world.stream(BATCH_SIZE, derive_seed(0, "train")), options)
    with atomic.new_folder(folder) as unfinished:
        for sae_id, sae in zip(protocol.sae_ids, saes, strict=True):
            sae.save_model(unfinished / sae_id)
        curves = log.to_frame().to_csv(index=False)
        atomic.write_bytes(unfinished / "training_curves.csv", curves.encode())


def measure(
    world: SyntheticWorld, protocol: Protocol, architecture: str, folder: Path
) -> pd.DataFrame:
    """A row per SAE: sae_lens' own evaluator, then `evaluate`.

    sae_lens' runner evaluates the SAE as it is trained, with its k over each batch; `evaluate` the
    thresholded export, and its MCC keeps the signs of cosines. All SAEs meet the same samples.
    """
    import pandas as pd
    from sae_lens import TrainingSAE
    from sae_lens.synthetic import eval_sae_on_synthetic_data

    device = world.directions.device
    saes = {
        sae_id: TrainingSAE.load_from_disk(folder / sae_id, device=str(device))
        for sae_id in protocol.sae_ids
    }
    seed = derive_seed(0, "evaluation")
    stream = world.stream(BATCH_SIZE, seed)
    n = min(protocol.evaluation_samples, _OURS_AT_MOST)
    drawn = [(x, acts > 0) for x, acts in (stream.draw() for _ in range(-(-n // BATCH_SIZE)))]
    x, fires = (torch.cat(parts)[:n] for parts in zip(*drawn, strict=True))
    del drawn
    rows = []
    for sae_id, ours in zip(saes, evaluate(saes, x, world.directions, fires), strict=True):
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            theirs = eval_sae_on_synthetic_data(
                saes[sae_id],
                world.synthetic.feature_dict,
                world.synthetic.activation_generator,
                num_samples=protocol.evaluation_samples,
                batch_size=BATCH_SIZE,
            )
        l0, n_seed = protocol.sae_ids[sae_id]
        rows.append(
            {
                "architecture": architecture,
                "l0": l0,
                "seed": n_seed,
                "samples": protocol.n_samples,
                "f1": theirs.classification.f1_score,
                "mcc": theirs.mcc,
                "precision": theirs.classification.precision,
                "recall": theirs.classification.recall,
                "uniqueness": theirs.uniqueness,
                "explained_variance": theirs.explained_variance,
                "dead_latents": theirs.dead_latents,
                "sae_l0": theirs.sae_l0,
                "export_l0": ours.l0,
                "export_f1": ours.f1,
                "signed_mcc": ours.mcc,
            }
        )
    return pd.DataFrame(rows)


def means(rows: pd.DataFrame, protocol: Protocol) -> pd.DataFrame:
    """Means over seeds, with the published ones where world and SAEs have the published shape."""
    by = ["architecture", "l0"]
    values = [name for name in rows.columns if name not in (*by, "seed")]
    table = rows.pivot_table(index=by, values=values)[values].reset_index()
    known = PUBLISHED if protocol.is_of_published_shape else {}
    keys = zip(table["architecture"], table["l0"], strict=True)
    published = [known.get(key, (math.nan, math.nan)) for key in keys]
    table.insert(2, "seeds", protocol.n_seeds)
    table.insert(4, "share_of_published_samples", protocol.n_samples / Protocol.n_samples)
    table.insert(6, "published_f1", [f1 for f1, _ in published])
    table.insert(8, "published_mcc", [mcc for _, mcc in published])
    return table


def search_l0(world: SyntheticWorld, protocol: Protocol, architecture: str) -> FoundL0:
    """An L0 for the width, from activations alone."""
    stream = world.stream(BATCH_SIZE, derive_seed(0, "search"))
    options = protocol.search(architecture, str(world.directions.device))
    return find_l0(stream, protocol.d_sae, options)


def check_same(protocol: Protocol, file: Path) -> None:
    """Refuse (ValueError) a folder whose numbers follow from other settings; else note these."""
    settings = json.dumps(asdict(protocol), indent=2)
    if file.exists() and file.read_text(encoding="utf-8") != settings:
        raise ValueError(f"{file} has other settings than these; name another folder with --out.")
    atomic.write_bytes(file, settings.encode())


@click.command()
@click.option("--samples", "n_samples", default=Protocol.n_samples, help="Of each SAE.")
@click.option("--l0", "l0s", type=float, multiple=True, default=Protocol.l0s, show_default=True)
@click.option("--seeds", "n_seeds", type=click.IntRange(min=1), default=Protocol.n_seeds)
@click.option("--features", "n_features", default=Protocol.n_features, help="Of the world.")
@click.option("--d-in", default=Protocol.d_in)
@click.option("--d-sae", default=Protocol.d_sae)
@click.option(
    *("--matryoshka-width", "matryoshka_widths"),
    type=int,
    multiple=True,
    help="[default: a quarter, half and all of d_sae]",
)
@click.option(
    "--orthogonalization-steps",
    default=Protocol.orthogonalization_steps,
    help="Of the world's directions; fewer make it sooner, and another world.",
)
@click.option("--evaluation-samples", default=Protocol.evaluation_samples)
@click.option(
    "--architecture", type=click.Choice(ARCHITECTURES), multiple=True, default=ARCHITECTURES
)
@click.option("--device", default="cpu")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/synth16k"))
@click.option("--world", type=click.Path(path_type=Path), help="Its folder. [default: OUT/world]")
@click.option("--find-l0/--no-find-l0", "finds", default=True, help="Search as well, or do not.")
def main(
    architecture: tuple[str, ...],
    device: str,
    out: Path,
    world: Path | None,
    finds: bool,
    **settings: Any,
) -> None:
    """Train, evaluate and search on SynthSAEBench-16k, rebuilt, or on a smaller relative of it."""
    import pandas as pd

    protocol = Protocol(**settings)
    opened = kept_world(protocol.world(), world or out / "world", device)
    every, top = true_l0(opened, protocol.d_sae)
    click.echo(
        f"{opened}: true L0 {every:.2f} over all features, {top:.2f} over the first "
        f"{protocol.d_sae:,}."
    )
    out.mkdir(parents=True, exist_ok=True)
    with atomic.locked(out):
        check_same(protocol, out / "settings.json")
        for name in architecture:
            file, folder = out / f"{name}.csv", out / name
            if not folder.exists():
                train(opened, protocol, name, folder)
            if not file.exists():
                rows = measure(opened, protocol, name, folder)
                atomic.write_bytes(file, rows.to_csv(index=False).encode())
        done = [file for file in (out / f"{name}.csv" for name in ARCHITECTURES) if file.exists()]
        table = means(pd.concat([pd.read_csv(file) for file in done]), protocol)
        atomic.write_bytes(out / "table.csv", table.to_csv(index=False).encode())
        share = protocol.n_samples / Protocol.n_samples
        which = "the rebuilt" if protocol.is_of_published_shape else "another"
        click.echo(
            f"\n{protocol.n_samples:,} samples ({share:.3%} of the published), {which} world:"
        )
        click.echo(table[_SHOWN].round(3).to_string(index=False))
        for name in architecture if finds else ():
            place = out / f"found_{name}"
            if place.exists():
                click.echo(f"{name}: the search is in {place} already.")
                continue
            found = search_l0(opened, protocol, name)
            found.save(place, f"{opened}, {name}")
            click.echo(f"\n{name}: {found}")


if __name__ == "__main__":
    main()
