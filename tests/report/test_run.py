"""The report of a run and the index of several, as files."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sparse_but_wrong.report.page import _plotly
from sparse_but_wrong.report.run import write_index, write_report
from tests.report.folders import VERDICT, Sweep, write_bare_run, write_run
from tests.report.test_page import HOSTILE, Parsed


def plots(path: Path) -> dict[str, Any]:
    """The figures of a page by the ids of their sections."""
    page = Parsed(path)
    ids = [div["id"] or "" for div in page.of("div") if div.get("class") == "plot"]
    kinds = [script.get("type") for script in page.of("script")]
    data = [s for s, kind in zip(page.scripts, kinds, strict=True) if kind is not None]
    fail = pytest.fail
    loaded = [json.loads(s, parse_constant=lambda name: fail(f"{name} is no JSON")) for s in data]
    return {id.removesuffix("-plot"): figure for id, figure in zip(ids, loaded, strict=True)}


def test_everything_is_on_the_page_and_the_same_when_made_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    path = write_report(folder)
    first = path.read_bytes()
    assert path == tmp_path / "run" / "report.html"
    page = Parsed(path)
    page.check_is_safe()
    for text in (
        *("A trial of the report", "does not hold", "within 1 of the true L0"),
        *(VERDICT["checks"][1]["claim"], VERDICT["checks"][1]["measured"], VERDICT["remarks"][0]),
        *("The sweep at a glance", "Recovery by rate.", "sbw run trial", "4 May 2026, 12:30 UTC"),
        *("1 min 1 s", "torch 2.13", "0123abc", "total_training_samples: 15000000"),
    ):
        assert text in page.text
    captions = ["The sweep at a glance: s_n, projections, recovery.", "Training."]
    assert [image["alt"] for image in page.of("img")] == captions
    links = {link["href"] or "" for link in page.of("a")}
    assert {"results.csv", "by_rate.csv", "plots/more/curves.pdf"} <= links
    assert plots(path).keys() == {"projections", "saes", "curves"}
    assert write_report(type(folder).open(folder.path)).read_bytes() == first


def test_nothing_in_a_run_becomes_markup(tmp_path: Path) -> None:
    spec_of = write_run(tmp_path / "first").manifest["spec"]
    plain = HOSTILE.replace("/", "")
    factors = {HOSTILE: HOSTILE, "k": 1}
    saes = [{**sae, "architecture": HOSTILE, "factors": factors} for sae in spec_of["saes"]]
    checks = [{"claim": HOSTILE, "measured": HOSTILE, "holds": False}]
    origin = dict.fromkeys((HOSTILE, "created", "command"), HOSTILE)
    folder = write_run(
        tmp_path / "run",
        spec={**spec_of, **dict.fromkeys(("name", "title", "claim"), HOSTILE), "saes": saes},
        verdict={"outcome": "fails", "checks": checks, "remarks": [HOSTILE]},
        device=HOSTILE,
        shown_figures=[{"name": plain, "caption": HOSTILE}],
        tables={plain: HOSTILE},
        true_l0={HOSTILE: 1.0},
        provenance={**origin, "versions": {HOSTILE: HOSTILE}},
        timings={HOSTILE: 1.0},
    )
    folder.write_table(plain, pd.DataFrame({HOSTILE: [HOSTILE]}))
    page = Parsed(write_report(folder))
    page.check_is_safe()
    assert len(page.of("script")) == 5  # three plots, plotly and the page's own
    index = Parsed(write_index([folder.path], tmp_path / "index.html"))
    index.check_is_safe()
    assert index.text.count(HOSTILE) > 3
    assert page.text.count(HOSTILE) > 10


def test_what_a_run_lacks_is_left_out(tmp_path: Path) -> None:
    bare = write_bare_run(tmp_path / "bare", quick=True, status="unfinished", verdict=None)
    path = write_report(bare)
    page = Parsed(path)
    for text in ("not judged", "A quick run", "has not finished"):
        assert text in page.text
    assert {section["id"] for section in page.of("section")} == {"claim", "made"}
    assert path.stat().st_size < 50_000
    folder = write_run(tmp_path / "run")
    (folder.plots_path / "overview.png").unlink()
    shutil.rmtree(folder.path / "worlds")
    path = write_report(folder)
    assert "figure is missing" in Parsed(path).text
    figures = plots(path)
    assert [trace["type"] for trace in figures["saes"]["data"]] == ["scatter", "scatter"]
    for name in ("results", "training_curves"):
        (folder.path / f"{name}.parquet").unlink()
    assert plots(write_report(folder)) == {}


def test_nothing_outside_the_folder_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", shown_figures=[])
    (tmp_path / "secret.png").write_bytes(b"secret")
    pd.DataFrame({"secret": ["a secret"]}).to_parquet(tmp_path / "secret.parquet")
    folder.manifest["shown_figures"] = [{"name": "../../secret", "caption": "x"}]
    folder.manifest["tables"] = {"../secret": "x"}
    html = write_report(folder).read_text(encoding="utf-8")
    assert base64.b64encode(b"secret").decode() not in html
    assert "a secret" not in html


def test_values_that_are_not_finite_are_not_drawn_and_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    table = folder.read_table("results")
    table.loc[0, "l0"] = np.nan
    table.loc[1, ["s_2", "mcc"]] = np.inf
    folder.write_table("results", table)
    path = write_report(folder)
    figure = plots(path)["projections"]
    (points,) = figure["data"]
    assert points["x"][-1] is None
    assert points["y"][0] is None
    assert "1 not finite" in figure["layout"]["yaxis"]["title"]["text"]
    assert "mcc: –" in points["text"][0]
    assert "1 of 4 SAEs have no finite L0" in Parsed(path).text


def test_the_paper_s_largest_sweep_stays_small(tmp_path: Path) -> None:
    l0s = tuple(1 + 24 * i / 124 for i in range(125))
    sweep = Sweep(n_features=50, d_in=64, d_sae=50, l0s=l0s, n_steps=147, projection_n=(12,))
    path = write_report(write_run(tmp_path / "run", sweep, shown_figures=[]))
    assert path.stat().st_size - len(_plotly()[0].encode()) < 2_000_000
    assert len(plots(path)["saes"]["layout"]["sliders"][0]["steps"]) == 125


def test_an_index_has_each_verdict_and_a_link(tmp_path: Path) -> None:
    held = {**VERDICT, "outcome": "holds", "checks": VERDICT["checks"][:1]}
    folders = [
        write_bare_run(tmp_path / "runs" / "a b", verdict=held),
        write_bare_run(tmp_path / "runs" / "c", timings={}, quick=True),
    ]
    write_report(folders[0])
    path = tmp_path / "pages" / "index.html"
    assert write_index([folder.path for folder in folders], path) == path
    page = Parsed(path)
    assert [link["href"] for link in page.of("a")][1:] == ["../runs/a%20b/report.html"]
    assert (path.parent / "../runs/a b/report.html").is_file()
    check = VERDICT["checks"][1]
    for text in (check["claim"], check["measured"], "61.4", "no report", "numbers mean nothing"):
        assert text in page.text
    badges = [span["class"] for span in page.of("span") if "badge" in (span.get("class") or "")]
    # For each run the verdict, then its checks.
    of_second = ["badge fails", "badge holds", "badge fails", "badge not-judged"]
    assert badges == ["badge holds", "badge holds", *of_second]
    with pytest.raises(FileNotFoundError, match="nothing"):
        write_index([tmp_path / "nothing"], tmp_path / "index.html")
