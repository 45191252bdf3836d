"""Pages as a reader has them: a real browser opens the file, offline.

Whatever a page complains of, asks the network for or pops up fails the test (`open_page`).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page

from sparse_but_wrong.l0.recommend import recommend_l0
from sparse_but_wrong.metrics.findings import remarks
from sparse_but_wrong.report.evaluation import write_evaluation
from sparse_but_wrong.report.recommendation import write_recommendation
from sparse_but_wrong.report.run import write_index, write_report
from tests.l0 import evidence
from tests.metrics.evaluated import evaluated
from tests.report.folders import Sweep, results, write_bare_run, write_run
from tests.report.test_page import HOSTILE

OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four SAEs out of order, in two worlds, with L0 1, 2, 3 and 4.5; true L0 1.32."""
    sweep = Sweep(worlds=("left", "right"))
    return write_report(write_run(tmp_path_factory.mktemp("report") / "run", sweep))


@pytest.fixture(scope="module")
def report(path: Path, open_page: OpenPage) -> Page:
    """One page for all tests, which leave it at other places of its sliders."""
    return open_page(path)


def traces(page: Page, plot: str) -> list[dict[str, Any]]:
    """What a plot shows now."""
    return page.evaluate(
        "(id) => document.getElementById(`${id}-plot`)._fullData.map("
        "({x, y, z, line, marker}) => ({x, y, z, line, marker}))",
        plot,
    )


def layout(page: Page, plot: str, name: str) -> Any:
    return page.evaluate(f"document.getElementById('{plot}-plot').layout.{name}")


def click(place: Locator) -> None:
    place.scroll_into_view_if_needed()
    place.click()


def choose(page: Page, plot: str, entry: str) -> None:
    """An entry of a plot's first menu, as a reader takes it."""
    click(page.locator(f"#{plot}-plot .updatemenu-header").first)
    page.locator(f"#{plot}-plot .updatemenu-dropdown-button").filter(has_text=entry).last.click()


def shot(place: Page | Locator) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(place.screenshot())).convert("RGB"))


def column(page: Page, table: str, name: str) -> list[str]:
    heads = [head.strip() for head in page.locator(f"#{table} th").all_inner_texts()]
    return page.locator(f"#{table} td:nth-child({heads.index(name) + 1})").all_inner_texts()


def head(page: Page, table: str, name: str) -> Locator:
    return page.locator(f"#{table}").get_by_role("button", name=name, exact=True)


