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
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparse_but_wrong import atomic
from sparse_but_wrong.figures.recommendation import plot_recommendation
from sparse_but_wrong.l0.recommend import L0Recommendation
from sparse_but_wrong.report.page import Section, made_section, save_image, write_page

_CAPTION = (
    "An SAE per mark, hollow where it started from the learned directions; the band is the "
    "interval, a dotted line the elbow of curves, the last L0 before they rise. Shared are latents "
    "whose decoder rows are each other's nearest in SAEs of two seeds. Right: how much of each "
    "learned direction a sample holds; what lies above the cut is present."
)


def write_recommendation(
    recommendation: L0Recommendation,
    folder: Path,
    title: str,
    facts: Mapping[str, Any],
    *,
    with_sae: bool,
) -> Path:
    """Write a recommendation into a folder, which is made if it is not there.

    Args:
        title: of the page, whose path is returned: what the activations are.
        facts: how it was made, by name.
        with_sae: keep the SAE, if there is one.
    """
    import pandas as pd

    sweep = recommendation.sweep
    image = save_image(plot_recommendation(recommendation), folder, "recommendation", _CAPTION)
    content = json.dumps(_as_json(recommendation, facts), indent=2, ensure_ascii=False)
    atomic.write_bytes(folder / "recommendation.json", content.encode())
    atomic.write_bytes(folder / "sweep.csv", sweep.wide().to_csv(index=False).encode())
    if with_sae and recommendation.sae is not None:
        recommendation.sae.save_inference_model(str(folder / "sae"))
    sections = [_answer(recommendation), Section("figure", "The evidence", images=[image])]
    counts = [
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
    if counts:
        more = {"table": pd.DataFrame(counts), "notes": ["A row per start, best first."]}
        sections.append(Section("counts", "What was counted", **more))
    named = [n for n in sweep.projections if f"s_{n}" in {c.metric for c in recommendation.curves}]
    shown = sweep.table.join(sweep.projections[named].add_prefix("s_")).sort_values("l0")
    more = {"table": shown, "csv": "sweep.csv", "notes": ["A row per SAE, in order of L0."]}
    sections += [Section("sweep", "The sweep", **more), made_section(facts)]
    above = "The L0 that SAEs on these activations should have, and how many features are active"
    return write_page(folder / "report.html", title, sections, above=above)


def _answer(found: L0Recommendation) -> Section:
    (head, doubts), (why, reasons), (active, of_count) = found.paragraphs()
    points = {"": doubts, why.rstrip(":"): reasons, "Why no number of features": of_count}
    return Section("answer", head.rstrip(":"), lead=active, points=points)


def _as_json(found: L0Recommendation, facts: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers and words; what is not finite becomes null."""
    words = ("l0", "interval", "basis", "counted", "sae_l0", "reasons", "doubts")
    curves = [
        {
            "metric": curve.metric,
            **_numbers(curve, "near", "below"),
            **_numbers(curve.bottom, "smallest_at", "elbow", "risen_at"),
            "verdict": curve.verdict,
        }
        for curve in found.curves
    ]
    counts = [
        {
            "sae_id": count.sae_id,
            "group": count.group,
            **_numbers(count.presence, "l0", "above_cut", "standard_error", "cut", "residual"),
            "n_directions": count.presence.n_directions,
            **_numbers(count, "noise_cost"),
        }
        for count in found.sweep.counts
    ]
    made = {name: str(value) for name, value in facts.items()}
    found_words = {name: getattr(found, name) for name in words}
    active, agreement = asdict(found.active), found.agreement and asdict(found.agreement)
    found_words |= {"active": active, "agreement": agreement}
    return {"text": str(found), **found_words, "curves": curves, "counts": counts, "made": made}


def _numbers(record: object, *names: str) -> dict[str, float | None]:
    values = {name: float(getattr(record, name)) for name in names}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
