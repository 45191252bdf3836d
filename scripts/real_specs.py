"""Write the specs of the sweeps of `make real`: two layers, two architectures and a baseline."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from sparse_but_wrong.activations.stored import open_activations
from sparse_but_wrong.l0.options import training_config

D_SAE = 2304
L0S = (6, 10, 18, 32, 56, 98, 171, 300)
SEEDS = (0, 1)
LAYERS = (7, 14)
TRAINING = {
    "total_training_samples": 1_024_000,
    "train_batch_size_samples": 512,
    "lr": 1e-3,
    "lr_decay_steps": 400,
    "n_batches_for_norm_estimate": 100,
    "reinit_dead_every": 100,
}
"""2,000 steps, as many as `find_l0` takes in a coarse sweep, and its learning rate and decay."""


def measured_spread(layer: int) -> float:
    """How far activations lie from their mean, in units of their norm: what SAEs read at first."""
    acts = open_activations(f"runs/real/layer_{layer}")
    starts = [acts.n_samples // 16 * i for i in range(16)]
    samples = torch.cat([acts.read(start, start + 1024).float() for start in starts])
    spread = (samples - samples.mean(0)).norm(dim=1).mean() / samples.norm(dim=1).mean()
    return round(float(spread), 2)  # the same spec on every machine


def spec(layer: int, kind: str, spread: float) -> dict[str, Any]:
    """The sweep of one layer and one kind: an architecture, or "random_decoder"."""
    architecture = "jumprelu" if kind == "jumprelu" else "batchtopk"
    is_random = kind == "random_decoder"
    saes = [
        {
            "sae_id": f"{kind}_{l0}_seed_{seed}",
            "architecture": architecture,
            "config": _config(architecture, l0, spread),
            "init": "mean",
            "factors": {"target_l0": l0, "seed": seed},
            "control": {"l0": l0} if architecture == "jumprelu" else None,
            "frozen_decoder": is_random,
        }
        for l0 in L0S
        for seed in (SEEDS[:1] if is_random else SEEDS)
    ]
    return {
        "name": f"layer_{layer}_{kind}",
        "title": f"SmolLM2-135M, layer {layer}: {kind.replace('_', ' ')}",
        "claim": "none; what the curves look like on a real model is to be seen",
        "world": {"activations": f"runs/real/layer_{layer}"},
        "analysis": "activations",
        "saes": saes,
        "training": TRAINING,
        "evaluation_samples": 65_536,
        "projection_n": [int(share * D_SAE) for share in (0.25, 0.33, 0.4, 0.48)],
    }


def _config(architecture: str, l0: int, spread: float) -> dict[str, Any]:
    cfg = training_config(architecture, l0, d_in=1, d_sae=D_SAE, spread=spread)
    names = ["d_sae", "normalize_activations", "decoder_init_norm"]
    names += ["k"] if architecture == "batchtopk" else [n for n in asdict(cfg) if "jumprelu" in n]
    return {name: getattr(cfg, name) for name in names}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for layer in LAYERS:
        spread = measured_spread(layer)
        for kind in ("batchtopk", "jumprelu", "random_decoder"):
            made = spec(layer, kind, spread)
            (out / f"{made['name']}.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