def test_sliders_menus_and_scales_show_what_they_say(report: Page) -> None:
    table = results(Sweep()).sort_values("l0")
    for key, n in (("", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        if key:
            report.locator("#projections-plot").press(key)
        (points,) = traces(report, "projections")
        assert points["x"] == table["l0"].tolist()
        assert points["y"] == pytest.approx(table[f"s_{n}"].tolist(), rel=1e-4)
        assert f"<sub>{n}</sub>" in layout(report, "projections", "yaxis.title.text")
    # The rail of the slider, at its end.
    rail = report.locator("#projections-plot .slider-rail-touch-rect")
    rail.scroll_into_view_if_needed()
    box = rail.bounding_box()
    assert box
    report.mouse.click(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2)
    assert layout(report, "projections", "sliders[0].active") == 5
    (line,) = layout(report, "projections", "shapes")
    assert (line["x0"], line["line"]["dash"]) == (1.32, "dash")
    assert points["marker"]["color"] == [1, 0, 1, 0]
    for colour, told in (("k", ["1", "2", "3", "4.5"]), ("world", ["left", "right"])):
        choose(report, "projections", f"colour: {colour}")
        (points,) = traces(report, "projections")
        assert points["marker"]["colorbar"]["ticktext"] == told
        assert report.locator("#projections-plot .colorbar").count() == 1
    choose(report, "projections", "all alike")
    assert report.locator("#projections-plot .colorbar").count() == 0
    for name, kind in (("logarithmic", "log"), ("linear", "linear")):
        click(report.locator("#projections-plot .updatemenu-button").filter(has_text=name))
        assert layout(report, "projections", "yaxis.type") == kind
    assert traces(report, "curves")[0]["y"][0] == pytest.approx(3)
    choose(report, "curves", "mse_loss")
    *curves, _ = traces(report, "curves")
    assert curves[0]["x"] == [0, 100, 200, 300, 400]
    assert curves[0]["y"][0] == pytest.approx(3.6)
    # The one of L0 4.5 has no number at its end.
    assert curves[3]["y"][4] is None
    assert len({line["line"]["color"] for line in curves}) == 4


def test_sliding_and_clicking_through_the_sweep_moves_heatmap_title_and_curve(
    report: Page,
) -> None:
    # The first one shown is the nearest to the true L0, 1.32.
    assert layout(report, "saes", "title.text").startswith("k_1_1 · L0 1 · MCC 0.8")
    before = np.array(traces(report, "saes")[0]["z"])
    assert before.shape == (6, 6)
    for _ in range(3):
        report.locator("#saes-plot").press("ArrowRight")
    assert layout(report, "saes", "title.text") == "k_4.5_0 · L0 4.5 · MCC 0.3 (4 of 4)"
    heatmap, curve = traces(report, "saes")
    after = np.array(heatmap["z"])
    # Latents keep the order of their features, with a row for each.
    categories = "document.getElementById('saes-plot')._fullLayout.yaxis._categories"
    assert report.evaluate(categories) == heatmap["y"]
    assert sorted(heatmap["y"]) != heatmap["y"]
    assert np.abs(after - before).max() > 10
    assert np.abs(after).max() <= 100
    expected = results(Sweep()).loc[0, [f"s_{n}" for n in range(6)]].tolist()
    assert curve["y"] == pytest.approx(expected, rel=1e-4)
    report.locator("#projections-plot").scroll_into_view_if_needed()
    # The plot's own coordinates of the SAE of L0 3, in pixels of the page.
    x, y = report.evaluate("""() => {
        const plot = document.getElementById("projections-plot");
        const { xaxis, yaxis } = plot._fullLayout;
        const [trace] = plot._fullData;
        const box = plot.getBoundingClientRect();
        return [box.left + xaxis._offset + xaxis.d2p(3),
                box.top + yaxis._offset + yaxis.d2p(trace.y[trace.x.indexOf(3)])];
    }""")
    report.mouse.move(x - 3, y)
    report.mouse.move(x, y)
    report.locator("#projections-plot .hoverlayer .hovertext").wait_for()
    hover = report.locator("#projections-plot .hoverlayer").text_content() or ""
    for text in ("k_3_3", "k: 3", "seed: 1", "l0: 3", "mcc"):
        assert text in hover
    report.mouse.click(x, y)
    assert layout(report, "saes", "title.text").startswith("k_3_3")
    assert layout(report, "saes", "sliders[0].active") == 2


def test_plots_can_be_saved_but_not_sent_anywhere(report: Page) -> None:
    titles = report.evaluate(
        "[...document.querySelectorAll('.modebar-btn')].map((button) => button.dataset.title)"
    )
    assert "Download plot as a PNG" in titles
    assert not any("loud" in title or "ploa" in title for title in titles)
    report.locator("#saes-plot").hover()
    with report.expect_download() as download:
        report.locator("#saes-plot .modebar-btn").first.click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")


def test_plots_and_page_follow_the_scheme_and_all_is_named(report: Page) -> None:
    ink = "document.getElementById('curves-plot')._fullLayout.font.color"
    light = report.evaluate(ink)
    assert shot(report)[5, 5].mean() > 230
    report.emulate_media(color_scheme="dark")
    assert shot(report)[5, 5].mean() < 60
    assert report.evaluate(ink) != light

    # The heatmap itself is drawn: the blue of a recovered feature is in the middle of it.
    cells = shot(report.locator("#saes-plot")).astype(int)
    assert ((cells[..., 2] - cells[..., 0]) > 60).mean() > 0.01
    report.emulate_media(color_scheme="light")
    unnamed = report.evaluate("""() => [
        ...[...document.querySelectorAll("img")].filter((e) => !e.alt),
        ...[...document.querySelectorAll("[role=group], [role=region]")].filter(
            (e) => !document.getElementById(e.getAttribute("aria-labelledby"))),
    ].map((e) => e.outerHTML.slice(0, 80))""")
    assert unnamed == []
    assert report.locator("h1").count() == 1


@pytest.mark.parametrize("width", [360, 1600])
def test_it_fits_the_window(path: Path, open_page: OpenPage, width: int) -> None:
    page = open_page(path, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_tables_are_sorted_by_clicking_and_names_are_shown_as_they_are(
    tmp_path: Path, open_page: OpenPage
) -> None:
    sweep = Sweep(l0s=(4.5, 10.0, 2.0, 3.0))
    name = HOSTILE.replace("/", "") + '<a href="javascript:alert(3)">%{x}'
    spec = write_run(tmp_path / "first", sweep).manifest["spec"]
    for i, sae in enumerate(spec["saes"]):
        sae["factors"] = {HOSTILE: name[:20] + str(i % 2)}
    folder = write_run(tmp_path / "run", sweep, spec=spec)
    log = folder.read_table("training_curves").rename(columns={"mse_loss": "<b>x</b>"})
    folder.write_table("training_curves", log)
    table = folder.read_table("results")
    table.loc[3, "mcc"] = np.nan
    folder.write_table("results", table)
    page = open_page(write_report(folder))
    # Numbers sort as numbers.
    assert column(page, "results", "l0") == ["4.5", "10", "2", "3"]
    head(page, "results", "l0").click()
    assert column(page, "results", "l0") == ["2", "3", "4.5", "10"]
    head(page, "results", "l0").press("Enter")
    assert column(page, "results", "l0") == ["10", "4.5", "3", "2"]
    assert page.locator("#results th[aria-sort=descending]").inner_text().strip() == "l0"
    for _ in range(2):
        head(page, "results", "mcc").click()
        assert column(page, "results", "mcc")[-1] == "–"
    assert page.locator("#results th[aria-sort]").count() == 1
    choose(page, "projections", "colour: <")
    assert "<script>" in (page.locator("#projections-plot .colorbar").text_content() or "")
    choose(page, "curves", "<b>x</b>")
    assert page.locator("#curves-plot .ytitle").text_content() == "<b>x</b>"
    assert page.locator("a[href^=javascript], img[src=x]").count() == 0


def test_a_bare_report_and_the_index_open_too(tmp_path: Path, open_page: OpenPage) -> None:
    folders = [
        write_bare_run(tmp_path / name, timings={"training_seconds": seconds})
        for name, seconds in (("b", 9.0), ("a", 100.0))
    ]
    for folder in folders:
        write_report(folder)
    page = open_page(write_index([folder.path for folder in folders], tmp_path / "i.html"))
    assert column(page, "verdicts", "Run") == ["b", "a"]
    page.get_by_role("button", name="Run").click()
    assert column(page, "verdicts", "Run") == ["a", "b"]
    page.get_by_role("button", name="Training").click()
    assert column(page, "verdicts", "Run") == ["b", "a"]
    page.locator("h2 a").first.click()
    assert page.locator("h1").inner_text() == "A trial of the report"


def test_a_recommendation_and_an_evaluation_open_and_their_tables_sort(
    tmp_path: Path, open_page: OpenPage
) -> None:
    found, measured = recommend_l0(evidence.sweep()), evaluated()
    rec = write_recommendation(found, tmp_path / "found", HOSTILE, {"Seed": 0}, with_sae=False)
    page = open_page(rec, dark=True)
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("#answer h2").inner_text().startswith("L0 10, ")
    assert page.locator("#answer li").count() == 4
    assert shot(page)[5, 5].mean() < 90
    assert page.locator("figure img").evaluate("(img) => img.complete && img.naturalWidth > 500")
    l0s = ["4", "6", "8", "9.9", "10", "12", "16"]
    assert column(page, "sweep", "l0") == l0s
    for _ in range(2):
        head(page, "sweep", "l0").click()
    assert column(page, "sweep", "l0") == l0s[::-1]
    page = open_page(write_evaluation(measured, tmp_path / "e", "x", {}, remarks(measured)))
    assert page.locator("figure img").evaluate("img => img.naturalWidth") > 1000
    head(page, "saes", "dead_latents").click()
    assert column(page, "saes", "sae") == ["narrow", "wide"]
    assert page.locator("#remarks li").count() >= 2
