"""The report of a run: one HTML file that shows everything and needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from markupsafe import Markup

from sparse_but_wrong import atomic
from sparse_but_wrong.report.cosines import cosine_frames
from sparse_but_wrong.report.embed import data_uri, json_for_script
from sparse_but_wrong.report.plots import (
    factors_that_vary,
    in_order_of_l0,
    projections,
    sae_facts,
    training_curves,
)
from sparse_but_wrong.report.render import own_script, plotly_script, render
from sparse_but_wrong.report.tables import (
    ShownTable,
    format_number,
    shown_results,
    shown_table,
)
from sparse_but_wrong.report.verdict import shown_verdict
from sparse_but_wrong.runs.folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ShownFigure:
    """A figure that stands in the page itself."""

    image: str
    """A `data:` address; empty where the run folder lacks the file."""

    caption: str
    pdf: str
    """The address of the PDF, relative to the page."""


def write_report(folder: RunFolder) -> Path:
    """Write the report of a run into its folder, from what lies in the folder alone.

    Parts of which the folder has nothing are left out; a run that has not finished gets a report
    of what is there.

    Args:
        folder: of the run.
    Returns:
        The path of the file. It appears whole or not at all, and replaces an older one.
    Raises:
        ValueError: something of the run is damaged, or an SAE of a finished run is missing.
    """
    folder.finished_saes()
    manifest, spec = folder.manifest, folder.manifest["spec"]
    data = _plot_data(folder)
    figures = [_figure(folder, figure) for figure in manifest.get("shown_figures", ())]
    content = render(
        "page.html.jinja",
        [plotly_script(), own_script("tables.js"), own_script("page.js")]
        if data
        else [own_script("tables.js")],
        spec=spec,
        quick=bool(manifest.get("quick")),
        unfinished=manifest.get("status") != "finished",
        verdict=shown_verdict(manifest),
        figures=figures,
        plots=data,
        plot_json=Markup(json_for_script(data)),
        tables=_tables(folder),
        made=_how_it_was_made(manifest),
        versions=_provenance(manifest).get("versions") or {},
        spec_text=_spec_text(spec),
    )
    atomic.write_bytes(folder.report_path, content)
    return folder.report_path


def shown_time(iso: object) -> str:
    """A point in time for people; what is none stays as it is."""
    try:
        time = datetime.fromisoformat(str(iso))
    except ValueError:
        return str(iso)
    return f"{time.day} {time:%b %Y, %H:%M} {time.tzname() or ''}".rstrip()


def shown_seconds(seconds: float | int) -> str:
    """A duration for people."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _plot_data(folder: RunFolder) -> dict[str, Any]:
    """What the interactive plots show; empty where no SAE has been scored."""
    table = _read(folder, "results")
    if table is None or table.empty:
        return {}
    spec = folder.manifest["spec"]
    table = in_order_of_l0(table)
    saes = sae_facts(table, spec)
    curves = _read(folder, "training_curves")
    order = [sae["id"] for sae in saes]
    true_l0 = {k: float(v) for k, v in (folder.manifest.get("true_l0") or {}).items()}
    projection_n = spec.get("projection_n", ())
    return {
        "saes": saes,
        "varying": factors_that_vary(saes),
        "true_l0": true_l0,
        "projections": projections(table, projection_n, max(true_l0.values(), default=0.0)),
        "cosines": cosine_frames(folder, saes),
        "curves": None if curves is None else training_curves(curves, order),
    }


def _tables(folder: RunFolder) -> list[ShownTable]:
    tables = []
    results = _read(folder, "results")
    if results is not None:
        tables.append(shown_results(results, folder.manifest["spec"].get("projection_n", ())))
    for name, caption in (folder.manifest.get("tables") or {}).items():
        table = _read(folder, str(name))
        if table is not None:
            tables.append(shown_table(str(name), str(caption), table))
    return tables


def _read(folder: RunFolder, name: str) -> pd.DataFrame | None:
    return folder.read_table(name) if _lies_in(folder.path, f"{name}.parquet") else None


def _figure(folder: RunFolder, figure: Mapping[str, Any]) -> ShownFigure:
    name = str(figure["name"])
    image = ""
    if _lies_in(folder.plots_path, f"{name}.png"):
        image = data_uri((folder.plots_path / f"{name}.png").read_bytes(), "image/png")
    caption = str(figure.get("caption") or name)
    return ShownFigure(image, caption, f"{quote(folder.plots_path.name)}/{quote(name)}.pdf")


def _lies_in(folder: Path, name: str) -> bool:
    """Whether a file is there, and not somewhere else that a stranger's manifest points to."""
    path = (folder / name).resolve()
    return path.is_relative_to(folder.resolve()) and path.is_file()


def _how_it_was_made(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Facts by name, in the order in which they are shown."""
    origin = _provenance(manifest)
    facts: dict[str, object] = {
        "Command": origin.get("command"),
        "Seed": manifest.get("seed"),
        "Device": manifest.get("device"),
        "Started": shown_time(origin["created"]) if origin.get("created") else None,
    }
    for name, seconds in (manifest.get("timings") or {}).items():
        if isinstance(seconds, int | float):
            facts[f"Time: {str(name).removesuffix('_seconds')}"] = shown_seconds(seconds)
    for world, l0 in (manifest.get("true_l0") or {}).items():
        facts[f"True L0 of {world}"] = format_number(l0)
    known = {"command", "created", "versions"}
    facts.update({_title(key): value for key, value in origin.items() if key not in known})
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _provenance(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    return manifest.get("provenance") or {}


def _title(key: object) -> str:
    text = str(key).replace("_", " ")
    return text[:1].upper() + text[1:]


def _spec_text(spec: Mapping[str, Any]) -> str:
    """The spec as YAML, with short lists on one line."""
    import yaml

    # Through JSON, as it lies on disk: otherwise what occurs twice would become an alias.
    plain = json.loads(json.dumps(spec))
    return yaml.safe_dump(
        plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=96
    )
