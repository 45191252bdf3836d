"""The report as a reader has it: a real browser opens the file, offline.

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
from sparse_but_wrong.report.diagnosis import write_diagnosis
from sparse_but_wrong.report.index import write_index
from sparse_but_wrong.report.recommendation import write_recommendation
from sparse_but_wrong.report.write import write_report
from tests.l0 import evidence
from tests.metrics.streamed import streamed
from tests.report.conftest import Watched
from tests.report.folders import Sweep, results, write_bare_run, write_run
from tests.report.test_write import HOSTILE

OpenPage = Callable[..., Watched]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four SAEs out of order, in two worlds, with L0 1, 2, 3 and 4.5; true L0 1.32."""
    sweep = Sweep(worlds=("left", "right"))
    return write_report(write_run(tmp_path_factory.mktemp("report") / "run", sweep))


def traces(page: Page, plot: str) -> list[dict[str, Any]]:
    """What a plot shows now, without what is only there for the legend."""
    drawn = page.evaluate(
        "(id) => document.getElementById(id).data.map("
        "({x, y, z, line, marker}) => ({x, y, z, line, marker}))",
        plot,
    )
    return [trace for trace in drawn if trace["z"] or trace["x"] != [None]]


def points(page: Page) -> dict[float, float]:
    """L0 and s_n of the SAEs that are drawn, the ring around the chosen one aside."""
    drawn = traces(page, "projections")[:-1]
    return {x: y for trace in drawn for x, y in zip(trace["x"], trace["y"], strict=True)}


def legend(page: Page) -> str:
    return page.locator("#projections .legend").text_content() or ""


def move(slider: Locator, place: int) -> None:
    """As a keyboard does: from the start, one step after the other."""
    slider.focus()
    slider.press("Home")
    for _ in range(place):
        slider.press("ArrowRight")


