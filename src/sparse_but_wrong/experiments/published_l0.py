"""Where the L0s of published SAEs lie, beside the L0s that the paper's metric points to.

Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, for the elbows; the pretrained directory of
sae_lens for the SAEs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

from sparse_but_wrong.experiments.analysis import Analysis, MeasuredTable, NamedFigure, Results
from sparse_but_wrong.experiments.published_saes import RESIDUAL, published_saes
from sparse_but_wrong.experiments.verdict import Check, Verdict
from sparse_but_wrong.runs.spec import ExperimentSpec

if TYPE_CHECKING:
    import pandas as pd

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

    def check(self, spec: ExperimentSpec) -> None:
        """As the base class: there is nothing to train.

        Raises:
            ValueError: the spec has worlds or SAEs.
        """
        if spec.worlds or spec.saes:
            raise ValueError(
                f"the analysis {spec.analysis!r} is about published SAEs, but the spec "
                f"{spec.name!r} has {len(spec.worlds)} worlds and {len(spec.saes)} SAEs; it can "
                "have none."
            )

    def measure(self, results: Results) -> dict[str, MeasuredTable]:
        """As the base class: a row per published SAE."""
        del results
        from sparse_but_wrong.sae_lens_compat import get_pretrained_saes_directory

        table = with_elbows(published_saes(get_pretrained_saes_directory()))
        return {
            "published_saes": MeasuredTable(
                table,
                f"The SAEs in the directory of sae_lens {version('sae-lens')}; l0_source says "
                "whether the directory or a name gives the L0, elbow is the reported one.",
            )
        }

    def judge(self, results: Results) -> Verdict:
        """As the base class."""
        return judge_shares(results.tables["published_saes"].frame)

    def draw(self, results: Results) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.distributions import l0_by_model

        table = results.tables["published_saes"].frame
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
