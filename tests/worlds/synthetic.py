"""The config of a small world of sae_lens.synthetic, with a hierarchy."""

from __future__ import annotations

from typing import Any

CONFIG: dict[str, Any] = {
    "num_features": 40,
    "hidden_dim": 16,
    "firing_probability": {
        "generator_name": "zipfian",
        "exponent": 0.5,
        "max_prob": 0.4,
        "min_prob": 0.05,
    },
    "hierarchy": {"total_root_nodes": 4, "branching_factor": 3, "max_depth": 2},
    "orthogonalization": {"num_steps": 5, "lr": 0.001},
    "std_firing_magnitudes": {"generator_name": "folded_normal", "mean": 0.3, "std": 0.3},
    "bias": 2.0,
    "seed": 5,
}
