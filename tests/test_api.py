"""The public functions whose results draw and save themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

import sparse_but_wrong as sbw
from tests.l0.evidence import count, presence, sweep


def test_a_recommendation_prints_draws_and_saves_itself(tmp_path: Path) -> None:
    found = sbw.recommend_l0(sweep())
    assert repr(found).splitlines()[:2] == ["L0 10, between 9.754 and 10.25", "Why:"]
    assert str(found).count("\n  - ") == len(found.reasons)
    assert found._repr_html_().count("<li>") == len(found.reasons)
    assert len(found.to_frame()) == 7
    assert len(found.plot().axes) == 3
    page = found.save(tmp_path / "out", title="Small & hand-made")
    assert "Small &amp; hand-made" in page.read_text()
    assert (tmp_path / "out/sweep.csv").is_file()
    with pytest.raises(OSError, match="out"):
        found.save(tmp_path / "out")


def test_a_recommendation_that_is_none_says_why() -> None:
    found = sbw.recommend_l0(sweep([count(presence(residual=0.3))]))
    assert repr(found).startswith("No recommendation:\n  - ")
    assert "30%" in found._repr_html_()
