"""Verdicts: a claim holds when every check of it does."""

from __future__ import annotations

import pytest

from sparse_but_wrong.experiments.verdict import Check, Verdict, in_lines


@pytest.mark.parametrize(
    ("holds", "outcome"),
    [
        ([True, True], "holds"),
        ([True, False], "fails"),
        ([None, False], "fails"),
        ([True, None], "not judged"),
        ([], "not judged"),
    ],
)
def test_the_outcome_follows_from_the_checks(holds: list[bool | None], outcome: str) -> None:
    verdict = Verdict(tuple(Check("c", "m", h) for h in holds))
    assert verdict.outcome == outcome
    assert verdict.to_dict()["outcome"] == outcome


def test_unjudged_keeps_the_numbers() -> None:
    verdict = Verdict((Check("big", "3.2", True),), ("remark",)).unjudged("quick")
    assert verdict.outcome == "not judged"
    assert in_lines(verdict) == ["[not judged] big: 3.2", "quick", "remark"]
    assert in_lines(Verdict((Check("big", "3.2", False),))) == ["[DOES NOT HOLD] big: 3.2"]
