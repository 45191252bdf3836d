"""What a sweep on a world of known L0 shows, in figures and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

NEAR = 1.0
"""An SAE within this many latents of the true L0 counts as at it."""

NOISE = 1e-3
"""Runs that end at the same L0 differ by about this in s_n; smaller differences say nothing."""


@dataclass(frozen=True)
class ProjectionFinding:
    """Where s_n^dec is smallest over a sweep, for one n."""

    n: int
    minimum: float
    """The smallest s_n."""

    l0_at_minimum: float
    """L0 of the SAE that has it."""

    plateau: tuple[float, float]
    """The lowest and highest L0 of the SAEs whose s_n is within NOISE of the smallest. Between them
    there may be some whose s_n is larger: single runs land in poor minima."""

    swept: tuple[float, float]
    """The lowest and highest L0 of the sweep."""

    def shape(self, true_l0: float) -> Literal["sharp", "flat", "away"]:
        """Whether the bottom of the curve is at the truth alone, reaches further, or is away."""
        low, high = self.plateau
        if true_l0 - NEAR <= low and high <= true_l0 + NEAR:
            return "sharp"
        return "flat" if low <= true_l0 + NEAR and high >= true_l0 - NEAR else "away"


def find_projection_minima(table: pd.DataFrame, ns: Sequence[int]) -> list[ProjectionFinding]:
    """For each n, the SAE with the smallest s_n^dec, and how wide the bottom of the curve is.

    Args:
        table: a row per SAE with columns `l0` and `s_n` for each n. SAEs that diverged are left
            out; where nothing is left, there is no finding.
        ns: which n.
    """
    findings = []
    for n in ns:
        points = [
            (l0, value)
            for l0, value in zip(table["l0"].tolist(), table[f"s_{n}"].tolist(), strict=True)
            if math.isfinite(l0) and math.isfinite(value)
        ]
        if not points:
            continue
        l0_at_minimum, minimum = min(points, key=lambda point: point[1])
        bottom = [l0 for l0, value in points if value <= minimum + NOISE]
        l0s = [l0 for l0, _ in points]
        findings.append(
            ProjectionFinding(
                n=n,
                minimum=minimum,
                l0_at_minimum=l0_at_minimum,
                plateau=(min(bottom), max(bottom)),
                swept=(min(l0s), max(l0s)),
            )
        )
    return findings


def in_words(findings: Sequence[ProjectionFinding], true_l0: float) -> list[str]:
    """The findings as sentences, a line each.

    Where the bottom of a curve is wide, its argmin is noise, and the sentence says how wide it is
    instead of quoting the argmin.
    """
    sharp = [f for f in findings if f.shape(true_l0) == "sharp"]
    flat = [f for f in findings if f.shape(true_l0) == "flat"]
    lines = [
        f"n = {f.n}: s_n^dec is smallest at L0 {f.l0_at_minimum:.2f}, "
        f"away from the true L0 ({true_l0:.2f})."
        for f in findings
        if f.shape(true_l0) == "away"
    ]
    if flat:
        low = min(finding.plateau[0] for finding in flat)
        high = max(finding.plateau[1] for finding in flat)
        lines.insert(
            0,
            f"For n = {_ranges([f.n for f in flat])} the curve has no sharp minimum: it is flat to "
            f"within {NOISE:g} around the truth, at the widest from L0 {low:.1f} to {high:.1f}. "
            "Where exactly it is smallest is noise; where it starts to rise is not.",
        )
    if sharp:
        lines.insert(
            0,
            f"For n = {_ranges([f.n for f in sharp])} s_n^dec is smallest within {NEAR:g} of the "
            f"true L0 ({true_l0:.2f}){_sides(sharp[0], true_l0)}.",
        )
    return lines


def _sides(finding: ProjectionFinding, true_l0: float) -> str:
    """On which sides of the truth there are SAEs for the curve to rise at."""
    below = finding.swept[0] < true_l0 - NEAR
    above = finding.swept[1] > true_l0 + NEAR
    if below and above:
        return ", and rises on both sides"
    if below or above:
        return (
            f", and rises {'below' if below else 'above'}; the sweep has no SAE on the other side"
        )
    return "; but the sweep has no SAE further away than that"


def _ranges(numbers: Sequence[int]) -> str:
    """12, 13, 14, 18 as "12–14, 18"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}–{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts)
