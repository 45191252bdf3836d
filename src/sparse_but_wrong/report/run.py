"""The report of a run, and the index of the verdicts of several."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sparse_but_wrong.metrics.evaluation import join_projections, split_projections
from sparse_but_wrong.report import plots
from sparse_but_wrong.report.page import (
    OUTCOMES,
    Image,
    Section,
    format_number,
    made_section,
    shown_seconds,
    write_page,
)
from sparse_but_wrong.runs.folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

QUICK = "A quick run: it had a fiftieth of the budget. Everything works; its numbers mean nothing."


def write_report(folder: RunFolder) -> Path:
    """Write the report of a run, finished or not, into its folder, from what lies there alone.

    Raises:
        ValueError: something of the run is damaged, or an SAE of a finished run is missing.
    """
    folder.finished_saes()
    manifest, spec = folder.manifest, folder.manifest["spec"]
    images = shown_images(folder)
    notices = [QUICK] if manifest["quick"] else []
    if manifest["status"] != "finished":
        notices.append("This run has not finished: this is what its folder held.")
    remarks = (manifest.get("verdict") or {}).get("remarks", ())
    sections = [
        _verdict(manifest, "claim", "The claim", points={"Remarks": remarks}),
        *([Section("figures", "The figures", images=images)] if images else []),
        *_plots(folder),
        *_tables(folder),
        made_section(facts_of(manifest), _spec_text(spec)),
    ]
    above = f"Report of a run of {spec['name']}"
    return write_page(folder.report_path, spec["title"], sections, above=above, notices=notices)


def write_index(folders: Sequence[Path], path: Path) -> Path:
    """Write a page of several runs: a table of their verdicts, and each claim with a link.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: a manifest is damaged or of another format.
    """
    import pandas as pd

    runs = [RunFolder.open(folder) for folder in folders]
    rows, sections = [], []
    for number, run in enumerate(runs):
        manifest, title = run.manifest, run.manifest["spec"]["title"]
        there, link = run.report_path.is_file(), ""
        if there:
            relative = os.path.relpath(run.report_path.resolve(), path.resolve().parent)
            link = quote(Path(relative).as_posix())
        notes = [f"Run {run.path.name}." + ("" if there else " It has no report.")]
        created = manifest["provenance"].get("created") or ""
        rows.append(
            {
                "Run": run.path.name,
                "Verdict": OUTCOMES[outcome_of(manifest)][1],
                "Title": title + (" (quick)" if manifest["quick"] else ""),
                "Training, s": manifest["timings"].get("training_seconds"),
                "Started": created[:16].replace("T", " "),
            }
        )
        notes += [QUICK] if manifest["quick"] else []
        sections.append(_verdict(manifest, f"run-{number}", title, link=link, notes=notes))
    counts = Counter(outcome_of(run.manifest) for run in runs)
    tally = ", ".join(f"{counts[key]} × {OUTCOMES[key][1]}" for key in OUTCOMES if counts[key])
    table = pd.DataFrame(rows, columns=["Run", "Verdict", "Title", "Training, s", "Started"])
    verdicts = Section("verdicts", "The verdicts", lead=tally, table=table)
    title = "What the experiments showed"
    return write_page(path, title, [verdicts, *sections], above="sparse_but_wrong")


def outcome_of(manifest: Mapping[str, Any]) -> str:
    """What the claim of a run came to; where there is no verdict yet, nothing is judged."""
    outcome = (manifest.get("verdict") or {}).get("outcome")
    return outcome if outcome in OUTCOMES else "not judged"


def _verdict(manifest: Mapping[str, Any], id: str, title: str, **more: Any) -> Section:
    checks = (manifest.get("verdict") or {}).get("checks", ())
    said = {"outcome": outcome_of(manifest), "lead": manifest["spec"]["claim"], "checks": checks}
    return Section(id, title, **said, **more)


def shown_images(folder: RunFolder) -> list[Image]:
    """The figures of a run that stand in its report, the overview first."""
    return [_image(folder, figure) for figure in folder.manifest.get("shown_figures", ())]


def _image(folder: RunFolder, figure: Mapping[str, str]) -> Image:
    name = figure["name"]
    file = folder.plots_path / f"{name}.png"
    png = file.read_bytes() if _lies_in(folder.plots_path, file) else None
    pdf = f"{quote(folder.plots_path.name)}/{quote(name)}.pdf"
    return Image(png, figure["caption"] or name, pdf)


def _plots(folder: RunFolder) -> list[Section]:
    """The interactive plots; none where no SAE has been evaluated."""
    results = _read(folder, "results")
    if results is None or results.empty:
        return []
    spec, curves = folder.manifest["spec"], _read(folder, "training_curves")
    table, projections = split_projections(plots.in_order_of_l0(results))
    true_l0 = folder.manifest.get("true_l0", {})
    frames = plots.cosine_frames(folder, table)
    sections = []
    if projections.shape[1]:
        plot = plots.projections_plot(
            table,
            projections,
            plots.varying_factors(table, spec),
            true_l0,
            spec.get("projection_n", ()),
            [frame["sae"] for frame in frames] or range(len(table)),
        )
        notes = [
            "A point per SAE, hollow for those added to the published grid: its n-th decoder "
            "projection, which is smallest where the SAE is right, if n is above the right L0 and "
            "below half the number of latents. Click a point to see that SAE below.",
            "A logarithmic scale has no place for values at or below 0.",
        ]
        if nowhere := len(table) - len(table.dropna(subset=["l0"])):
            notes.append(f"{nowhere} of {len(table)} SAEs have no finite L0 and are not drawn.")
        sections.append(Section("projections", "s_n^dec against L0", plot=plot, notes=notes))
    if frames or projections.shape[1]:
        shown = frames or [{"sae": i} for i in range(len(table))]
        notes = [
            "Latents are in the order of the features they are matched to one to one, those "
            "without a partner last. At the right L0 the projections fall off a cliff there: they "
            "are the true features. The arrow keys move the slider."
        ]
        if any(frame.get("thinned") for frame in frames):
            notes.append("Not all latents and features of each SAE are shown.")
        if frames and len(frames) < len(table):
            notes.append(f"{len(table) - len(frames)} SAEs are left out.")
        plot = plots.saes_plot(table, projections, true_l0, shown)
        title = "Through the sweep, SAE by SAE"
        sections.append(Section("saes", title, plot=plot, notes=notes))
    if curves is not None:
        plot, notes = plots.curves_plot(curves, table, true_l0)
        if plot is not None:
            more = {"plot": plot, "notes": notes, "csv": "training_curves.csv"}
            sections.append(Section("curves", "Training", **more))
    return sections


def _tables(folder: RunFolder) -> list[Section]:
    sections = []
    results = _read(folder, "results")
    if results is not None:
        table, projections = split_projections(results)
        wanted = [n for n in folder.manifest["spec"].get("projection_n", ()) if n in projections]
        note = "A row per SAE, in the order of the spec."
        if len(wanted) < projections.shape[1]:
            note += " s_n of the other n is not shown."
        more = {"table": join_projections(table, projections.loc[:, wanted]), "notes": [note]}
        sections.append(Section("results", "Results", csv="results.csv", **more))
    for number, (name, caption) in enumerate(folder.manifest.get("tables", {}).items()):
        table = _read(folder, name)
        if table is not None:
            more = {"table": table, "csv": f"{quote(name)}.csv", "notes": [caption]}
            sections.append(Section(f"table-{number}", name, **more))
    return sections


def _read(folder: RunFolder, name: str) -> pd.DataFrame | None:
    there = _lies_in(folder.path, folder.path / f"{name}.parquet")
    return folder.read_table(name) if there else None


def _lies_in(folder: Path, file: Path) -> bool:
    """Whether a file is there, and not somewhere else that a stranger's manifest points to."""
    return file.resolve().is_relative_to(folder.resolve()) and file.is_file()


def facts_of(manifest: Mapping[str, Any]) -> dict[str, object]:
    """How a run was made, by name, for people."""
    origin = dict(manifest["provenance"])
    command, created = origin.pop("command", None), origin.pop("created", None)
    versions = origin.pop("versions", {})
    facts = {"Command": command, "Seed": manifest["seed"], "Device": manifest["device"]}
    facts["Started"] = created
    for name, seconds in manifest["timings"].items():
        facts[f"Time: {name.removesuffix('_seconds')}"] = shown_seconds(seconds)
    for world, l0 in manifest.get("true_l0", {}).items():
        facts[f"True L0 of {world}"] = format_number(l0)
    facts.update({key.replace("_", " ").capitalize(): value for key, value in origin.items()})
    facts["Versions"] = ", ".join(f"{name} {v}" for name, v in versions.items() if v)
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _spec_text(spec: Mapping[str, Any]) -> str:
    """The spec as YAML, with short lists on one line."""
    import yaml

    # Through JSON, as it lies on disk: otherwise what occurs twice would become an alias.
    plain = json.loads(json.dumps(spec))
    style = {"sort_keys": False, "allow_unicode": True, "default_flow_style": None, "width": 96}
    return yaml.safe_dump(plain, **style)
