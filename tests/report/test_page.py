"""The one page: what is escaped, what may run, and how numbers and tables are shown."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.report import page as module
from sparse_but_wrong.report.page import (
    Section,
    format_number,
    shown_seconds,
    shown_time,
    with_symbols,
    write_page,
)

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=\"alert('2')\">"


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and its text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts = "", []
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        del tag
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def check_is_safe(self) -> None:
        """Nothing of it runs but what its policy knows, and nothing is loaded."""
        (policy,) = (meta["content"] or "" for meta in self.of("meta") if "http-equiv" in meta)
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        kinds = [script.get("type") for script in self.of("script")]
        running = [s for s, kind in zip(self.scripts, kinds, strict=True) if kind is None]
        digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in running]
        assert re.findall(r"'sha256-([^']+)'", policy) == digests
        assert not any(name.startswith("on") for _, all_of in self.elements for name in all_of)
        assert not any(script.get("src") for script in self.of("script"))
        assert all((image["src"] or "").startswith("data:") for image in self.of("img"))
        assert [link["href"] for link in self.of("link")] == ["data:,"]
        assert not any("//" in (link["href"] or "") for link in self.of("a"))


def test_a_table_shows_numbers_for_people_and_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(table: pd.DataFrame) -> Parsed:
        return Parsed(write_page(tmp_path / "p.html", "t", [Section("a", "A", table=table)]))

    columns = {
        "x": [0.123456789, np.nan, -np.inf],
        "name": ["b" * 90, None, "a"],
        "flag": [True, False, True],
        "at": pd.array([30_000, None, 4], dtype="Int64"),
        "empty": [None] * 3,
    }
    page = shown(pd.DataFrame(columns))
    words = page.text.split()
    start = words.index("x")
    assert words[start : start + 16] == [
        *("x", "name", "flag", "at"),
        *("0.1235", "b" * 90, "yes", "30,000"),
        *("–", "–", "no", "–"),
        *("-inf", "a", "yes", "4"),
    ]
    assert "empty" in page.text
    monkeypatch.setattr(module, "_MOST_ROWS", 20)
    page = shown(pd.DataFrame(np.ones((1021, 61))).add_prefix("c"))
    assert (len(page.of("tr")), len(page.of("th"))) == (21, 60)
    assert "20 of 1,021 rows" in page.text
    assert "60 of 61 columns" in page.text


def test_numbers_and_times_for_people() -> None:
    shown = [format_number(value) for value in (0.123456, -2.5, 1e-7, 12, 15e6)]
    assert shown == ["0.1235", "-2.5", "1e-07", "12", "15,000,000"]
    assert shown_time("2026-05-04T12:30:00+00:00") == "4 May 2026, 12:30 UTC"
    assert shown_time("yesterday") == "yesterday"
    shown = [shown_seconds(s) for s in (0.1234, 59, 61.4, 3 * 3600 + 125)]
    assert shown == ["0.123 s", "59 s", "1 min 1 s", "3 h 2 min"]


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("s_n^dec falls", "s<sub>n</sub><sup>dec</sup> falls"),
        ("s_12 < c_dec, c_enc", "s<sub>12</sub> &lt; c<sub>dec</sub>, c<sub>enc</sub>"),
        ("sae_id, mass_n, s_name", "sae_id, mass_n, s_name"),
    ],
)
def test_symbols_in_sentences(text: str, html: str) -> None:
    assert with_symbols(text) == html
