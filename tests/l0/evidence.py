"""Sweeps and counts made by hand, for the rule that judges them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from sparse_but_wrong.l0.dictionaries import Directions
from sparse_but_wrong.l0.presence import Presence
from sparse_but_wrong.l0.sweep import Count, EvaluatedSweep

D_SAE = 50
S_N = [f"s_{n}" for n in range(D_SAE)]


def presence(l0: float = 10.0, **changes: Any) -> Presence:
    """A clear count."""
    numbers: dict[str, Any] = {
        "l0": l0,
        "above_cut": l0 * 0.999,
        "standard_error": 0.02,
        "cut": 0.3,
        "residual": 0.002,
        "cost": 0.02,
        "histogram": torch.linspace(1, 0, 100),
        "n_directions": D_SAE,
    }
    return Presence(**numbers | changes)


def count(of: Presence, group: str = "seed_0", noise_cost: float = 5.0) -> Count:
    directions = Directions(torch.eye(3), torch.zeros(3), 0.01)
    return Count(f"from_{group}", group, directions, of, noise_cost)


def table(l0s: Sequence[float], truth: float = 10.0, n_dead: int = 0) -> pd.DataFrame:
    """Curves as the paper has them: rising below the truth, flat above it; in the wide form."""
    height = 0.001 + (truth - np.asarray(l0s, float)).clip(0) * 0.05
    made = pd.DataFrame({"sae_id": [f"sae_{i}" for i in range(len(l0s))]})
    made["group"] = [f"seed_{i % 2}" for i in range(len(l0s))]
    made["l0"], made["dead_latents"], made["c_dec"] = l0s, n_dead, height
    made["pw_mcc"] = made["shared_latents"] = np.nan
    shares = 1 - np.arange(D_SAE) / D_SAE
    return made.join(pd.DataFrame(height[:, None] * shares, columns=pd.Index(S_N)))


def sweep(
    counts: Sequence[Count] | None = None, curves: pd.DataFrame | None = None
) -> EvaluatedSweep:
    """One that leaves no doubt, but for what is given."""
    given = [count(presence()), count(presence(10.02), "seed_1")] if counts is None else counts
    measured = table([4, 6, 8, 9.9, 10, 12, 16]) if curves is None else curves
    projections = pd.DataFrame(measured[S_N].to_numpy(float))
    return EvaluatedSweep(measured.drop(columns=S_N), projections, tuple(given), 20_000)
