"""What a sweep on a world of known L0 shows, in figures and in words."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sparse_but_wrong.metrics.findings import saturated, unsettled_thresholds

if TYPE_CHECKING:
    import pandas as pd

    from sparse_but_wrong.runs.spec import SAESpec

NEAR = 1.0
"""An SAE within this many latents of the true L0 counts as at it."""

NOISE = 1e-3
"""Differences in s_n below this are taken to say nothing: at the right L0 s_n itself, which would
be 0 for exact features, comes out between 0.0002 and 0.003 from one run to the next (n = 12 to 18
in the 50-feature world)."""

MOVING = 0.02
"""An L0 that changed by more than this share of itself over training's last tenth was moving."""


_COEFFICIENTS = ("l0_coefficient", "l1_coefficient")
"""What sets the sparsity of SAEs that have no k."""


@dataclass(frozen=True)
class ProjectionFinding:
    """Where s_n^dec is smallest over a sweep, for one n."""

    n: int
    minimum: float
    """The smallest s_n."""

    l0_at_minimum: float
    """L0 of the SAE that has it."""

    bottom: tuple[float, ...]
    """L0 of each SAE whose s_n is within NOISE of the smallest, ascending."""

    n_higher_within: int
    """SAEs between those two whose s_n is larger all the same: single runs land in poor minima."""

    swept: tuple[float, float]
    """The lowest and highest L0 of the sweep."""

    def shape(self, true_l0: float) -> Literal["sharp", "flat", "away"]:
        """Whether the bottom of the curve is at the truth alone, reaches further, or is away."""
        at_it = [abs(l0 - true_l0) <= NEAR for l0 in self.bottom]
        if all(at_it):
            return "sharp"
        return "flat" if any(at_it) else "away"

    @property
    def plateau(self) -> tuple[float, float]:
        """The lowest and highest L0 of the bottom."""
        return self.bottom[0], self.bottom[-1]

    def misses_a_side(self, true_l0: float) -> bool:
        """Whether the sweep has no SAE clearly below the truth, or none clearly above."""
        low, high = self.swept
        return low >= true_l0 - NEAR or high <= true_l0 + NEAR


def find_projection_minima(
    table: pd.DataFrame, projections: pd.DataFrame, ns: Sequence[int]
) -> list[ProjectionFinding]:
    """For each n, the SAE with the smallest s_n^dec, and how wide the bottom of the curve is.

    Args:
        table: a row per SAE with a column `l0`. SAEs that diverged are left out; where none
            remains, there is no finding.
        projections: s_n^dec of the same SAEs, a column per n.
        ns: which n. Those from d_sae / 2 on are left out: there s_n is the median or beyond, which
            is blind to how far the projections spread.
    """
    d_sae = projections.shape[1]
    findings = []
    for n in (n for n in ns if n < d_sae / 2):
        points = [
            (l0, value)
            for l0, value in zip(table["l0"].tolist(), projections[n].tolist(), strict=True)
            if math.isfinite(l0) and math.isfinite(value)
        ]
        if not points:
            continue
        l0_at_minimum, minimum = min(points, key=lambda point: point[1])
        bottom = [l0 for l0, value in points if value <= minimum + NOISE]
        l0s = [l0 for l0, _ in points]
        within = [l0 for l0 in l0s if min(bottom) <= l0 <= max(bottom)]
        findings.append(
            ProjectionFinding(
                n=n,
                minimum=minimum,
                l0_at_minimum=l0_at_minimum,
                bottom=tuple(sorted(bottom)),
                n_higher_within=len(within) - len(bottom),
                swept=(min(l0s), max(l0s)),
            )
        )
    return findings


def l0_change_at_end(steps: Sequence[int], l0: Sequence[float]) -> float:
    """How much L0 changed over the last tenth of training, in latents.

    Args:
        steps: of the training log, ascending.
        l0: at those steps, each over one batch.
    Returns:
        the mean over the last twentieth minus the mean over the twentieth before the last tenth;
        NaN where the log is too short to tell.
    """
    if not steps:
        return math.nan
    last = steps[-1]
    end = [v for step, v in zip(steps, l0, strict=True) if step > 0.95 * last]
    before = [v for step, v in zip(steps, l0, strict=True) if 0.85 * last < step <= 0.9 * last]
    if not end or not before:
        return math.nan
    return sum(end) / len(end) - sum(before) / len(before)


