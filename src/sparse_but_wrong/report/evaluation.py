"""Evaluations of SAEs as a folder: the tables, the figure, and a page that shows them.

saes.csv               a row per SAE
projections.csv        a row per SAE and n: s_n^dec and its standard error
latents.csv            a row per SAE and latent: the share of samples on which it is active
loss.csv and others    a row per SAE of what else was measured (`Evidence`), and its details
examples.jsonl         a line per top example of a latent, if they were looked for
plots/                 the figures, as PDF and PNG
report.html            all of it on one page
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong import atomic
from sparse_but_wrong.figures.distributions import SHARES, plot_evaluations
from sparse_but_wrong.figures.signals import Signals, plot_signals
from sparse_but_wrong.metrics.evaluation import RECOVERY, Evaluation
from sparse_but_wrong.metrics.evidence import Evidence
from sparse_but_wrong.metrics.examples import LatentExamples
from sparse_but_wrong.report.examples import FILE, examples_lines, examples_section
from sparse_but_wrong.report.page import Section, made_section, save_image, write_page

if TYPE_CHECKING:
    import pandas as pd

CAPTION = (
    "Above: s_n^dec over n for every SAE, the darkest at the lowest L0; s_n^dec over L0 for n from "
    "a quarter to half of the latents, bars of two standard errors; similarity of decoder rows and "
    "of encoder columns. Below: how many latents a sample has, on how many samples a latent is "
    "active, and all projections of samples on decoder rows."
)


SIGNALS_CAPTION = (
    "Every signal over the same axis of L0, a column per sweep. Bars are two standard errors; a "
    "line joins the means of SAEs of one L0."
)
_FEWEST_OF_A_SWEEP = 3


def write_evaluation(
    evaluations: Sequence[Evaluation],
    place: Path,
    title: str,
    facts: Mapping[str, Any],
    remarks: Sequence[str],
    not_evaluated: Mapping[str, str] | None = None,
    evidence: Sequence[Evidence] = (),
    examples: Sequence[LatentExamples] = (),
    sweeps: Mapping[str, str] | None = None,
) -> Path:
    """Write evaluations, at least one, into a folder that is empty or made.

    Args:
        title: of the page, whose path is returned: what the activations are.
        facts: how it was made, by name.
        remarks: what stands out (`metrics.findings.remarks`).
        not_evaluated: why not, by the name of the SAE.
        evidence: what else was measured of the same SAEs.
        examples: where some of their latents are most active.
        sweeps: the sweep that an SAE is of, by the SAE's name: its run, for example.
    Raises:
        OSError: the folder holds something, or cannot be written to.
    """
    atomic.check_free(place)
    errors = "projection_standard_errors"
    tables = {
        "saes": evaluation_table(evaluations),
        "projections": _per_entry(evaluations, "n", s_n="projections", standard_error=errors),
        "latents": _per_entry(evaluations, "latent", density="densities"),
    }
    tables |= {one.name: one.table.reset_index() for one in evidence}
    tables |= {f"{one.name}_details": one.details for one in evidence if one.details is not None}
    images = [save_image(plot_evaluations(evaluations), place, "scores", CAPTION)]
    if signals := _signals(tables["saes"], evidence, sweeps or {}):
        images.append(save_image(plot_signals(signals), place, "signals", SIGNALS_CAPTION))
    for name, table in tables.items():
        atomic.write_bytes(place / f"{name}.csv", table.to_csv(index=False).encode())
    found = []
    if examples:
        atomic.write_bytes(place / FILE, examples_lines(examples))
        found = [examples_section(examples, {one.name: one.densities for one in evaluations})]  # pyright: ignore[reportArgumentType]
    saes = {"table": tables["saes"], "csv": "saes.csv", "notes": ["A row per SAE."]}
    optional = [
        (remarks, Section("remarks", "What stands out", points={"": remarks})),
        (not_evaluated, Section("not-evaluated", "Not evaluated", facts=not_evaluated or {})),
    ]
    sections = [
        *(section for content, section in optional if content),
        Section("figure", "All of them together", images=images),
        Section("saes", "The SAEs", **saes),
        *map(_evidence_section, evidence),
        *found,
        made_section(facts),
    ]
    above = f"SAEs, evaluated on {max(found.n_samples for found in evaluations):,} samples of"
    return write_page(place / "report.html", title, sections, above=above)


def _signals(
    saes: pd.DataFrame, evidence: Sequence[Evidence], sweeps: Mapping[str, str]
) -> list[Signals]:
    """A column of the figure of signals for every sweep that has SAEs of several L0."""
    table = saes.set_index("sae")
    for one in evidence:
        table = table.join(one.table)
    parts = {Path(str(run)).name: part for run, part in table.groupby(sweeps) if run}
    return [Signals(run, part) for run, part in parts.items() if len(part) >= _FEWEST_OF_A_SWEEP]


def _evidence_section(evidence: Evidence) -> Section:
    facts = {
        f"{column}, {what}": f"{measured.value:.4g} ± {2 * measured.standard_error:.2g}"
        for column, baselines in evidence.baselines.items()
        for what, measured in baselines.items()
    }
    csv, notes = f"{evidence.name}.csv", list(evidence.notes)
    table = evidence.table.reset_index()
    return Section(evidence.name, evidence.title, table=table, csv=csv, notes=notes, facts=facts)


def evaluation_table(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """A row per SAE, with s_n^dec for n of a quarter to half of its latents.

    Columns `s_0.25H` and so on, with their standard errors, are comparable between SAEs of one
    width only.
    """
    import pandas as pd

    rows = []
    for found in evaluations:
        row: dict[str, Any] = {"sae": found.name, **found.to_row()}
        if found.match is None:
            row = {name: value for name, value in row.items() if name not in RECOVERY}
        for share in SHARES:
            n = int(share * found.d_sae)
            row[f"s_{share:g}H"] = float(found.projections[n])
            row[f"s_{share:g}H_standard_error"] = float(found.projection_standard_errors[n])
        rows.append(row)
    return pd.DataFrame(rows)


def _per_entry(evaluations: Sequence[Evaluation], number: str, **columns: str) -> pd.DataFrame:
    """A row per SAE and entry of some arrays of its evaluation, which are numbered."""
    import pandas as pd

    tables = [
        pd.DataFrame(
            {"sae": found.name, number: range(found.d_sae)}
            | {column: getattr(found, name) for column, name in columns.items()}
        )
        for found in evaluations
    ]
    return pd.concat(tables, ignore_index=True)
