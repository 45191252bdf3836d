"""What the page's plots show, as JSON-ready values: the SAEs, s_n^dec, and the training curves.

SAEs are in order of their L0 everywhere, those without a finite L0 last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_but_wrong.report.embed import as_json_value, pack_floats
from sparse_but_wrong.report.tables import PROJECTION

if TYPE_CHECKING:
    import pandas as pd

# In the order in which they are shown where one points at an SAE.
_FIGURES = (
    "mcc",
    "mean_max_cosine",
    "variance_explained",
    "mse",
    "c_dec",
    "dead_latents",
    "diverged_at_step",
)
_MOST_CURVES = 200
_MOST_N = 512
_MOST_PROJECTIONS = 200_000
_MOST_CURVE_POINTS = 8_000
_FEWEST_STEPS, _MOST_STEPS = 40, 400


def in_order_of_l0(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the table of results in order of L0."""
    if "l0" not in table.columns:
        table = table.assign(l0=np.nan)
    l0 = table["l0"].to_numpy(dtype=np.float64, na_value=np.nan)
    return table.iloc[np.argsort(np.where(np.isfinite(l0), l0, np.inf), kind="stable")]


def sae_facts(table: pd.DataFrame, spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each SAE's name, L0, what sets it apart from the others, and its figures.

    Args:
        table: a row per SAE, in the order that is kept.
        spec: of the run.
    """
    specs = {str(sae["sae_id"]): sae for sae in spec.get("saes", ())}
    facts = []
    for row in table.to_dict("records"):
        sae_id = str(row["sae_id"])
        of_spec = specs.get(sae_id, {})
        factors = dict(of_spec.get("factors") or {})
        for name in ("architecture", "world"):
            factors = {name: row.get(name, of_spec.get(name)), **factors}
        facts.append(
            {
                "id": sae_id,
                "l0": as_json_value(row["l0"]),
                "added": bool(row.get("added", False)),
                "world": str(factors["world"]),
                "factors": {name: as_json_value(value) for name, value in factors.items()},
                "figures": {name: as_json_value(row[name]) for name in _FIGURES if name in row},
            }
        )
    return facts


def factors_that_vary(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The factors of which there is more than one value, worlds and architectures first."""
    names = dict.fromkeys(name for sae in facts for name in sae["factors"])
    return [name for name in names if len({sae["factors"].get(name) for sae in facts}) > 1]


def projections(
    table: pd.DataFrame, projection_n: Sequence[int], above: float | int = 0
) -> dict[str, Any] | None:
    """s_n^dec of every SAE, for every n or, where those are too many, for some of them.

    Args:
        table: a row per SAE with columns `s_0` …, in the order that is kept.
        projection_n: the n that must be among them; the first of them is shown first.
        above: where there is none, the first n above this is; a true L0.
    """
    matches = (PROJECTION.fullmatch(str(name)) for name in table.columns)
    every_n = sorted(int(match[1]) for match in matches if match)
    if not every_n or table.empty:
        return None
    wanted = [n for n in projection_n if n in set(every_n)]
    most = max(2, min(_MOST_N, _MOST_PROJECTIONS // len(table)))
    kept = sorted({*wanted, *(every_n[i] for i in spread(len(every_n), most))})
    values = table[[f"s_{n}" for n in kept]].to_numpy(dtype=np.float64, na_value=np.nan)
    first = wanted or [n for n in kept if n > above] or kept
    return {
        "n": kept,
        "first_n": first[0],
        "values": pack_floats(values),
        "left_out": len(every_n) - len(kept),
    }


def training_curves(curves: pd.DataFrame, order: Sequence[str]) -> dict[str, Any] | None:
    """The training log of every SAE, thinned where a page could not hold it.

    Args:
        curves: a row per SAE and logged step.
        order: the ids of the SAEs, in the order that is kept.
    """
    by_id = {str(sae_id): rows for sae_id, rows in curves.groupby("sae_id", sort=False)}
    there = [index for index, sae_id in enumerate(order) if sae_id in by_id]
    shown = [there[i] for i in spread(len(there), _MOST_CURVES)]
    numeric = curves.select_dtypes("number").dropna(axis="columns", how="all")
    columns = [str(name) for name in numeric.columns if name not in ("sae_id", "step")]
    if not shown or not columns:
        return None
    most = int(np.clip(_MOST_CURVE_POINTS // len(shown), _FEWEST_STEPS, _MOST_STEPS))
    lines, logged = [], 0
    for index in shown:
        rows = by_id[order[index]].sort_values("step")
        logged = max(logged, len(rows))
        rows = rows.iloc[spread(len(rows), most)]
        values = rows[columns].to_numpy(dtype=np.float64, na_value=np.nan).T
        steps = [int(step) for step in rows["step"]]
        lines.append({"sae": index, "steps": steps, "values": pack_floats(values)})
    return {
        "columns": columns,
        "lines": lines,
        "steps_shown": min(most, logged),
        "steps_logged": logged,
        "left_out": len(there) - len(shown),
    }


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices below `count`, evenly spread, the first and the last included.

    Args:
        count: 0 or more.
        most: 2 or more.
    """
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
