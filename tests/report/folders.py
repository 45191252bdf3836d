"""Run folders to report on, made by hand: nothing is trained."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.worlds.toy_model import ToyModel
from sparse_but_wrong.worlds.world import ToyWorld

_CHECKS = (
    ("s_n is smallest within 1 of the true L0", "at L0 10.94 for n = 12 to 18", True),
    ("SAEs with too low an L0 mix features: MCC below 0.9", "0.93 at L0 5.0", False),
    ("Both seeds agree", "there is one seed", None),
)
VERDICT: dict[str, Any] = {
    "outcome": "fails",
    "checks": [dict(zip(("claim", "measured", "holds"), c, strict=True)) for c in _CHECKS],
    "remarks": ["One SAE was still moving when training ended."],
}


@dataclass(frozen=True)
class Sweep:
    """What a run folder is to hold."""

    n_features: int = 6
    d_in: int = 8
    d_sae: int = 6
    l0s: tuple[float, ...] = (4.5, 1.0, 2.0, 3.0)
    worlds: tuple[str, ...] = ("world",)
    n_steps: int = 5
    projection_n: tuple[int, ...] = (2, 3)

    @property
    def true_l0(self) -> float:
        return 0.22 * self.n_features

    @property
    def saes(self) -> pd.DataFrame:
        """Of each its id, world, L0, and how far off that is, as a share of the true one."""
        index, l0 = np.arange(len(self.l0s)), np.array(self.l0s)
        saes = {
            "sae_id": [f"k_{k:g}_{i}" for i, k in enumerate(self.l0s)],
            "world": [self.worlds[i % len(self.worlds)] for i in index],
            "architecture": "jumprelu",
            "added": index % 5 == 4,
            "k": l0,
            "seed": index % 2,
            "l0": l0,
            "off": np.minimum(1.0, np.abs(l0 - self.true_l0) / self.true_l0),
        }
        return pd.DataFrame(saes)


def write_run(path: Path, sweep: Sweep | None = None, **manifest: Any) -> RunFolder:
    """A finished run with everything that the report knows; entries of the manifest replace its."""
    sweep = sweep or Sweep()
    saes, n = sweep.saes, sweep.n_features
    with RunFolder.create(path, {**_manifest(sweep), **manifest}) as folder:
        generator = torch.Generator().manual_seed(0)
        for name in sweep.worlds:
            model = ToyModel(n, sweep.d_in, ortho_num_steps=20, generator=generator)
            firing = (torch.full((n,), 0.22), torch.full((n,), 0.1), torch.ones(n))
            world = ToyWorld.of_model(model, *firing)
            world.save(folder.world_path(name))
            for index, row in enumerate(saes.to_dict("records")):
                if row["world"] == name:
                    folder.save_sae(row["sae_id"], _sae(world, sweep, index, row["off"]))
        folder.write_table("results", results(sweep))
        folder.write_table("training_curves", curves(sweep))
        folder.write_table("by_rate", pd.DataFrame({"rate": [0.1, np.nan], "mcc": [1.0, 0.5]}))
        for figure in folder.manifest["shown_figures"]:
            draw(folder.plots_path / f"{figure['name']}.png")
    return folder


def write_bare_run(path: Path, **manifest: Any) -> RunFolder:
    """A run that trained nothing: a verdict, and nothing else."""
    without = {"shown_figures": [], "tables": {}, "true_l0": {}}
    with RunFolder.create(path, {**_manifest(Sweep(l0s=())), **without, **manifest}) as folder:
        return folder


def _sae(world: ToyWorld, sweep: Sweep, index: int, off: float) -> JumpReLUTrainingSAE:
    """An SAE that is the further from the features, the further its L0 is from the truth."""
    sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(d_in=sweep.d_in, d_sae=sweep.d_sae))
    generator = torch.Generator().manual_seed(index)
    order = torch.randperm(sweep.d_sae, generator=generator)
    decoder = torch.randn(sweep.d_sae, sweep.d_in, generator=generator) / sweep.d_in**0.5
    features = world.directions.T[: sweep.d_sae]
    mixed = features + 0.6 * off * features.roll(1, 0)
    decoder[: len(mixed)] = (1 - 0.5 * off) * mixed + off * decoder[: len(mixed)]
    sae.W_dec.data.copy_(torch.nn.functional.normalize(decoder[order], dim=1))
    return sae


def results(sweep: Sweep) -> pd.DataFrame:
    """A row per SAE: a cliff of s_n at the true L0, a slope elsewhere."""
    saes, n = sweep.saes, np.arange(sweep.d_sae)
    l0, off = saes["l0"].to_numpy()[:, None], saes["off"].to_numpy()[:, None]
    sharp = 1 / (1 + np.exp(n - l0)) * (1 - n / (2 * sweep.d_sae))
    slope = np.maximum(0, 1 - n / (0.6 * sweep.d_sae)) ** 1.5
    table = saes.drop(columns="off").assign(
        diverged_at_step=pd.array([None] * len(saes), dtype="Int64"),
        mse=5.0 / (1 + saes["l0"]),
        c_dec=0.05 + 0.1 * saes["off"],
        mcc=1 - 0.7 * saes["off"],
    )
    return table.join(pd.DataFrame((1 - off) * sharp + off * slope).add_prefix("s_"))


def curves(sweep: Sweep) -> pd.DataFrame:
    """A training log per SAE, the last entry of the first not a number."""
    steps, frames = np.arange(sweep.n_steps), []
    decay = np.exp(-steps / max(1, sweep.n_steps / 5))
    for index, sae in enumerate(sweep.saes.to_dict("records")):
        l0, mse = sae["l0"] + (sweep.d_sae / 2 - sae["l0"]) * decay, 0.5 + index / 10 + 3 * decay
        log = {"sae_id": sae["sae_id"], "step": 100 * steps, "l0": l0, "mse_loss": mse}
        frames.append(pd.DataFrame(log))
    frames[0].loc[sweep.n_steps - 1, "mse_loss"] = np.nan
    return pd.concat(frames, ignore_index=True)


def draw(path: Path) -> None:
    """A stand-in for a figure."""
    figure, buffer = Figure(figsize=(3, 1)), io.BytesIO()
    figure.add_subplot().plot([1, 2], [1, 4])
    figure.savefig(buffer, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def _manifest(sweep: Sweep) -> dict[str, Any]:
    world = {"d_in": sweep.d_in, "firing_probabilities": [0.22] * sweep.n_features}
    saes = [
        {
            **{name: row[name] for name in ("sae_id", "architecture", "world", "added")},
            "config": {"d_sae": sweep.d_sae},
            "factors": {"k": row["k"], "seed": row["seed"]},
        }
        for row in sweep.saes.to_dict("records")
    ]
    return {
        "experiment": "trial",
        "quick": False,
        "seed": 0,
        "device": "cpu",
        "status": "finished",
        "provenance": {
            "command": "sbw run trial",
            "created": "2026-05-04T12:30:00+00:00",
            "versions": {"torch": "2.13", "numpy": "2.4", "transformer-lens": None},
            "commit": "0123abc",
        },
        "timings": {"training_seconds": 61.4, "figures_seconds": 2.25},
        "true_l0": dict.fromkeys(sweep.worlds, sweep.true_l0),
        "verdict": VERDICT,
        "shown_figures": [
            {"name": "overview", "caption": "The sweep at a glance: s_n, projections, recovery."},
            {"name": "more/curves", "caption": "Training."},
        ],
        "tables": {"by_rate": "Recovery by rate."},
        "spec": {
            "name": "trial",
            "title": "A trial of the report",
            "claim": "s_n is smallest where the SAE has the true L0, for every n above it.",
            "worlds": dict.fromkeys(sweep.worlds, world),
            "saes": saes,
            "training": {"lr": 3e-4, "total_training_samples": 15_000_000},
            "projection_n": list(sweep.projection_n),
        },
    }
