"""Where the L0s of published SAEs lie, beside the L0s that the paper's metric points to.

Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, for the elbows; the pretrained directory of
sae_lens for the SAEs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

from sparse_but_wrong.experiments.analysis import Analysis, MeasuredTable, NamedFigure, Run
from sparse_but_wrong.experiments.verdict import Check, Verdict
from sparse_but_wrong.runs.spec import ExperimentSpec

if TYPE_CHECKING:
    import pandas as pd

    from sparse_but_wrong.sae_lens_compat import PretrainedSAELookup

RESIDUAL = "residual"

# "average_l0_71", "l0-40", "k_64", "topk_64". Not "l0_big", nor "l0r_8x" (layer 0, residual), nor
# "width_16k_…" and "v5_32k_layer_0", where the k is a thousand.
_L0_IN_NAME = re.compile(r"(?<![a-z0-9])(?:l0|(?:(?:batch)?top_?)?k)[_=-](\d+)(?![a-z0-9.])")

# Of the training of one SAE many are kept; they are no SAEs that anyone offers for use.
_CHECKPOINT = re.compile(r"_step_\d+$")

_LAYER = re.compile(r"(?:layer[_.]?|blocks\.|^l)(\d+)(?![0-9])")

_SITES = (
    ("transcoder", re.compile(r"transcoder|(?<![a-z])clt(?![a-z])")),
    ("embedding", re.compile(r"embedding")),
    ("attention", re.compile(r"hook_z|(?<![a-z])att(?:n)?(?![a-z])|^l\d+a_|-l0a-")),
    ("mlp", re.compile(r"(?<![a-z])mlp(?![a-z])|^l\d+m_")),
    (RESIDUAL, re.compile(r"(?<![a-z])res(?:id(?:ual)?)?(?![a-z])|^l\d+r_")),
)
"""Tried in this order on the id of an SAE, then on its path, release and repository."""

_ARCHITECTURES = (
    ("jumprelu", re.compile(r"^google/gemma-scope")),
    ("batchtopk", re.compile(r"batch[-_]?top[-_]?k")),
)

TYPICAL_ELBOW = 200.0
"""The lowest of the reported elbows, for models that have none of their own."""

PUBLISHED_L0 = ExperimentSpec(
    name="published-l0",
    title="The L0s of published SAEs",
    claim="most published SAEs have an L0 below the one that the decoder projection points to",
    analysis="published-l0",
)


@dataclass(frozen=True)
class Elbow:
    """The L0 just above the rise of s_n^dec, for the residual stream after one layer."""

    model: str
    layer: int

    low: float
    """The low end of what is reported, over all architectures."""

    by_architecture: Mapping[str, float] = field(default_factory=dict)
    """The low end for an architecture whose own is higher."""

    def of(self, architecture: str) -> float:
        """The elbow for an architecture."""
        return self.by_architecture.get(architecture, self.low)


ELBOWS = (
    Elbow("gemma-2-2b", 5, 200.0),
    Elbow("gemma-2-2b", 12, 200.0, {"jumprelu": 250.0}),
    Elbow("Llama-3.2-1b", 7, 200.0),
)
"""Those that are reported. Of a range its low end, so that fewer SAEs count as below."""


class PublishedL0(Analysis):
    """Reads sae_lens' directory of pretrained SAEs; nothing is trained or downloaded."""

    def measure(self, run: Run) -> dict[str, MeasuredTable]:
        """As the base class: a row per published SAE."""
        del run
        from sparse_but_wrong.sae_lens_compat import get_pretrained_saes_directory

        table = with_elbows(published_saes(get_pretrained_saes_directory()))
        return {
            "published_saes": MeasuredTable(
                table,
                f"The SAEs in the directory of sae_lens {version('sae-lens')}; l0_source says "
                "whether the directory or a name gives the L0, elbow is the reported one.",
            )
        }

    def judge(self, run: Run) -> Verdict:
        """As the base class."""
        return judge_shares(run.tables["published_saes"].frame)

    def draw(self, run: Run) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.distributions import l0_by_model

        table = run.tables["published_saes"].frame
        residual = table.loc[(table["site"] == RESIDUAL) & table["l0"].notna()]
        if residual.empty:
            return []
        return [
            NamedFigure(
                "overview",
                l0_by_model(residual, TYPICAL_ELBOW),
                "L0 of published residual-stream SAEs: a dot per SAE, a bar at each model's "
                "median. Orange: SAEs of a model and layer for which an elbow is reported.",
            )
        ]


def with_elbows(table: pd.DataFrame) -> pd.DataFrame:
    """A table of published SAEs with the column `elbow`, NaN where none is reported."""
    elbows = {(e.model.lower(), e.layer): e for e in ELBOWS}
    column = []
    for model, site, layer, architecture in zip(
        table["model"], table["site"], table["layer"], table["architecture"], strict=True
    ):
        is_known = site == RESIDUAL and (model.lower(), layer) in elbows
        column.append(elbows[model.lower(), layer].of(architecture) if is_known else float("nan"))
    return table.assign(elbow=column)


