"""Sweeps and counts made by hand, for the rule that judges them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from sparse_but_wrong.l0.dictionaries import Directions
from sparse_but_wrong.l0.presence import Presence
from sparse_but_wrong.l0.sweep import Count, EvaluatedSweep

D_SAE = 50


def presence(l0: float = 10.0, **changes: Any) -> Presence:
    """A clear count."""
    figures: dict[str, Any] = {
        "l0": l0,
        "above_cut": l0 * 0.999,
        "standard_error": 0.02,
        "cut": 0.3,
        "residual": 0.002,
        "cost": 0.02,
        "histogram": torch.linspace(1, 0, 100),
        "n_directions": D_SAE,
    }
    return Presence(**{**figures, **changes})


def count(of: Presence, group: str = "seed_0", noise_cost: float = 5.0) -> Count:
    directions = Directions(torch.eye(3), torch.zeros(3), 0.01)
    return Count(f"from_{group}", group, directions, of, noise_cost)


def table(l0s: Sequence[float], truth: float = 10.0, n_dead: int = 0) -> pd.DataFrame:
    """Curves as the paper has them: rising below the truth, flat above it; in the wide form."""
    rows = []
    for i, l0 in enumerate(l0s):
        height = 0.001 + max(0.0, truth - l0) * 0.05
        rows.append(
            {
                "sae_id": f"sae_{i}",
                "group": f"seed_{i % 2}",
                "l0": l0,
                "dead_latents": n_dead,
                "c_dec": height,
                **{f"s_{n}": height * (1 - n / D_SAE) for n in range(D_SAE)},
            }
        )
    return pd.DataFrame(rows)


def sweep(
    counts: Sequence[Count] | None = None, curves: pd.DataFrame | None = None
) -> EvaluatedSweep:
    """One that leaves no doubt, but for what is given."""
    given = [count(presence()), count(presence(10.02), "seed_1")] if counts is None else counts
    measured = table([4, 6, 8, 9.9, 10, 12, 16]) if curves is None else curves
    columns = [f"s_{n}" for n in range(D_SAE)]
    projections = pd.DataFrame(measured[columns].to_numpy(float))
    return EvaluatedSweep(measured.drop(columns=columns), projections, tuple(given), 20_000)