def shot(page: Page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB"))


def background(page: Page) -> int:
    """The brightness of the page's ground, 0 to 255."""
    return int(shot(page)[5, 5].mean())


def test_choosing_n_changes_what_is_drawn(report: Path, open_page: OpenPage) -> None:
    page = open_page(report).page
    table = results(Sweep())
    assert page.get_by_label("n =").get_attribute("aria-valuetext") == "n = 2"
    assert points(page) == pytest.approx(dict(zip(table["l0"], table["s_2"], strict=True)))
    move(page.get_by_label("n ="), 4)
    assert page.locator("#n-label").inner_text() == "4"
    assert points(page) == pytest.approx(dict(zip(table["l0"], table["s_4"], strict=True)))
    assert "s_4 of 4 SAEs" in (page.locator("#projections").get_attribute("aria-label") or "")


def test_true_l0_is_a_dashed_line(report: Path, open_page: OpenPage) -> None:
    page = open_page(report).page
    (line,) = page.evaluate("document.getElementById('projections').layout.shapes")
    assert (line["x0"], line["x1"], line["line"]["dash"]) == (1.32, 1.32, "dash")
    assert "true L0 1.32" in legend(page)


def test_colours_follow_the_factor(report: Path, open_page: OpenPage) -> None:
    page = open_page(report).page
    select = page.get_by_label("Colour")
    assert select.input_value() == "world"
    left, right, _ = traces(page, "projections")
    assert (left["x"], right["x"]) == ([2.0, 4.5], [1.0, 3.0])
    assert left["marker"]["line"]["color"] != right["marker"]["line"]["color"]
    assert "world = left" in legend(page)
    select.select_option("")
    everything, _ = traces(page, "projections")
    assert everything["x"] == [1.0, 2.0, 3.0, 4.5]
    select.select_option("seed")
    assert "seed = 1" in legend(page)


def test_points_are_joined_where_one_thing_alone_differs(
    tmp_path: Path, open_page: OpenPage
) -> None:
    page = open_page(write_report(write_run(tmp_path / "run"))).page
    modes = "document.getElementById('projections').data.map(({ mode }) => mode)"
    # k and seed differ.
    assert "lines+markers" not in page.evaluate(modes)
    page.get_by_label("Colour").select_option("seed")
    assert page.evaluate(modes).count("lines+markers") == 2


def test_with_many_worlds_colours_tell_the_factor(tmp_path: Path, open_page: OpenPage) -> None:
    worlds = tuple(f"w_{i}" for i in range(9))
    sweep = Sweep(l0s=tuple(1 + i / 4 for i in range(9)), worlds=worlds)
    page = open_page(write_report(write_run(tmp_path / "run", sweep))).page
    assert page.get_by_label("Colour").input_value() == "seed"


def test_a_factor_with_many_numbers_is_a_scale(tmp_path: Path, open_page: OpenPage) -> None:
    sweep = Sweep(l0s=tuple(1 + 0.25 * i for i in range(12)))
    page = open_page(write_report(write_run(tmp_path / "run", sweep))).page
    page.get_by_label("Colour").select_option("k")
    everything, _ = traces(page, "projections")
    assert everything["marker"]["color"] == sorted(sweep.l0s)
    assert page.locator("#projections .colorbar").count() == 1


def test_sliding_through_the_sweep_moves_heatmap_label_and_curve(
    report: Path, open_page: OpenPage
) -> None:
    page = open_page(report).page
    label, slider = page.locator("#sae-label"), page.get_by_label("SAE, in order of L0")
    # The first one shown is the nearest to the true L0, 1.32.
    assert label.inner_text() == "k_1_1 · L0 1.00 · MCC 0.879 (1 of 4)"
    before = np.array(traces(page, "heatmap")[0]["z"])
    assert before.shape == (6, 6)
    move(slider, 3)
    assert label.inner_text() == "k_4.5_0 · L0 4.50 · MCC 0.300 (4 of 4)"
    assert slider.get_attribute("aria-valuetext") == label.inner_text()
    after = np.array(traces(page, "heatmap")[0]["z"])
    assert np.abs(after - before).max() > 0.1
    assert np.abs(after).max() <= 1
    curve = traces(page, "sorted")[-1]
    table = results(Sweep())
    assert list(curve["y"]) == pytest.approx(table.loc[0, [f"s_{n}" for n in range(6)]].tolist())
    (ring,) = traces(page, "projections")[-1:]
    assert ring["x"] == [4.5]


def test_clicking_a_point_chooses_its_sae(report: Path, open_page: OpenPage) -> None:
    page = open_page(report).page
    page.locator("#projections").scroll_into_view_if_needed()
    # The plot's own coordinates of the SAE of L0 3, in pixels of the page.
    x, y = page.evaluate("""() => {
        const plot = document.getElementById("projections");
        const { xaxis, yaxis } = plot._fullLayout;
        const trace = plot.data.find(({ x }) => x.includes(3));
        const box = plot.getBoundingClientRect();
        return [box.left + xaxis._offset + xaxis.d2p(3),
                box.top + yaxis._offset + yaxis.d2p(trace.y[trace.x.indexOf(3)])];
    }""")
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    page.locator("#projections .hoverlayer .hovertext").wait_for()
    hover = page.locator("#projections .hoverlayer").text_content() or ""
    for text in ("k_3_3", "k: 3", "seed: 1", "L0: 3", "mcc"):
        assert text in hover
    page.mouse.click(x, y)
    assert page.locator("#sae-label").inner_text().startswith("k_3_3")


def test_a_logarithmic_scale_says_what_it_cannot_show(tmp_path: Path, open_page: OpenPage) -> None:
    folder = write_run(tmp_path / "run")
    table = folder.read_table("results")
    table.loc[0, "s_2"] = -0.5
    table.loc[1, "s_2"] = np.nan
    folder.write_table("results", table)
    page = open_page(write_report(folder)).page
    page.get_by_label("Scale").first.select_option("log")
    assert page.locator("#projections-note").inner_text() == (
        "1 of 4 SAEs have no finite value and are not drawn. "
        "1 at or below 0 cannot be drawn on this scale."
    )
    assert page.evaluate("document.getElementById('projections').layout.yaxis.type") == "log"


def test_plots_can_be_saved_but_not_sent_anywhere(report: Path, open_page: OpenPage) -> None:
    page = open_page(report).page
    titles = page.evaluate(
        "[...document.querySelectorAll('.modebar-btn')].map((button) => button.dataset.title)"
    )
    assert set(titles) == {
        "Download plot as a PNG",
        "Zoom",
        "Pan",
        "Zoom in",
        "Zoom out",
        "Reset axes",
    }
    page.locator("#heatmap").hover()
    with page.expect_download() as download:
        page.locator("#heatmap .modebar-btn").first.click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")


def test_training_curves_show_the_chosen_column(report: Path, open_page: OpenPage) -> None:
    page = open_page(report).page
    assert len(traces(page, "curves")) == 4
    assert traces(page, "curves")[0]["y"][0] == pytest.approx(3)
    page.get_by_label("Show").select_option("mse_loss")
    lines = traces(page, "curves")
    assert lines[0]["x"] == [0, 100, 200, 300, 400]
    assert lines[0]["y"][0] == pytest.approx(3.6)
    # The one of L0 4.5 has no number at its end.
    assert lines[3]["y"][4] is None
    assert len({line["line"]["color"] for line in lines}) == 4


def test_tables_are_sorted_by_clicking_and_numbers_sort_as_numbers(
    tmp_path: Path, open_page: OpenPage
) -> None:
    folder = write_run(tmp_path / "run", Sweep(l0s=(4.5, 10.0, 2.0, 3.0)))
    table = folder.read_table("results")
    table.loc[3, "mcc"] = np.nan
    folder.write_table("results", table)
    page = open_page(write_report(folder)).page

    def column(name: str) -> list[str]:
        heads = page.locator("#results th").all_inner_texts()
        place = [head.strip() for head in heads].index(name) + 1
        return page.locator(f"#results td:nth-child({place})").all_inner_texts()

    header = page.locator("#results th", has_text="l0").last

    def head(name: str) -> Locator:
        return page.locator("#results").get_by_role("button", name=name, exact=True)

    assert column("l0") == ["4.5", "10", "2", "3"]
    head("l0").click()
    assert column("l0") == ["2", "3", "4.5", "10"]
    head("l0").press("Enter")
    assert column("l0") == ["10", "4.5", "3", "2"]
    assert header.get_attribute("aria-sort") == "descending"
    head("mcc").click()
    assert column("mcc")[-1] == "–"
    head("mcc").click()
    assert column("mcc")[-1] == "–"
    assert header.get_attribute("aria-sort") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_scheme_is_the_reader_s(report: Path, open_page: OpenPage, scheme: str) -> None:
    page = open_page(report, scheme).page
    bright = background(page)
    assert bright > 230 if scheme == "light" else bright < 60
    pixels = shot(page)
    assert len(np.unique(pixels.astype(int) @ [1 << 16, 1 << 8, 1])) > 500
    # The heatmap itself is drawn: the blue of a recovered feature is in the middle of it.
    box = page.locator("#heatmap").bounding_box()
    assert box
    x, y, width, height = (int(box[key]) for key in ("x", "y", "width", "height"))
    cells = pixels[y : y + height, x : x + width].reshape(-1, 3).astype(int)
    assert ((cells[:, 2] - cells[:, 0]) > 60).mean() > 0.03


def test_plots_follow_a_change_of_scheme(report: Path, open_page: OpenPage) -> None:
    page = open_page(report).page
    ink = "document.getElementById('curves').layout.font.color"
    light = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    assert background(page) < 60
    dark = page.evaluate(ink)
    assert dark != light
    page.emulate_media(color_scheme="light")
    assert background(page) > 230
    assert page.evaluate(ink) == light


@pytest.mark.parametrize("width", [360, 1600])
def test_it_fits_the_window(report: Path, open_page: OpenPage, width: int) -> None:
    page = open_page(report, width=width).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for plot in ("projections", "heatmap", "sorted", "curves"):
        box = page.locator(f"#{plot} .main-svg").first.bounding_box()
        assert box
        assert box["x"] + box["width"] <= width


def test_everything_has_a_name_for_those_who_do_not_see_it(
    report: Path, open_page: OpenPage
) -> None:
    page = open_page(report).page
    unnamed = page.evaluate("""() => [
        ...[...document.querySelectorAll("input, select")].filter((e) => !e.labels.length),
        ...[...document.querySelectorAll("img")].filter((e) => !e.alt),
        ...[...document.querySelectorAll("[role=img], [role=region]")].filter(
            (e) => !e.ariaLabel && !e.getAttribute("aria-labelledby")),
    ].map((e) => e.outerHTML.slice(0, 80))""")
    assert unnamed == []
    assert page.locator("h1").count() == 1


def test_names_are_shown_as_they_are(tmp_path: Path, open_page: OpenPage) -> None:
    name = HOSTILE.replace("/", "") + '<a href="javascript:alert(3)">%{x}'
    sweep = Sweep()
    spec = write_run(tmp_path / "first", sweep).manifest["spec"]
    spec["saes"] = [
        {**sae, "factors": {HOSTILE: name[:20] + str(i % 2)}} for i, sae in enumerate(spec["saes"])
    ]
    folder = write_run(tmp_path / "run", sweep, spec=spec)
    log = folder.read_table("training_curves").rename(columns={"mse_loss": "<b>x</b>"})
    folder.write_table("training_curves", log)
    page = open_page(write_report(folder)).page
    page.get_by_label("Colour").select_option(HOSTILE)
    assert "</script><script>alert(1)" in (
        page.locator("#projections .legend").text_content() or ""
    )
    page.get_by_label("Show").select_option("<b>x</b>")
    assert page.locator("#curves .ytitle").text_content() == "<b>x</b>"
    assert page.locator("a[href^=javascript], img[src=x]").count() == 0


def test_a_bare_report_and_the_index_open_too(tmp_path: Path, open_page: OpenPage) -> None:
    folders = [
        write_bare_run(tmp_path / "b", timings={"training_seconds": 9.0}),
        write_bare_run(tmp_path / "a", timings={"training_seconds": 100.0}),
    ]
    reports = [write_report(folder) for folder in folders]
    assert open_page(reports[0]).page.locator("h1").inner_text() == "A trial of the report"
    index = write_index([folder.path for folder in folders], tmp_path / "index.html")
    page = open_page(index, "dark").page
    assert background(page) < 60
    names = page.locator("#verdicts td:first-child code")
    assert names.all_inner_texts() == ["b", "a"]
    page.get_by_role("button", name="Run").click()
    assert names.all_inner_texts() == ["a", "b"]
    page.get_by_role("button", name="Training").click()
    assert names.all_inner_texts() == ["b", "a"]
    page.get_by_role("link").first.click()
    assert page.locator("h1").inner_text() == "A trial of the report"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_recommendation_opens_and_its_tables_sort(
    tmp_path: Path, open_page: OpenPage, scheme: str
) -> None:
    path = write_recommendation(
        recommend_l0(evidence.sweep()), tmp_path / "found", HOSTILE, {"Seed": 0}, with_sae=False
    )
    page = open_page(path, scheme).page
    assert page.locator("#answer").inner_text() == "L0 10"
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("#reasons li").count() == 4
    assert (background(page) < 90) == (scheme == "dark")
    image = page.locator("figure img")
    assert image.evaluate("(img) => img.complete && img.naturalWidth > 500")
    l0s = page.locator("#sweep td:nth-child(3)")
    assert l0s.all_inner_texts() == ["4", "6", "8", "9.9", "10", "12", "16"]
    for _ in range(2):
        page.locator("#sweep").get_by_role("button", name="l0", exact=True).click()
    assert l0s.all_inner_texts() == ["16", "12", "10", "9.9", "8", "6", "4"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_diagnosis_opens_and_its_table_sorts(
    tmp_path: Path, open_page: OpenPage, scheme: str
) -> None:
    path = write_diagnosis(streamed(), tmp_path / "out", "acts", {"Command": "sbw diagnose"})
    page = open_page(path, scheme).page
    image = page.locator("figure img")
    assert image.evaluate("img => img.naturalWidth") > 1000
    table = page.locator("#saes")
    column = table.locator("th button", has_text="dead_latents")
    column.click()
    names = table.locator("tbody tr td:first-child")
    assert names.all_inner_texts() == ["narrow", "wide"]
    column.click()
    assert names.all_inner_texts() == ["wide", "narrow"]
    assert page.locator("#remarks li").count() >= 2