def log_every_that_tells(log_every: int, n_steps: int) -> int:
    """How often to log for `l0_change_at_end` to find rows in both of its windows.

    Args:
        log_every: steps between two rows, as asked for; kept where that is often enough.
        n_steps: of the run.
    """
    steps = [*range(0, n_steps - 1, log_every), n_steps - 1]
    can_tell = not math.isnan(l0_change_at_end(steps, [0.0] * len(steps)))
    return log_every if can_tell else min(log_every, max(1, n_steps // 20))


def in_words(findings: Sequence[ProjectionFinding], true_l0: float) -> list[str]:
    """What a sweep shows, as sentences, a line each.

    Args:
        findings: of the sweep.
        true_l0: of the world.
    """
    lines = []
    near = [f for f in findings if abs(f.l0_at_minimum - true_l0) <= NEAR]
    if near:
        at = ", ".join(sorted({f"{f.l0_at_minimum:.2f}" for f in near}))
        lines.append(
            f"For n = {ranges([f.n for f in near])} s_n^dec is smallest within {NEAR:g} of the "
            f"true L0 ({true_l0:.2f}), at L0 {at}."
        )
    for l0 in sorted({f.l0_at_minimum for f in findings if f not in near}):
        ns = ranges([f.n for f in findings if f.l0_at_minimum == l0])
        lines.append(
            f"For n = {ns} s_n^dec is smallest at L0 {l0:.2f}, away from the true L0 "
            f"({true_l0:.2f})."
        )
    flat = [f for f in findings if f.shape(true_l0) == "flat"]
    if flat:
        widest = max(flat, key=lambda f: f.plateau[1] - f.plateau[0])
        low, high = widest.plateau
        but = ""
        if widest.n_higher_within:
            but = f", {widest.n_higher_within} between them aside"
        lines.append(
            f"For n = {ranges([f.n for f in flat])} which of several SAEs is smallest is noise: "
            f"theirs differ by less than {NOISE:g}, at the widest (n = {widest.n}) from L0 "
            f"{low:.2f} to {high:.2f}{but}. Read off the last SAE before the rise towards low L0."
        )
    if findings:
        low, high = findings[0].swept
        sides = [("below", low < true_l0 - NEAR), ("above", high > true_l0 + NEAR)]
        lines += [
            f"The sweep has no SAE more than {NEAR:g} {side} the true L0, so it says nothing of "
            "that side."
            for side, is_there in sides
            if not is_there
        ]
    return lines


def moving_in_words(table: pd.DataFrame) -> str | None:
    """Which SAEs' L0 was still moving when training ended, in a sentence; None if none's was.

    Args:
        table: a row per SAE with columns `sae_id`, `l0` and `l0_change_at_end`.
    """
    moving = [
        f"{sae_id} {l0 - change:.1f} → {l0:.1f}"
        for sae_id, l0, change in zip(
            table["sae_id"].tolist(),
            table["l0"].tolist(),
            table["l0_change_at_end"].tolist(),
            strict=True,
        )
        if abs(change) > MOVING * l0
    ]
    if moving:
        return (
            f"The L0 of {len(moving)} SAEs was still moving when training ended, so that the "
            f"budget decided where it stopped; over the last tenth {', '.join(moving)}. Train "
            "longer, or take it as a snapshot."
        )
    return None


def sparsity_in_words(saes: Sequence[SAESpec], table: pd.DataFrame) -> list[str]:
    """What sets the sparsity of a run's SAEs and does not do as it should, as sentences.

    Those are thresholds of BatchTopK SAEs that have not settled at their k, and coefficients that
    give one L0 up to the largest, by kind of SAE.

    Args:
        saes: of the run. Those that differ in a coefficient only, or in a factor besides, are of
            one kind; those whose sparsity is controlled are left out.
        table: a row per SAE with columns `sae_id` and `l0`.
    """
    l0s = dict(zip(table["sae_id"].tolist(), table["l0"].tolist(), strict=True))
    kinds: dict[str, list[tuple[str, float, float]]] = {}
    for sae in saes:
        config = dict(sae.config)
        coefficients = [float(config.pop(name)) for name in _COEFFICIENTS if name in config]
        if len(coefficients) == 1 and sae.control is None:
            kind = json.dumps([sae.world, sae.architecture, sae.init, config], sort_keys=True)
            kinds.setdefault(kind, []).append((sae.sae_id, coefficients[0], l0s[sae.sae_id]))
    thresholds = [
        (sae.sae_id, float(sae.config["k"]), l0s[sae.sae_id])
        for sae in saes
        if "batchtopk" in sae.architecture and "k" in sae.config
    ]
    lines = (unsettled_thresholds(thresholds), *map(saturated, kinds.values()))
    return [line for line in lines if line is not None]


def ranges(numbers: Sequence[int]) -> str:
    """12, 13, 14, 18 as "12–14, 18"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}–{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts)
