"""The verdict of a run as its manifest has it, ready to be shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_IN_WORDS = {"holds": "holds", "fails": "does not hold", "not judged": "not judged"}
_STYLES = {"holds": "holds", "fails": "fails", "not judged": "unjudged"}
_MARKS = {"holds": "✓", "fails": "✗", "not judged": "?"}


@dataclass(frozen=True)
class Badge:
    """An outcome as a word, with a sign and a style: colour alone would not reach everybody."""

    outcome: str
    """`holds`, `fails` or `not judged`."""

    @property
    def words(self) -> str:
        """What is written on it."""
        return _IN_WORDS[self.outcome]

    @property
    def style(self) -> str:
        """Its class in the style sheet."""
        return _STYLES[self.outcome]

    @property
    def mark(self) -> str:
        """Its sign."""
        return _MARKS[self.outcome]


@dataclass(frozen=True)
class ShownCheck:
    """One part of a claim."""

    claim: str
    measured: str
    badge: Badge


@dataclass(frozen=True)
class ShownVerdict:
    """What a claim came to."""

    badge: Badge
    checks: tuple[ShownCheck, ...]
    remarks: tuple[str, ...]


def shown_verdict(manifest: Mapping[str, Any]) -> ShownVerdict:
    """The verdict in a manifest; where there is none yet, nothing has been judged."""
    verdict = manifest.get("verdict") or {}
    outcome = verdict.get("outcome")
    return ShownVerdict(
        badge=Badge(outcome if outcome in _IN_WORDS else "not judged"),
        checks=tuple(_check(check) for check in verdict.get("checks", ())),
        remarks=tuple(str(remark) for remark in verdict.get("remarks", ())),
    )


def _check(check: Mapping[str, Any]) -> ShownCheck:
    holds = check.get("holds")
    outcome = "not judged" if holds is None else "holds" if holds else "fails"
    return ShownCheck(str(check.get("claim", "")), str(check.get("measured", "")), Badge(outcome))
