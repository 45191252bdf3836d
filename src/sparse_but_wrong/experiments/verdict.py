"""What an experiment's claim came to: each check with the number measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

NEAR = 1.0
"""An SAE within this many latents of the true L0 counts as at it."""

RECOVERED = 0.99
"""Mean matched cosine above which an SAE's latents are the true features."""


@dataclass(frozen=True)
class Check:
    """One part of a claim."""

    claim: str
    """What should be seen, with the bound it is held to."""
    measured: str
    """What was seen, in numbers."""
    holds: bool | None
    """None where it cannot be judged; `measured` then says why."""


def check(claim: str, measured: str, holds: object, *, unless: str = "") -> Check:
    """A check; where there is a reason `unless`, which follows the numbers, it is not judged."""
    said = "; ".join(filter(None, (measured, unless)))
    return Check(claim, said, None if unless else bool(holds))


@dataclass(frozen=True)
class Verdict:
    """Whether what an experiment claims was seen."""

    checks: tuple[Check, ...] = ()
    remarks: tuple[str, ...] = ()
    """What a reader should know besides, a sentence or two each."""

    @property
    def outcome(self) -> Literal["holds", "fails", "not judged"]:
        """It fails if a check fails; it holds if every check holds and there is one."""
        if any(check.holds is False for check in self.checks):
            return "fails"
        if not self.checks or any(check.holds is None for check in self.checks):
            return "not judged"
        return "holds"

    def unjudged(self, why: str) -> Verdict:
        """The same numbers, of which none counts."""
        checks = tuple(replace(check, holds=None) for check in self.checks)
        return Verdict(checks, (why, *self.remarks))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"outcome": self.outcome, **asdict(self)}


def in_lines(verdict: Verdict) -> Sequence[str]:
    """The verdict for a terminal."""
    marks = {True: "holds", False: "DOES NOT HOLD", None: "not judged"}
    return [
        *(f"[{marks[check.holds]}] {check.claim}: {check.measured}" for check in verdict.checks),
        *verdict.remarks,
    ]


def ranges(numbers: Iterable[int]) -> str:
    """12, 13, 14, 18 as "12–14, 18"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}–{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in parts)
