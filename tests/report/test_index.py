from __future__ import annotations

from pathlib import Path

import pytest

from sparse_but_wrong.report.index import write_index
from sparse_but_wrong.report.write import write_report
from tests.report.folders import VERDICT, write_bare_run
from tests.report.test_write import HOSTILE, Parsed


def test_a_row_per_run_with_its_verdict_and_a_link(tmp_path: Path) -> None:
    held = {**VERDICT, "outcome": "holds", "checks": VERDICT["checks"][:1]}
    folders = [
        write_bare_run(tmp_path / "runs" / "a b", verdict=held),
        write_bare_run(tmp_path / "runs" / "c", timings={}, quick=True),
    ]
    write_report(folders[0])
    path = tmp_path / "pages" / "index.html"
    assert write_index([folder.path for folder in folders], path) == path
    page = Parsed(path.read_text(encoding="utf-8"))
    assert [link["href"] for link in page.of("a")] == ["../runs/a%20b/report.html"]
    assert (path.parent / "../runs/a b/report.html").is_file()
    for text in (
        VERDICT["checks"][1]["claim"],
        "at L0 10.94 for n = 12 to 18",
        "0.93 at L0 5.0",
        "1 min 1 s",
        "(no report)",
    ):
        assert text in page.text
    assert "its numbers mean nothing" in page.text
    badges = [span["class"] for span in page.of("span") if "badge" in (span.get("class") or "")]
    # In the tally, then a row each.
    assert badges == ["badge holds", "badge fails", "badge holds", "badge fails"]


def test_nothing_in_a_run_becomes_markup(tmp_path: Path) -> None:
    spec = {"name": HOSTILE, "title": HOSTILE, "claim": HOSTILE, "worlds": {}, "saes": []}
    checks = [{"claim": HOSTILE, "measured": HOSTILE, "holds": True}]
    verdict = {"outcome": "holds", "checks": checks, "remarks": []}
    folder = write_bare_run(tmp_path / "a", spec=spec, verdict=verdict)
    html = write_index([folder.path], tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert len(Parsed(html).of("script")) == 1


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        write_index([tmp_path / "nothing"], tmp_path / "index.html")
