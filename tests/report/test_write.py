from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.report.render import plotly_script
from sparse_but_wrong.report.write import shown_seconds, shown_time, write_report
from tests.report.folders import VERDICT, Sweep, write_bare_run, write_run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=\"alert('2')\">"


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and its text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts = "", []
        self._inside = ""
        self.feed(html)

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


def parsed(path: Path) -> Parsed:
    return Parsed(path.read_text(encoding="utf-8"))


def plot_data(path: Path) -> dict[str, Any]:
    found = re.search(r'id="plot-data">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)
    assert found
    return json.loads(found[1], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_everything_is_on_the_page(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    page = parsed(path)
    for text in (
        "A trial of the report",
        "does not hold",
        VERDICT["checks"][1]["claim"],
        VERDICT["checks"][1]["measured"],
        VERDICT["remarks"][0],
        "within 1 of the true L0",
        "The sweep at a glance",
        "Recovery by rate.",
        "sbw run trial",
        "4 May 2026, 12:30 UTC",
        "1 min 1 s",
        "torch 2.13",
        "0123abc",
        "total_training_samples: 15000000",
    ):
        assert text in page.text
    assert [image["alt"] for image in page.of("img")] == [
        "The sweep at a glance: s_n, projections, recovery.",
        "Training.",
    ]
    data = plot_data(path)
    assert [sae["id"] for sae in data["saes"]] == ["k_1_1", "k_2_2", "k_3_3", "k_4.5_0"]
    assert data["varying"] == ["k", "seed"]
    assert data["projections"]["first_n"] == 2


def test_it_stands_alone(tmp_path: Path) -> None:
    page = parsed(write_report(write_run(tmp_path / "run")))
    assert all("src" not in script for script in page.of("script"))
    assert [link["href"] for link in page.of("link")] == ["data:,"]
    assert all((image["src"] or "").startswith("data:") for image in page.of("img"))
    links = {link["href"] or "" for link in page.of("a")}
    assert {"results.csv", "by_rate.csv", "plots/more/curves.pdf"} <= links
    assert not any("//" in link for link in links)


def test_no_script_runs_but_those_that_the_policy_knows(tmp_path: Path) -> None:
    page = parsed(write_report(write_run(tmp_path / "run")))
    metas = [m["content"] or "" for m in page.of("meta") if "http-equiv" in m]
    (policy,) = metas
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    running = [s for s, a in zip(page.scripts, page.of("script"), strict=True) if "type" not in a]
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in running]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests


def test_nothing_in_a_run_becomes_markup(tmp_path: Path) -> None:
    spec_of = write_run(tmp_path / "first").manifest["spec"]
    plain = HOSTILE.replace("/", "")
    spec = {
        **spec_of,
        "name": HOSTILE,
        "title": HOSTILE,
        "claim": HOSTILE,
        "saes": [
            {**sae, "architecture": HOSTILE, "factors": {HOSTILE: HOSTILE, "k": i}}
            for i, sae in enumerate(spec_of["saes"])
        ],
    }
    folder = write_run(
        tmp_path / "run",
        spec=spec,
        verdict={
            "outcome": "fails",
            "checks": [{"claim": HOSTILE, "measured": HOSTILE, "holds": False}],
            "remarks": [HOSTILE],
        },
        device=HOSTILE,
        shown_figures=[{"name": plain, "caption": HOSTILE}],
        tables={plain: HOSTILE},
        true_l0={HOSTILE: 1.0},
        provenance={
            HOSTILE: HOSTILE,
            "created": HOSTILE,
            "command": HOSTILE,
            "versions": {HOSTILE: HOSTILE},
        },
        timings={HOSTILE: 1.0},
    )
    folder.write_table(plain, pd.DataFrame({HOSTILE: [HOSTILE]}))
    html = write_report(folder).read_text(encoding="utf-8")
    assert "<script>alert" not in html
    assert not re.search(r"<img src=x", html)
    page = Parsed(html)
    assert len(page.of("script")) == 4
    assert not any(name.startswith("on") for _, all_of in page.elements for name in all_of)
    assert page.text.count(HOSTILE) > 10


def test_what_a_run_lacks_is_left_out(tmp_path: Path) -> None:
    folder = write_bare_run(tmp_path / "run", quick=True, status="running", verdict=None)
    path = write_report(folder)
    page = parsed(path)
    assert "not judged" in page.text
    assert "A quick run." in page.text
    assert "This run has not finished." in page.text
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert not ids & {"figures", "projections", "heatmap", "curves", "results", "plot-data"}
    assert path.stat().st_size < 50_000


def test_figures_and_tables_alone_are_a_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for name in ("results", "training_curves"):
        (folder.path / f"{name}.parquet").unlink()
    page = parsed(write_report(folder))
    assert len(page.of("img")) == 2
    assert len(page.of("table")) == 1


def test_a_run_without_worlds_has_projections_but_no_heatmap(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    shutil.rmtree(folder.path / "worlds")
    path = write_report(folder)
    assert plot_data(path)["cosines"] is None
    ids = {attributes.get("id") for _, attributes in parsed(path).elements}
    assert "heatmap" not in ids
    assert {"projections", "sorted"} <= ids


def test_a_figure_that_is_missing_is_said_to_be(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder.plots_path / "overview.png").unlink()
    assert "This figure is missing" in parsed(write_report(folder)).text


def test_nothing_outside_the_folder_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", shown_figures=[])
    (tmp_path / "secret.png").write_bytes(b"secret")
    pd.DataFrame({"secret": ["a secret"]}).to_parquet(tmp_path / "secret.parquet")
    folder.manifest["shown_figures"] = [{"name": "../../secret", "caption": "x"}]
    folder.manifest["tables"] = {"../secret": "x"}
    html = write_report(folder).read_text(encoding="utf-8")
    assert base64.b64encode(b"secret").decode() not in html
    assert "a secret" not in html


def test_values_that_are_not_finite_are_null(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    table = folder.read_table("results")
    table.loc[0, "l0"] = np.nan
    table.loc[1, "mcc"] = np.inf
    folder.write_table("results", table)
    saes = plot_data(write_report(folder))["saes"]
    assert (saes[-1]["id"], saes[-1]["l0"]) == ("k_4.5_0", None)
    assert saes[0]["figures"]["mcc"] is None


def test_the_paper_s_largest_sweep_stays_small(tmp_path: Path) -> None:
    l0s = tuple(1 + 24 * i / 124 for i in range(125))
    sweep = Sweep(n_features=50, d_in=64, d_sae=50, l0s=l0s, n_steps=147, projection_n=(12,))
    folder = write_run(tmp_path / "run", sweep, shown_figures=[])
    path = write_report(folder)
    beside_plotly = path.stat().st_size - len(plotly_script().text.encode())
    assert beside_plotly < 2_000_000
    assert len(plot_data(path)["cosines"]["frames"]) == 125


def test_it_is_the_same_when_made_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    first = write_report(folder).read_bytes()
    assert write_report(type(folder).open(folder.path)).read_bytes() == first


def test_times_for_people() -> None:
    assert shown_time("2026-05-04T12:30:00+00:00") == "4 May 2026, 12:30 UTC"
    assert shown_time("yesterday") == "yesterday"
    assert [shown_seconds(s) for s in (0.1234, 59, 61.4, 3 * 3600 + 125)] == [
        "0.123 s",
        "59 s",
        "1 min 1 s",
        "3 h 2 min",
    ]
