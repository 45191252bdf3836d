"""What the training of any run's SAEs leaves to be said: L0s still moving, sparsity gone wrong."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from sparse_but_wrong.metrics.findings import saturated, unsettled_thresholds

if TYPE_CHECKING:
    from sparse_but_wrong.runs.spec import SAESpec

MOVING = 0.02
"""An L0 that changed by more than this share of itself over training's last tenth was moving."""

_COEFFICIENTS = ("l0_coefficient", "l1_coefficient")
"""What sets the sparsity of SAEs that have no k."""


def l0_change_at_end(steps: Sequence[int], l0: Sequence[float]) -> float:
    """How much the L0 of a training log changed over its last tenth, in latents.

    That is the mean over the last twentieth minus the mean over the twentieth before the last
    tenth; NaN where the log is too short to tell.
    """
    last = steps[-1] if steps else 0
    end = [v for step, v in zip(steps, l0, strict=True) if step > 0.95 * last]
    before = [v for step, v in zip(steps, l0, strict=True) if 0.85 * last < step <= 0.9 * last]
    if not end or not before:
        return math.nan
    return sum(end) / len(end) - sum(before) / len(before)


def log_every_that_tells(log_every: int, n_steps: int) -> int:
    """The steps between two rows of a log, as asked for or, where `l0_change_at_end` would not find
    rows in both of its windows, fewer."""
    steps = [*range(0, n_steps - 1, log_every), n_steps - 1]
    can_tell = not math.isnan(l0_change_at_end(steps, [0.0] * len(steps)))
    return log_every if can_tell else min(log_every, max(1, n_steps // 20))


def training_remarks(saes: Sequence[SAESpec], table: pd.DataFrame) -> list[str]:
    """What is to be said of a run's SAEs, whatever they were trained for.

    Those are L0s that were still moving when training ended, thresholds of BatchTopK SAEs that have
    not settled at their k, and coefficients that give one L0 up to the largest: by kind of SAE, of
    which those are that differ in a coefficient only, or in a factor besides, and have no control.

    Args:
        table: a row per SAE with columns `sae_id`, `l0` and `l0_change_at_end`.
    """
    l0s: dict[str, float] = dict(zip(table["sae_id"], table["l0"], strict=True))
    changes = zip(table["sae_id"], table["l0"], table["l0_change_at_end"], strict=True)
    moving = [
        f"{sae_id} {l0 - change:.1f} → {l0:.1f}"
        for sae_id, l0, change in changes
        if abs(change) > MOVING * l0
    ]
    kinds: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    thresholds: list[tuple[str, float, float]] = []
    for sae in saes:
        config, l0 = dict(sae.config), l0s[sae.sae_id]
        if "batchtopk" in sae.architecture and "k" in config:
            thresholds.append((sae.sae_id, float(config["k"]), l0))
        coefficients = [float(config.pop(name)) for name in _COEFFICIENTS if name in config]
        if len(coefficients) == 1 and sae.control is None:
            kind = json.dumps([sae.world, sae.architecture, sae.init, config], sort_keys=True)
            kinds[kind].append((sae.sae_id, coefficients[0], l0))
    remarks = [
        moving
        and f"The L0 of {len(moving)} SAEs was still moving when training ended; over the last "
        f"tenth {', '.join(moving)}. Train longer, or take it as a snapshot.",
        unsettled_thresholds(thresholds),
        *map(saturated, kinds.values()),
    ]
    return [remark for remark in remarks if remark]
