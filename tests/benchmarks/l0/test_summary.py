"""The benchmark's figures, on rows written by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.l0 import run
from benchmarks.l0.run import Row
from benchmarks.l0.summary import in_lines, summarize
from benchmarks.l0.table import append_row, read_table


def row(world: str, recommended: float, half: float = 0.02, **changes: Any) -> Row:
    figures: dict[str, Any] = {
        "split": "report",
        "architecture": "batchtopk",
        "seed": 0,
        "n_features": 50,
        "d_in": 100,
        "d_sae": 50,
        "true_l0": 10.0,
        "low": recommended * (1 - half),
        "high": recommended * (1 + half),
        "counted": recommended,
        "n_directions": 50,
        "argmin_s_n": 13.0,
        "argmin_c_dec": 10.6,
        "seconds": 36.0,
        "doubts": "",
    }
    return Row(world=world, recommended=recommended, **{**figures, **changes})


ROWS = [
    row("right", 10.05),
    row("off", 10.4),
    row("far off", 12.0),
    row("declined", math.nan),
    row("narrow, declined", math.nan, d_sae=38),
    row("narrow, wrong", 9.0, d_sae=38),
    row("noise, declined", math.nan, n_features=0, true_l0=math.nan),
    row("noise, recommended", 10.0, n_features=0, true_l0=math.nan),
    row("more noise, declined", math.nan, n_features=0, true_l0=math.nan),
]


def test_the_figures() -> None:
    found = {f.name: f for f in summarize(pd.DataFrame([r.as_dict() for r in ROWS]))}
    assert found["worlds with d_sae ≥ features"].value == 4
    assert found["median error"].value == pytest.approx(0.04)
    assert found["median error"].is_met is False
    assert found["within 5 %"].value == 0.5
    assert found["interval holds the truth"].value == pytest.approx(1 / 3)
    assert found["median half-width"].value == pytest.approx(0.02)
    assert found["median half-width"].is_met is True
    assert found["nothing recommended"].value == 0.25
    assert found["median error, argmin of s_n at n = d_sae / 2.5"].value == pytest.approx(0.3)
    assert found["within 5 %, argmin of c_dec"].value == 0
    assert found["worlds with d_sae < features"].value == 2
    narrow = found["nothing recommended, or the interval holds the truth"]
    assert narrow.value == 0.5
    assert narrow.is_met is False
    assert found["worlds without features"].value == 3
    assert found["nothing recommended there"].value == pytest.approx(2 / 3)
    assert found["nothing recommended there"].is_met is False
    assert found["hours"].value == pytest.approx(9 * 36 / 3600)
    lines = in_lines(list(found.values()))
    assert "median error: 4.0% (aim ≤ 1.5%: missed)" in lines
    assert "nothing recommended: 25.0% (aim ≤ 10.0%: missed)" in lines


def test_nothing_to_judge() -> None:
    table = pd.DataFrame([row("narrow", math.nan, d_sae=38).as_dict()])
    found = {f.name: f for f in summarize(table)}
    assert found["median error"].is_met is None
    assert "not judged" in " ".join(in_lines(list(found.values())))


def test_a_row_for_people() -> None:
    assert row("w", 10.05).as_line() == (
        "w: true L0 10.00; 10.05, 9.85 to 10.25, error +0.5%; 36 s"
    )
    declined = row("w", math.nan, counted=9.5).as_line()
    assert "nothing recommended (counted 9.50)" in declined


def test_the_table_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "seed_0.csv"
    for one in ROWS:
        append_row(path, one)
    table = read_table(path)
    assert list(table["world"]) == [one.world for one in ROWS]
    before = [f.value for f in summarize(pd.DataFrame([r.as_dict() for r in ROWS]))]
    assert [f.value for f in summarize(table)] == pytest.approx(before)
    assert [p.name for p in path.parent.iterdir()] == ["seed_0.csv"]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no table of the benchmark: it lacks world, split"):
        read_table(path)
    path.write_text("")
    with pytest.raises(ValueError, match="is damaged"):
        read_table(path)


def test_the_baselines_read_the_plain_saes_alone() -> None:
    table = pd.DataFrame(
        {"l0": [4.0, 10.0, 12.0], "c_dec": [0.3, 0.001, math.nan], "group": ["seed_0"] * 3}
    )
    c_dec = table["c_dec"].to_numpy(float)
    assert run._l0_at_smallest(table, (table["l0"] != 10).to_numpy(), c_dec) == 4.0
    assert run._l0_at_smallest(table, (table["l0"] > 0).to_numpy(), c_dec) == 10.0
