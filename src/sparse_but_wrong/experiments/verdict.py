"""What an experiment's claim came to: each check with the number measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Outcome = Literal["holds", "fails", "not judged"]


@dataclass(frozen=True)
class Check:
    """One part of a claim."""

    claim: str
    """What should be seen, with the bound it is held to."""

    measured: str
    """What was seen, in numbers."""

    holds: bool | None
    """None where it cannot be judged; `measured` then says why."""


@dataclass(frozen=True)
class Verdict:
    """Whether what an experiment claims was seen."""

    checks: tuple[Check, ...] = ()
    remarks: tuple[str, ...] = ()
    """What a reader should know besides, a sentence or two each."""

    @property
    def outcome(self) -> Outcome:
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
