"""What the site shows that no page holds: tables of the committed measurements, linked files, and
what notebooks print and draw.

A page holds ``<!-- name of a table -->`` where a table goes, and links to files of the repository
as they lie beside it, so that it can be read on GitHub too.
"""

from __future__ import annotations

import atexit
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import griffe
from mkdocs.structure.files import File
from mkdocs_jupyter.config import settings

from scripts.run_notebook import run_notebook

if TYPE_CHECKING:
    import pandas as pd
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
_OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)")
settings.templates_dir = str(ROOT / "docs" / "templates")


class SpacedSections(griffe.Extension):
    """Sets the sections of docstrings apart by the empty lines that griffe finds them by."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"\n+(?=(?:Returns|Raises|Source):)", "\n\n", text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the files that pages link to into the site, and run the notebooks.

    With EXECUTE_NOTEBOOKS=false in the environment their pages lack what they print and draw.
    """
    pages = (page for page in files.documentation_pages() if page.src_uri.endswith(".md"))
    texts = [page.content_string for page in pages]
    for name in sorted({name for text in texts for name in _OUTSIDE.findall(text)}):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for file in files:
        if file.src_uri.endswith(".ipynb") and os.environ.get("EXECUTE_NOTEBOOKS") != "false":
            folder = Path(tempfile.mkdtemp(prefix="notebook_"))
            atexit.register(shutil.rmtree, folder)
            file.abs_src_path = str(run_notebook(Path(file.abs_src_path or ""), folder))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill in the tables, and point links at the files where they lie in the site."""
    for table in (small_worlds, every_small_world, large_worlds, searches):
        marker = f"<!-- {table.__name__.replace('_', ' ')} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, table())
    return _OUTSIDE.sub(r"](\1", markdown)


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Point a notebook's links at the pages of the site, and leave out the styles added to it."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    html = re.sub(r"<style\b.*?</style>", "", html, flags=re.DOTALL)
    return re.sub(r'(href="(?!\w+:)[^"]+)\.(?:md|ipynb)\b', r"\1.html", html)


def small_worlds() -> str:
    """The summary of each seed, against what is aimed at, and the rows that miss."""
    from benchmarks.l0.summary import summarize

    def number(metric: Any, value: float | None) -> str:
        if value is None or math.isnan(value):
            return "–"
        return f"{100 * value:.3g} %" if metric.share else f"{value:.3g}"

    seeds = _seeds()
    rows = []
    for metrics in zip(*(summarize(table) for table in seeds.values()), strict=True):
        first = metrics[0]
        aim = "" if first.target is None else f"{'≤' if first.at_most else '≥'} "
        aim += "" if first.target is None else number(first, first.target)
        rows.append([first.name, *(number(metric, metric.value) for metric in metrics), aim])
    missed = [
        f"`{row['world']}`, seed {seed}: {said}"
        for seed, table in seeds.items()
        for row in table.to_dict("records")
        if (said := _missed(row))
    ]
    header = ["", *(f"seed {seed}" for seed in seeds), "aim"]
    return f"{_table(header, rows)}\n\nMissed: {'; '.join(missed) or 'no world'}."


def _missed(row: dict[Any, Any]) -> str:
    """What is wrong with a row of the benchmark, in words; empty where nothing is."""
    is_given = math.isfinite(row["recommended"])
    if row["d_sae"] >= row["n_features"] > 0:
        if not is_given:
            return "declined"
        off = f"off by {100 * abs(row['error']):.2g} %"
        if abs(row["error"]) >= 0.05:
            return off
        return "" if row["covered"] else f"{off}, outside the interval"
    if not is_given or row["covered"]:
        return ""
    return "recommended an L0 where there are no features" if row["n_features"] == 0 else "wrong"


def every_small_world() -> str:
    """A row for each world, with what was found for each seed."""
    seeds = _seeds()
    rows: dict[str, list[str]] = {}
    for table in seeds.values():
        for row in table.to_dict("records"):
            sizes = [str(row["d_in"]), str(row["n_features"]), str(row["d_sae"])]
            truth = f"{row['true_l0']:.4g}" if row["n_features"] else "–"
            cells = rows.setdefault(row["world"], [*sizes, truth])
            found = f"{row['recommended']:.4g} ({row['low']:.4g} to {row['high']:.4g})"
            cells.append(found if math.isfinite(row["recommended"]) else "declined")
    header = ["world", "d_in", "features", "latents", "true L0", *(f"seed {s}" for s in seeds)]
    return _table(header, ([f"`{name}`", *cells] for name, cells in rows.items()))


def _seeds() -> dict[str, pd.DataFrame]:
    from benchmarks.l0.table import read_table

    files = sorted((ROOT / "benchmarks" / "l0").glob("seed_*.csv"))
    return {file.stem.removeprefix("seed_"): read_table(file) for file in files}


def large_worlds() -> str:
    """What each rule loses on the grids, and where the rule of `find_l0` says the L0 is."""
    from benchmarks.l0.regret import regrets

    parts = []
    for split, said in (("tune", "chosen on"), ("report", "not chosen on")):
        for architecture, cells in regrets(split).groupby("architecture"):
            n_worlds = len(set(cells["world"]))
            worlds = f"{n_worlds} {'world' if n_worlds == 1 else 'worlds'}"
            kind = _KINDS[str(architecture)]
            parts.append(f"#### {kind} SAEs, {worlds} that the rules were {said}")
            parts += [_rules(cells), _agreement(cells)]
    return "\n\n".join(parts)


_KINDS = {"batchtopk": "BatchTopK", "jumprelu": "JumpReLU", "matryoshka_batchtopk": "Matryoshka"}


def searches() -> str:
    """What `find_l0` said on the large worlds, and on controls made from them."""
    import pandas as pd

    from benchmarks.l0.regret import GOOD, regrets
    from benchmarks.l0.search import TABLE
    from benchmarks.l0.truth import TRUTHS

    judged = regrets().query("rule == 'find_l0'").set_index(["world", "architecture"])
    rows = []
    for row in pd.read_csv(TABLE).to_dict("records"):
        is_answered = math.isfinite(row["l0"])
        cell = (row["world"], row["architecture"])
        lost = good = "–"
        if is_answered and row["control"] == "none" and cell in judged.index:
            good = "{good_low:.3g} to {good_high:.3g}".format(**judged.loc[cell])
            lost = ", ".join(f"{abs(judged.loc[cell, f'regret_{x}']):.3f}" for x in TRUTHS[:2])
        rows.append(
            [
                f"`{row['world']}`" + ("" if row["control"] == "none" else f", {row['control']}"),
                _KINDS[row["architecture"]],
                "{l0:.3g} ({low:.3g} to {high:.3g})".format(**row) if is_answered else "declined",
                row["basis"] if is_answered else "–",
                lost,
                good,
                f"{row['seconds'] / 60:.0f} min",
            ]
        )
    measured = ["lost in cosine, MCC", f"at most {GOOD} lost in both"]
    header = ["world", "SAEs", "L0 (interval)", "rests on", *measured, "time"]
    return _table(header, rows)


def _rules(cells: pd.DataFrame) -> str:
    from benchmarks.l0.regret import GOOD, summarize

    names = {"best_cosine": "mean best cosine", "mcc": "MCC", "f1": "F1"}
    summary = summarize(cells).sort_values(
        ["good", "median_regret_best_cosine"], ascending=[False, True]
    )
    rows = []
    for row in summary.reset_index().to_dict("records"):
        lost = (
            # The best one is below 0 by rounding.
            ", ".join(f"{abs(row[f'{which}_regret_{name}']):.3f}" for which in ("median", "worst"))
            if row["declined"] < row["cells"]
            else "–"
            for name in names
        )
        rows.append([row["rule"], f"{row['good']} of {row['cells']}", str(row["declined"]), *lost])
    good = f"within {GOOD} in cosine and MCC"
    lost = [f"lost in {name}: median, worst" for name in names.values()]
    return _table(["rule", good, "declined", *lost], rows)


def _agreement(cells: pd.DataFrame) -> str:
    rows = []
    for row in cells.to_dict("records"):
        if row["rule"] != "agreement":
            continue
        said = f"{row['l0']:.3g}" if math.isfinite(row["l0"]) else "declined"
        best = [f"{row[f'best_l0_{name}']:.3g}" for name in ("best_cosine", "mcc", "f1")]
        rows.append([f"`{row['world']}`", f"{row['true_l0']:.3g}", said, *best])
    best = [f"best in {name}" for name in ("cosine", "MCC", "F1")]
    return _table(["world", "features active", "L0 by agreement", *best], rows)


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---", *(["---:"] * (len(header) - 1))], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
