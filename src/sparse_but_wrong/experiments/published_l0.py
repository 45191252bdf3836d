"""Where the L0s of published SAEs lie, beside the L0s that the paper's metric points to.

Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, for the elbows; the pretrained directory of
sae_lens for the SAEs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import pandas as pd

from sparse_but_wrong.experiments.analysis import Analysis, Figures, MeasuredTable, Run
from sparse_but_wrong.experiments.verdict import Verdict, check
from sparse_but_wrong.figures.distributions import l0_by_model

if TYPE_CHECKING:
    from sparse_but_wrong.sae_lens_compat import PretrainedSAELookup

RESIDUAL = "residual"

# "average_l0_71", "l0-40", "k_64", "topk_64". Not "l0_big", nor "l0r_8x" (layer 0, residual), nor
# "width_16k_…" and "v5_32k_layer_0", where the k is a thousand.
_L0_IN_NAME = re.compile(r"(?<![a-z0-9])(?:l0|(?:(?:batch)?top_?)?k)[_=-](\d+)(?![a-z0-9.])")

# Of the training of one SAE many are kept; they are no SAEs that anyone offers for use.
_CHECKPOINT = re.compile(r"_step_\d+$")

_LAYER = re.compile(r"(?:layer[_.]?|blocks\.|^l)(\d+)(?![0-9])")

_SITES = {
    "transcoder": r"transcoder|(?<![a-z])clt(?![a-z])",
    "embedding": r"embedding",
    "attention": r"hook_z|(?<![a-z])att(?:n)?(?![a-z])|^l\d+a_|-l0a-",
    "mlp": r"(?<![a-z])mlp(?![a-z])|^l\d+m_",
    RESIDUAL: r"(?<![a-z])res(?:id(?:ual)?)?(?![a-z])|^l\d+r_",
}
"""Tried in this order on the id of an SAE, then on its path, release and repository."""

_ARCHITECTURES = {"jumprelu": r"^google/gemma-scope", "batchtopk": r"batch[-_]?top[-_]?k"}
"""The first that any of these names fits."""

ELBOWS: dict[tuple[str, int], dict[str, float]] = {
    ("gemma-2-2b", 5): {"": 200.0},
    ("gemma-2-2b", 12): {"": 200.0, "jumprelu": 250.0},
    ("Llama-3.2-1b", 7): {"": 200.0},
}
"""The L0s just above the rise of s_n^dec that are reported, for the residual stream after a layer
of a model, and for architectures that have one of their own. Of a range its low end, so that fewer
SAEs count as below."""

TYPICAL_ELBOW = 200.0
"""The lowest of the reported elbows, for models that have none of their own."""


def _measure(_: Run) -> dict[str, MeasuredTable]:
    """A row per SAE of sae_lens' directory; nothing is trained or downloaded."""
    from sparse_but_wrong.sae_lens_compat import get_pretrained_saes_directory

    caption = (
        f"The SAEs in the directory of sae_lens {version('sae-lens')}; l0_source says whether the "
        "directory or a name gives the L0, elbow is the reported one."
    )
    table = with_elbows(published_saes(get_pretrained_saes_directory()))
    return {"published_saes": MeasuredTable(table, caption)}


def published_saes(directory: Mapping[str, PretrainedSAELookup]) -> pd.DataFrame:
    """A row per published SAE.

    Several entries of the directory can name the same file (the "canonical" releases); they are
    one SAE, and the first entry whose L0 is known stands for it. Checkpoints of unfinished training
    are left out. What the names do not say is "" (site, architecture, l0_source) or missing (layer,
    L0); `entries` is how many entries name the SAE.
    """
    rows = []
    for release, lookup in directory.items():
        for sae_id, path in lookup.saes_map.items():
            if _CHECKPOINT.search(sae_id):
                continue
            names = [text.lower() for text in (sae_id, path, release, lookup.repo_id)]
            l0, source = _l0(lookup.expected_l0.get(sae_id), names)
            layers = (_LAYER.search(name) for name in names[:2])
            rows.append(
                {
                    "release": release,
                    "model": lookup.model.rsplit("/", 1)[-1],
                    "sae_id": sae_id,
                    "site": next((s for name in names if (s := _kind(_SITES, [name]))), ""),
                    "layer": next((int(found[1]) for found in layers if found), None),
                    "architecture": _kind(_ARCHITECTURES, names),
                    "l0": l0,
                    "l0_source": source,
                    "file": (lookup.repo_id, path),
                }
            )
    table = pd.DataFrame(rows).astype({"layer": "Int64", "l0": "float64"})
    files = table.groupby("file", sort=False)
    table["entries"], table["file"] = files["release"].transform("size"), files.ngroup()
    table["unknown"] = table["l0"].isna()
    table = table.sort_values(["file", "unknown"], kind="stable").drop_duplicates("file")
    return table.drop(columns=["file", "unknown"]).reset_index(drop=True)