def judge_shares(table: pd.DataFrame) -> Verdict:
    """Whether most SAEs are below the elbow, wherever one is reported.

    Args:
        table: of published SAEs, with their elbows.
    """
    checks, remarks = [], []
    for elbow in ELBOWS:
        where = f"{elbow.model} layer {elbow.layer}"
        rows = table.loc[
            table["elbow"].notna()
            & (table["model"].str.lower() == elbow.model.lower())
            & (table["layer"] == elbow.layer)
        ]
        known = rows.loc[rows["l0"].notna()]
        unknown = len(rows) - len(known)
        if known.empty:
            has = f"{unknown} SAEs, none of known L0" if unknown else "no SAE"
            remarks.append(f"For {where} the directory has {has}, so its elbow cannot be used.")
            continue
        bounds = sorted(known["elbow"].unique())
        below = int((known["l0"] < known["elbow"]).sum())
        if not below > len(rows) / 2:
            remarks.append(
                f"For {where} this says nothing of the {unknown} SAEs whose L0 is not known: if "
                f"all of them are above the elbow, {_share(below, len(rows))} are below."
            )
        checks.append(
            Check(
                f"more than half of the published residual-stream SAEs of {where} have an L0 "
                f"below its elbow, {_bounds(elbow, bounds)}",
                f"{_share(below, len(known))}; their median L0 is {known['l0'].median():g}"
                + (f"; the L0 of {unknown} more is not known" if unknown else ""),
                below > len(known) / 2,
            )
        )
    return Verdict(tuple(checks), (*remarks, *_overall(table)))


def _overall(table: pd.DataFrame) -> list[str]:
    """What holds for all models, against an elbow that was measured on three layers only."""
    unknown = table["l0"].isna()
    sources, entries = table["l0_source"].tolist(), sum(table["entries"].tolist())
    lines = [
        f"The directory has {len(table)} different SAEs and transcoders under {entries} names, "
        f"checkpoints of training aside. The L0 of {sources.count('directory')} stands in it and "
        f"that of {sources.count('name')} in a name; that of {sources.count('')} is not known. "
        "L0s are as published: some are targets of the training, not measured."
    ]
    residual = table.loc[(table["site"] == RESIDUAL) & ~unknown]
    if len(residual):
        below = int((residual["l0"] < TYPICAL_ELBOW).sum())
        lines.append(
            f"Of the residual-stream SAEs of all models, {_share(below, len(residual))} are below "
            f"{TYPICAL_ELBOW:g}, and their median L0 is {residual['l0'].median():g}. No elbow is "
            "known for most of these models."
        )
    return lines


def _bounds(elbow: Elbow, bounds: list[float]) -> str:
    if len(bounds) == 1:
        return f"{bounds[0]:g}"
    own = ", ".join(f"{value:g} for {kind}" for kind, value in elbow.by_architecture.items())
    return f"{elbow.low:g} ({own})"


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.0%})"


def published_saes(directory: Mapping[str, PretrainedSAELookup]) -> pd.DataFrame:
    """A row per published SAE.

    Several entries of the directory can name the same file (the "canonical" releases); they are
    one SAE, and the first entry whose L0 is known stands for it. Checkpoints of unfinished training
    are left out.

    Args:
        directory: by release, as `get_pretrained_saes_directory` gives it.
    Returns:
        columns `release`, `model` (without the organisation), `sae_id`, `site` ("" where the names
        do not say), `layer` (missing likewise), `architecture` ("" likewise), `l0` (NaN where
        nothing says), `l0_source` ("directory", "name" or "") and `entries`, how many entries name
        it.
    """
    import pandas as pd

    rows: dict[tuple[str, str], dict[str, object]] = {}
    for release, lookup in directory.items():
        for sae_id, path in lookup.saes_map.items():
            if _CHECKPOINT.search(sae_id):
                continue
            names = [text.lower() for text in (sae_id, path, release, lookup.repo_id)]
            l0, source = _l0(lookup.expected_l0.get(sae_id), names)
            row = {
                "release": release,
                "model": lookup.model.rsplit("/", 1)[-1],
                "sae_id": sae_id,
                "site": next(filter(None, map(_site, names)), ""),
                "layer": next(
                    (layer for layer in map(_layer, names[:2]) if layer is not None), None
                ),
                "architecture": _architecture(names),
                "l0": l0,
                "l0_source": source,
                "entries": 1,
            }
            known = rows.setdefault((lookup.repo_id, path), row)
            if known is not row:
                entries = int(str(known["entries"])) + 1
                better = row if source and not known["l0_source"] else known
                rows[lookup.repo_id, path] = {**better, "entries": entries}
    return pd.DataFrame(list(rows.values())).astype({"layer": "Int64", "l0": "float64"})


def _l0(expected: float | int | None, names: list[str]) -> tuple[float, str]:
    """The L0 and where it comes from; the directory has 0 for what it does not know."""
    if expected:
        return float(expected), "directory"
    for name in names:
        found = _L0_IN_NAME.findall(name)
        if len(set(found)) == 1 and int(found[0]) > 0:
            return float(found[0]), "name"
    return float("nan"), ""


def _layer(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def _site(name: str) -> str:
    return next((site for site, pattern in _SITES if pattern.search(name)), "")


def _architecture(names: list[str]) -> str:
    return next((kind for kind, pattern in _ARCHITECTURES if any(map(pattern.search, names))), "")
