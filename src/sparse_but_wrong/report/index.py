"""One page with the verdicts of several runs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sparse_but_wrong import atomic
from sparse_but_wrong.report.render import own_script, render
from sparse_but_wrong.report.verdict import Badge, ShownVerdict, shown_verdict
from sparse_but_wrong.report.write import shown_seconds, shown_time
from sparse_but_wrong.runs.folder import RunFolder


@dataclass(frozen=True)
class ShownRun:
    """A run's row."""

    name: str
    title: str
    claim: str
    quick: bool
    verdict: ShownVerdict
    link: str
    """The address of its report, relative to the index; empty where there is none."""

    training: str
    training_seconds: float | int | str
    """To sort by; empty where nothing was trained."""

    started: str
    started_iso: str


def write_index(folders: Sequence[Path], path: Path) -> Path:
    """Write a page with a row per run: its claim, its verdict, and a link to its report.

    Args:
        folders: run folders, in the order of the rows.
        path: of the page. It appears whole or not at all, and replaces an older one.
    Returns:
        `path`.
    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: a manifest is damaged or of another format.
    """
    runs = [_shown_run(RunFolder.open(folder), path) for folder in folders]
    counts = Counter(run.verdict.badge.outcome for run in runs)
    outcomes = [(Badge(name), counts[name]) for name in ("holds", "fails", "not judged")]
    atomic.write_bytes(
        path,
        render("index.html.jinja", [own_script("tables.js")], runs=runs, outcomes=outcomes),
    )
    return path


def _shown_run(folder: RunFolder, index: Path) -> ShownRun:
    manifest, spec = folder.manifest, folder.manifest["spec"]
    report = folder.report_path
    link = ""
    if report.is_file():
        relative = Path(os.path.relpath(report.resolve(), index.resolve().parent))
        link = quote(relative.as_posix())
    seconds = (manifest.get("timings") or {}).get("training_seconds", "")
    started = str((manifest.get("provenance") or {}).get("created", ""))
    return ShownRun(
        name=folder.path.name,
        title=str(spec.get("title", "")),
        claim=str(spec.get("claim", "")),
        quick=bool(manifest.get("quick")),
        verdict=shown_verdict(manifest),
        link=link,
        training=shown_seconds(seconds) if seconds != "" else "–",
        training_seconds=seconds,
        started=shown_time(started) if started else "–",
        started_iso=started,
    )
