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
from sparse_but_wrong.report.embed import data_uri
from sparse_but_wrong.report.render import own_script, render
from sparse_but_wrong.report.tables import PROJECTION, shown_table
from sparse_but_wrong.report.write import shown_time

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
    table = sweep.wide()
    named = {f"s_{n}" for curve in recommendation.curves for n in _n_of(curve.metric)}
    dropped = [name for name in table.columns if PROJECTION.fullmatch(name) and name not in named]
    shown = table.drop(columns=dropped).sort_values("l0")
    counts = pd.DataFrame(
        [
            {
                "from SAE": count.sae_id,
                "group": count.group,
                "directions": count.presence.n_directions,
                "present per sample": count.presence.l0,
                "ambiguous": count.presence.ambiguity,
                "left over": count.presence.residual,
                "cost on noise": count.noise_cost,
            }
            for count in sweep.counts
        ]
    )
    _, png = save_figure(plot_recommendation(recommendation), folder / "plots/recommendation")
    content = json.dumps(_as_json(recommendation, facts), indent=2, ensure_ascii=False)
    atomic.write_bytes(folder / "recommendation.json", content.encode())
    atomic.write_bytes(folder / "sweep.csv", table.to_csv(index=False).encode())
    if with_sae and recommendation.sae is not None:
        recommendation.sae.save_inference_model(str(folder / "sae"))
    page = render(
        "recommendation.html.jinja",
        [own_script("tables.js")],
        title=title,
        recommendation=recommendation,
        l0=None if recommendation.l0 is None else f"{recommendation.l0:.4g}",
        interval=None
        if recommendation.interval is None
        else [f"{end:.4g}" for end in recommendation.interval],
        image=data_uri(png.read_bytes(), "image/png"),
        caption=_CAPTION,
        sweep=shown_table("sweep", "A row per SAE, in order of L0.", shown),
        counts=shown_table("counts", "A row per start, best first.", counts)
        if len(counts)
        else None,
        facts={k: shown_time(v) if k == "Started" else str(v) for k, v in facts.items()},
    )
    atomic.write_bytes(folder / "report.html", page)
    return folder / "report.html"


def _n_of(metric: str) -> list[str]:
    found = PROJECTION.fullmatch(metric)
    return [] if found is None else [found[1]]


def _as_json(recommendation: L0Recommendation, facts: Mapping[str, Any]) -> dict[str, Any]:
    """All numbers and words; what is not finite becomes null."""
    return {
        "l0": recommendation.l0,
        "interval": recommendation.interval,
        "counted": recommendation.counted,
        "sae_l0": recommendation.sae_l0,
        "reasons": recommendation.reasons,
        "doubts": recommendation.doubts,
        "curves": [
            {
                "metric": curve.metric,
                "near": _finite(curve.near),
                "below": _finite(curve.below),
                "smallest_at": _finite(curve.smallest_at),
                "elbow": _finite(curve.elbow),
                "risen_at": _finite(curve.risen_at),
                "verdict": curve.verdict,
            }
            for curve in recommendation.curves
        ],
        "counts": [
            {
                "sae_id": count.sae_id,
                "group": count.group,
                "l0": _finite(count.presence.l0),
                "above_cut": _finite(count.presence.above_cut),
                "standard_error": _finite(count.presence.standard_error),
                "cut": count.presence.cut,
                "residual": _finite(count.presence.residual),
                "n_directions": count.presence.n_directions,
                "noise_cost": _finite(count.noise_cost),
            }
            for count in recommendation.sweep.counts
        ],
        "made": {name: str(value) for name, value in facts.items()},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
