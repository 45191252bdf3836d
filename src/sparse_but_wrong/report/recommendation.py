"""A recommendation as a folder: the numbers, the sweep, the figure, and a page that shows them.

recommendation.json   the L0, its interval, reasons or doubts, the counts, and how it was made
sweep.csv             a row per SAE
plots/                the figure, as PDF and PNG
report.html           all of it on one page
sae/                  an SAE at the recommended L0, where it is to be kept
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_but_wrong import atomic
from sparse_but_wrong.figures.recommendation import plot_recommendation
from sparse_but_wrong.figures.style import save_figure
from sparse_but_wrong.l0.recommend import L0Recommendation
from sparse_but_wrong.report.page import Image, Section, shown_facts, write_page

_CAPTION = (
    "Left and middle: an SAE per mark, hollow where it started from the learned directions; the "
    "band is the interval, a dotted line the elbow of curves, the last L0 before they rise. "
    "Right: how much of each direction a sample holds; what lies above the cut is present."
)


def write_recommendation(
    recommendation: L0Recommendation,
    folder: Path,
    title: str,
    facts: Mapping[str, Any],
    *,
    with_sae: bool,
) -> Path:
    """Write a recommendation into a folder.

    Args:
        folder: to fill; made if it is not there.
        title: of the page: what the activations are.
        facts: how it was made, by name.
        with_sae: keep the SAE, if there is one.
    Returns:
        The path of the page.
    """
    import pandas as pd

    sweep = recommendation.sweep
    _, png = save_figure(plot_recommendation(recommendation), folder / "plots/recommendation")
    content = json.dumps(_as_json(recommendation, facts), indent=2, ensure_ascii=False)
    atomic.write_bytes(folder / "recommendation.json", content.encode())
    atomic.write_bytes(folder / "sweep.csv", sweep.wide().to_csv(index=False).encode())
    if with_sae and recommendation.sae is not None:
        recommendation.sae.save_inference_model(str(folder / "sae"))
    image = Image(png.read_bytes(), _CAPTION, "plots/recommendation.pdf")
    sections = [_answer(recommendation), Section("figure", "The evidence", images=[image])]
    if sweep.counts:
        rows = [
            {
                "from SAE": count.sae_id,
                "group": count.group,
                "directions": count.presence.n_directions,
                "present per sample": count.presence.l0,
                "ambiguous": count.presence.ambiguity,
                "unexplained": count.presence.residual,
                "cost on noise": count.noise_cost,
            }
            for count in sweep.counts
        ]
        more = {"table": pd.DataFrame(rows), "notes": ["A row per start, best first."]}
        sections.append(Section("counts", "What was counted", **more))
    named = [n for n in sweep.projections if f"s_{n}" in {c.metric for c in recommendation.curves}]
    shown = sweep.table.join(sweep.projections[named].add_prefix("s_")).sort_values("l0")
    more = {"table": shown, "csv": "sweep.csv", "notes": ["A row per SAE, in order of L0."]}
    sections.append(Section("sweep", "The sweep", **more))
    sections.append(Section("made", "How it was made", facts=shown_facts(facts)))
    above = "The L0 that SAEs on these activations should have"
    return write_page(folder / "report.html", title, sections, above=above)


def _answer(found: L0Recommendation) -> Section:
    reasons = {"Why" if found.l0 is not None else "What was seen": found.reasons}
    if found.l0 is None or found.interval is None:
        points = {"": found.doubts, **reasons}
        return Section("answer", "No recommendation", points=points)
    low, high = found.interval
    lead = f"between {low:.4g} and {high:.4g}"
    return Section("answer", f"L0 {found.l0:.4g}", lead=lead, points=reasons)


def _as_json(found: L0Recommendation, facts: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers and words; what is not finite becomes null."""
    bottom_numbers = ("smallest_at", "elbow", "risen_at")
    presence_numbers = ("l0", "above_cut", "standard_error", "cut", "residual")
    return {
        "l0": found.l0,
        "interval": found.interval,
        "counted": found.counted,
        "sae_l0": found.sae_l0,
        "reasons": found.reasons,
        "doubts": found.doubts,
        "curves": [
            {
                "metric": curve.metric,
                **_numbers(curve, ("near", "below")),
                **_numbers(curve.bottom, bottom_numbers),
                "verdict": curve.verdict,
            }
            for curve in found.curves
        ],
        "counts": [
            {
                "sae_id": count.sae_id,
                "group": count.group,
                **_numbers(count.presence, presence_numbers),
                "n_directions": count.presence.n_directions,
                **_numbers(count, ("noise_cost",)),
            }
            for count in found.sweep.counts
        ],
        "made": {name: str(value) for name, value in facts.items()},
    }


def _numbers(record: object, names: tuple[str, ...]) -> dict[str, float | None]:
    values = {name: float(getattr(record, name)) for name in names}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
