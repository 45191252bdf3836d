"""Run folders to report on, made by hand: nothing is trained."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
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

VERDICT: dict[str, Any] = {
    "outcome": "fails",
    "checks": [
        {
            "claim": "s_n is smallest within 1 of the true L0",
            "measured": "at L0 10.94 for n = 12 to 18",
            "holds": True,
        },
        {
            "claim": "SAEs with too low an L0 mix features: MCC below 0.9",
            "measured": "0.93 at L0 5.0",
            "holds": False,
        },
        {"claim": "Both seeds agree", "measured": "there is one seed", "holds": None},
    ],
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

    def sae_id(self, index: int) -> str:
        return f"k_{self.l0s[index]:g}_{index}"

    def world_of(self, index: int) -> str:
        return self.worlds[index % len(self.worlds)]


def write_run(path: Path, sweep: Sweep | None = None, **manifest: Any) -> RunFolder:
    """A finished run with everything that the report knows; entries of the manifest replace its."""
    sweep = sweep or Sweep()
    with RunFolder.create(path, {**_manifest(sweep), **manifest}) as folder:
        worlds = {name: _save_world(folder, name, sweep) for name in sweep.worlds}
        for index in range(len(sweep.l0s)):
            features = worlds[sweep.world_of(index)].directions
            folder.save_sae(sweep.sae_id(index), sae_like(features, sweep, index))
        folder.write_table("results", results(sweep))
        folder.write_table("training_curves", curves(sweep))
        folder.write_table("by_rate", pd.DataFrame({"rate": [0.1, np.nan], "mcc": [1.0, 0.5]}))
        for number, figure in enumerate(folder.manifest["shown_figures"]):
            draw(folder.plots_path / f"{figure['name']}.png", number)
    return folder


def write_bare_run(path: Path, **manifest: Any) -> RunFolder:
    """A run that trained nothing: a verdict, and nothing else."""
    sweep = Sweep(l0s=())
    without = {"shown_figures": [], "tables": {}, "true_l0": {}}
    with RunFolder.create(path, {**_manifest(sweep), **without, **manifest}) as folder:
        return folder


def sae_like(features: torch.Tensor, sweep: Sweep, index: int) -> JumpReLUTrainingSAE:
    """An SAE that is the further from the features, the further its L0 is from the truth."""
    config = JumpReLUTrainingSAEConfig(d_in=sweep.d_in, d_sae=sweep.d_sae)
    sae = JumpReLUTrainingSAE(config)
    generator = torch.Generator().manual_seed(index)
    order = torch.randperm(sweep.d_sae, generator=generator)
    decoder = torch.randn(sweep.d_sae, sweep.d_in, generator=generator) / sweep.d_in**0.5
    off = min(1.0, abs(sweep.l0s[index] - sweep.true_l0) / sweep.true_l0)
    n = min(sweep.n_features, sweep.d_sae)
    mixed = features.T[:n] + 0.6 * off * features.T[:n].roll(1, 0)
    decoder[:n] = (1 - 0.5 * off) * mixed + off * decoder[:n]
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(decoder[order], dim=1))
    return sae


def results(sweep: Sweep) -> pd.DataFrame:
    """A row per SAE; the last has diverged where there are more than three."""
    rows: list[dict[str, Any]] = []
    for index, l0 in enumerate(sweep.l0s):
        off = abs(l0 - sweep.true_l0) / sweep.true_l0
        row: dict[str, Any] = {
            "sae_id": sweep.sae_id(index),
            "world": sweep.world_of(index),
            "architecture": "jumprelu",
            "added": index % 5 == 4,
            "k": l0,
            "seed": index % 2,
            "diverged_at_step": None,
            "l0_change_at_end": 0.01 * index,
            "l0": l0,
            "dead_latents": index % 3,
            "mse": 5.0 / (1 + l0),
            "variance_explained": 1 - 1 / (1 + l0),
            "c_dec": 0.05 + 0.1 * off,
            "mcc": max(0.3, 1 - 0.5 * off),
        }
        n = np.arange(sweep.d_sae)
        sharp = 1 / (1 + np.exp(n - l0)) * (1 - n / (2 * sweep.d_sae))
        slope = np.maximum(0, 1 - n / (0.6 * sweep.d_sae)) ** 1.5
        blend = min(1.0, off)
        row.update({f"s_{i}": v for i, v in enumerate((1 - blend) * sharp + blend * slope)})
        rows.append(row)
    return pd.DataFrame(rows).astype({"diverged_at_step": "Int64"})


def curves(sweep: Sweep) -> pd.DataFrame:
    """A training log per SAE, the last entry of the first not a number."""
    frames = []
    for index, l0 in enumerate(sweep.l0s):
        steps = np.arange(sweep.n_steps) * 100
        decay = np.exp(-np.arange(sweep.n_steps) / max(1, sweep.n_steps / 5))
        of_sae = {
            "sae_id": sweep.sae_id(index),
            "step": steps,
            "l0": l0 + (sweep.d_sae / 2 - l0) * decay,
            "mse_loss": 0.5 + index / 10 + 3 * decay,
        }
        frames.append(pd.DataFrame(of_sae))
    frames[0].loc[sweep.n_steps - 1, "mse_loss"] = np.nan
    return pd.concat(frames, ignore_index=True)


def draw(path: Path, number: int) -> None:
    """A stand-in for a figure."""
    figure = Figure(figsize=(5.5, 2))
    for axes in figure.subplots(1, 3):
        axes.plot(np.arange(9), np.arange(9) ** (number + 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def _save_world(folder: RunFolder, name: str, sweep: Sweep) -> ToyWorld:
    n = sweep.n_features
    world = ToyWorld.of_model(
        ToyModel(n, sweep.d_in, ortho_num_steps=20),
        torch.full((n,), 0.22),
        torch.full((n,), 0.1),
        torch.ones(n),
    )
    world.save(folder.world_path(name))
    return world


def _manifest(sweep: Sweep) -> Mapping[str, Any]:
    return {
        "experiment": "trial",
        "quick": False,
        "seed": 0,
        "device": "cpu",
        "status": "finished",
        "provenance": {
            "command": "sbw run trial",
            "created": "2026-05-04T12:30:00+00:00",
            "python": "3.11.9",
            "platform": "Linux",
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
            "analysis": "sweep",
            "worlds": {
                name: {"d_in": sweep.d_in, "firing_probabilities": [0.22] * sweep.n_features}
                for name in sweep.worlds
            },
            "saes": _sae_specs(sweep),
            "training": {"lr": 3e-4, "total_training_samples": 15_000_000},
            "evaluation_samples": 1000,
            "projection_n": list(sweep.projection_n),
        },
    }


def _sae_specs(sweep: Sweep) -> Sequence[Mapping[str, Any]]:
    return [
        {
            "sae_id": sweep.sae_id(index),
            "architecture": "jumprelu",
            "config": {"d_sae": sweep.d_sae},
            "world": sweep.world_of(index),
            "added": index % 5 == 4,
            "factors": {"k": l0, "seed": index % 2},
        }
        for index, l0 in enumerate(sweep.l0s)
    ]