def _l0(expected: float | int | None, names: Sequence[str]) -> tuple[float, str]:
    """The L0 and where it comes from; the directory has 0 for what it does not know."""
    if expected:
        return float(expected), "directory"
    for name in names:
        found = set(_L0_IN_NAME.findall(name))
        if len(found) == 1 and (l0 := float(found.pop())) > 0:
            return l0, "name"
    return math.nan, ""


def _kind(patterns: Mapping[str, str], names: Sequence[str]) -> str:
    """The first whose pattern is found in any of the names; "" if none is."""
    fits = (kind for kind, pattern in patterns.items() if any(re.search(pattern, n) for n in names))
    return next(fits, "")


def with_elbows(table: pd.DataFrame) -> pd.DataFrame:
    """A table of published SAEs with the column `elbow`, NaN where none is reported."""
    known = {(model.lower(), layer): of for (model, layer), of in ELBOWS.items()}
    column = []
    for row in table.to_dict("records"):
        of = known.get((row["model"].lower(), row["layer"])) if row["site"] == RESIDUAL else None
        column.append(of.get(row["architecture"], of[""]) if of else math.nan)
    return table.assign(elbow=column)


def judge_shares(run: Run) -> Verdict:
    """Whether most SAEs are below the elbow, wherever one is reported."""
    table = run.tables["published_saes"].frame
    checks, remarks = [], []
    for (model, layer), elbows in ELBOWS.items():
        where = f"{model} layer {layer}"
        is_there = (table["model"].str.lower() == model.lower()) & (table["layer"] == layer)
        rows = table.loc[is_there & table["elbow"].notna()]
        known = rows.loc[rows["l0"].notna()]
        unknown = len(rows) - len(known)
        if known.empty:
            has = f"{unknown} SAEs, none of known L0" if unknown else "no SAE"
            remarks.append(f"For {where} the directory has {has}, so its elbow cannot be used.")
            continue
        below = int((known["l0"] < known["elbow"]).sum())
        if not below > len(rows) / 2:
            remarks.append(
                f"For {where} this says nothing of the {unknown} SAEs whose L0 is not known: if "
                f"all of them are above the elbow, {_share(below, len(rows))} are below."
            )
        own = ", ".join(f"{value:g} for {kind}" for kind, value in elbows.items() if kind)
        more = f"; the L0 of {unknown} more is not known" if unknown else ""
        checks.append(
            check(
                f"more than half of the published residual-stream SAEs of {where} have an L0 "
                f"below its elbow, {elbows['']:g}{f' ({own})' if own else ''}",
                f"{_share(below, len(known))}; their median L0 is {known['l0'].median():g}{more}",
                below > len(known) / 2,
            )
        )
    sources = table["l0_source"].tolist()
    remarks.append(
        f"The directory has {len(table)} different SAEs and transcoders under "
        f"{table['entries'].sum()} names, checkpoints of training aside. The L0 of "
        f"{sources.count('directory')} stands in it and that of {sources.count('name')} in a name; "
        f"that of {sources.count('')} is not known. L0s are as published: some are targets of the "
        "training, not measured."
    )
    residual = table.loc[(table["site"] == RESIDUAL) & table["l0"].notna()]
    if len(residual):
        below = int((residual["l0"] < TYPICAL_ELBOW).sum())
        remarks.append(
            f"Of the residual-stream SAEs of all models, {_share(below, len(residual))} are below "
            f"{TYPICAL_ELBOW:g}, and their median L0 is {residual['l0'].median():g}. No elbow is "
            "known for most of these models."
        )
    return Verdict(tuple(checks), tuple(remarks))


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})"


def _draw(run: Run) -> Figures:
    table = run.tables["published_saes"].frame
    residual = table.loc[(table["site"] == RESIDUAL) & table["l0"].notna()]
    if residual.empty:
        return {}
    caption = (
        "L0 of published residual-stream SAEs: a dot per SAE, a bar at each model's median. "
        "Orange: SAEs of a model and layer for which an elbow is reported."
    )
    return {"overview": (l0_by_model(residual, TYPICAL_ELBOW), caption)}


ANALYSES = {"published-l0": Analysis(judge_shares, _draw, _measure)}
