"""The report of a run, and the index of the verdicts of several."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sparse_but_wrong.metrics.evaluation import split_projections
from sparse_but_wrong.report.page import (
    OUTCOMES,
    Check,
    Image,
    Section,
    format_number,
    shown_seconds,
    shown_time,
    write_page,
)
from sparse_but_wrong.report.plots import (
    cosine_frames,
    curves_plot,
    in_order_of_l0,
    projections_plot,
    saes_plot,
    varying_factors,
)
from sparse_but_wrong.runs.folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

QUICK = "A quick run: it had a fiftieth of the budget. Everything works; its numbers mean nothing."


def write_report(folder: RunFolder) -> Path:
    """Write the report of a run into its folder, from what lies in the folder alone.

    Parts of which the folder has nothing are left out; a run that has not finished gets a report
    of what is there.

    Returns:
        The path of the file. It appears whole or not at all, and replaces an older one.
    Raises:
        ValueError: something of the run is damaged, or an SAE of a finished run is missing.
    """
    folder.finished_saes()
    manifest, spec = folder.manifest, folder.manifest["spec"]
    images = [_image(folder, figure) for figure in manifest.get("shown_figures", ())]
    notices = [QUICK] if manifest.get("quick") else []
    if manifest.get("status") != "finished":
        notices.append("This run has not finished: this is what its folder held.")
    sections = [
        _verdict(manifest, "The claim"),
        *([Section("figures", "The figures", images=images)] if images else []),
        *_plots(folder),
        *_tables(folder),
        Section("made", "How it was made", facts=_facts(manifest), source=_spec_text(spec)),
    ]
    title, above = str(spec["title"]), f"Report of a run of {spec['name']}"
    return write_page(folder.report_path, title, sections, above=above, notices=notices)


def write_index(folders: Sequence[Path], path: Path) -> Path:
    """Write a page of several runs: a table of their verdicts, and each claim with a link.

    Args:
        folders: run folders, in the order in which they are shown.
        path: of the page. It appears whole or not at all, and replaces an older one.
    Returns:
        `path`.
    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: a manifest is damaged or of another format.
    """
    import pandas as pd

    runs = [RunFolder.open(folder) for folder in folders]
    rows, sections = [], []
    for number, run in enumerate(runs):
        manifest, seconds = run.manifest, run.manifest["timings"].get("training_seconds")
        title = str(manifest["spec"].get("title", ""))
        link = ""
        if run.report_path.is_file():
            relative = os.path.relpath(run.report_path.resolve(), path.resolve().parent)
            link = quote(Path(relative).as_posix())
        rows.append(
            {
                "Run": run.path.name,
                "Verdict": OUTCOMES[outcome_of(manifest)][1],
                "Title": title + (" (quick)" if manifest.get("quick") else ""),
                "Training, s": seconds,
                "Started": str(run.manifest["provenance"].get("created") or "")[:16].replace(
                    "T", " "
                ),
            }
        )
        notes = [f"Run {run.path.name}." + ("" if link else " It has no report.")]
        notes += [QUICK] if manifest.get("quick") else []
        sections.append(_verdict(manifest, title, id=f"run-{number}", link=link, notes=notes))
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


def _verdict(manifest: Mapping[str, Any], title: str, **more: Any) -> Section:
    verdict = manifest.get("verdict") or {}
    in_words = {True: "holds", False: "fails", None: "not judged"}
    checks = [
        Check(str(check["claim"]), str(check["measured"]), in_words[check["holds"]])
        for check in verdict.get("checks", ())
    ]
    remarks = {"Remarks": [str(remark) for remark in verdict.get("remarks", ())]}
    if more:  # an index holds claims, not all that is to be said of them
        remarks = {}
    return Section(
        **{"id": "claim", **more},
        title=title,
        outcome=outcome_of(manifest),
        lead=str(manifest["spec"].get("claim", "")),
        checks=checks,
        points=remarks,
    )


def _image(folder: RunFolder, figure: Mapping[str, Any]) -> Image:
    name = str(figure["name"])
    file = folder.plots_path / f"{name}.png"
    png = file.read_bytes() if _lies_in(folder.plots_path, file) else None
    pdf = f"{quote(folder.plots_path.name)}/{quote(name)}.pdf"
    return Image(png, str(figure.get("caption") or name), pdf)


def _plots(folder: RunFolder) -> list[Section]:
    """The interactive plots; none where no SAE has been evaluated."""
    results = _read(folder, "results")
    if results is None or results.empty:
        return []
    spec, curves = folder.manifest["spec"], _read(folder, "training_curves")
    table, projections = split_projections(in_order_of_l0(results))
    true_l0 = {k: float(v) for k, v in (folder.manifest.get("true_l0") or {}).items()}
    frames = cosine_frames(folder, table)
    sections = []
    if projections.shape[1]:
        plot = projections_plot(
            table,
            projections,
            varying_factors(table, spec),
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
        plot = saes_plot(table, projections, true_l0, shown)
        title = "Through the sweep, SAE by SAE"
        sections.append(Section("saes", title, plot=plot, notes=notes))
    if curves is not None:
        plot, notes = curves_plot(curves, table, true_l0)
        csv = "training_curves.csv"
        if plot is not None:
            sections.append(Section("curves", "Training", plot=plot, notes=notes, csv=csv))
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
        table = table.join(projections[wanted].add_prefix("s_"))
        more = {"table": table, "csv": "results.csv", "notes": [note]}
        sections.append(Section("results", "Results", **more))
    for number, (name, caption) in enumerate((folder.manifest.get("tables") or {}).items()):
        table = _read(folder, str(name))
        if table is not None:
            more = {"table": table, "csv": f"{quote(str(name))}.csv", "notes": [str(caption)]}
            sections.append(Section(f"table-{number}", str(name), **more))
    return sections


def _read(folder: RunFolder, name: str) -> pd.DataFrame | None:
    there = _lies_in(folder.path, folder.path / f"{name}.parquet")
    return folder.read_table(name) if there else None


def _lies_in(folder: Path, file: Path) -> bool:
    """Whether a file is there, and not somewhere else that a stranger's manifest points to."""
    return file.resolve().is_relative_to(folder.resolve()) and file.is_file()


def _facts(manifest: Mapping[str, Any]) -> dict[str, str]:
    origin = dict(manifest.get("provenance") or {})
    created, versions = origin.pop("created", None), origin.pop("versions", None) or {}
    facts: dict[str, object] = {
        "Command": origin.pop("command", None),
        "Seed": manifest.get("seed"),
        "Device": manifest.get("device"),
        "Started": shown_time(created) if created else None,
    }
    for name, seconds in (manifest.get("timings") or {}).items():
        facts[f"Time: {str(name).removesuffix('_seconds')}"] = shown_seconds(seconds)
    for world, l0 in (manifest.get("true_l0") or {}).items():
        facts[f"True L0 of {world}"] = format_number(l0)
    facts.update({str(key).replace("_", " ").capitalize(): value for key, value in origin.items()})
    facts["Versions"] = ", ".join(f"{name} {v}" for name, v in versions.items() if v)
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _spec_text(spec: Mapping[str, Any]) -> str:
    """The spec as YAML, with short lists on one line."""
    import yaml

    # Through JSON, as it lies on disk: otherwise what occurs twice would become an alias.
    plain = json.loads(json.dumps(spec))
    style = {"sort_keys": False, "allow_unicode": True, "default_flow_style": None, "width": 96}
    return yaml.safe_dump(plain, **style)
