"""The analysis of a sweep over L0 on one world: where is s_n^dec smallest?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparse_but_wrong.experiments.analysis import Analysis, NamedFigure, Results
from sparse_but_wrong.experiments.findings import (
    NEAR,
    NOISE,
    find_projection_minima,
    in_words,
    ranges,
)
from sparse_but_wrong.experiments.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd

    from sparse_but_wrong.runs.spec import ExperimentSpec

RECOVERED = 0.99
"""Mean matched cosine above which an SAE's latents are the true features."""


class Sweep(Analysis):
    """What any sweep of SAEs on one world is looked at for; specs of users' own use this."""

    def check(self, spec: ExperimentSpec) -> None:
        """As the base class: a sweep has one world, and SAEs."""
        require_one_world(spec)

    def judge(self, results: Results) -> Verdict:
        """As the base class."""
        return judge_projections(
            results.table, results.spec.projection_n, results.true_l0[results.only_world]
        )

    def draw(self, results: Results) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.sweep import projection_vs_l0
        from sparse_but_wrong.figures.training import training_curves

        true_l0 = results.true_l0[results.only_world]
        ns = results.spec.projection_n
        table, projections = results.table, results.projections
        figures = [
            NamedFigure(f"projections/s_{n}", projection_vs_l0(table, projections, n, true_l0))
            for n in ns
        ]
        if ns:
            figures.insert(0, draw_overview(table, projections, ns, true_l0))
        return [*figures, NamedFigure("training_curves", training_curves(results.curves, true_l0))]


def require_one_world(spec: ExperimentSpec) -> None:
    """Refuse a spec without SAEs, with several worlds, or with one of stored activations.

    Raises:
        ValueError: what is missing.
    """
    if not spec.saes:
        raise ValueError(f"the spec {spec.name!r} has no SAEs; its analysis needs at least one.")
    if len(spec.worlds) != 1:
        raise ValueError(
            f"the analysis {spec.analysis!r} looks at one world, but the spec {spec.name!r} has "
            f"{len(spec.worlds)}: {', '.join(spec.worlds)}."
        )
    spec.toy_world(*spec.worlds)


def judge_projections(table: pd.DataFrame, ns: Sequence[int], true_l0: float) -> Verdict:
    """Whether s_n^dec is smallest at the true L0, for every n.

    Args:
        table: a row per SAE, or per setting where several seeds were averaged.
        ns: which n; those from half the number of latents on say nothing.
        true_l0: of the world.
    """
    findings = find_projection_minima(table, ns)
    claim = (
        f"for n = {ranges([f.n for f in findings])} s_n^dec is smallest within {NEAR:g} of the "
        f"true L0 {true_l0:.2f} (what is less than {NOISE:g} above the smallest counts as smallest)"
    )
    if not findings:
        return Verdict((Check("s_n^dec is smallest at the true L0", "no n to look at", None),))
    away = [f for f in findings if f.shape(true_l0) == "away"]
    by_l0: dict[float, list[int]] = {}
    for finding in findings:
        by_l0.setdefault(finding.l0_at_minimum, []).append(finding.n)
    where = "; ".join(f"at L0 {l0:.2f} for n = {ranges(ns)}" for l0, ns in sorted(by_l0.items()))
    count = f"{len(findings) - len(away)} of {len(findings)} n"
    # Without SAEs on both sides there is nothing that the smallest could be smaller than.
    holds = None if findings[0].misses_a_side(true_l0) else not away
    return Verdict(
        (Check(claim, f"{count}; the smallest itself is {where}", holds),),
        tuple(in_words(findings, true_l0)),
    )


def draw_overview(
    table: pd.DataFrame, projections: pd.DataFrame, ns: Sequence[int], true_l0: float
) -> NamedFigure:
    """The finding in one figure, which says in words what this table shows, and only that."""
    from sparse_but_wrong.figures.overview import CLIFF, TOO_HIGH, TOO_LOW, overview

    shown = spread_out(ns)
    shapes = [finding.shape(true_l0) for finding in find_projection_minima(table, shown)]
    near = table.loc[(table["l0"] - true_l0).abs() <= NEAR, "mcc"]
    figure = overview(
        table,
        projections,
        true_l0,
        ns=shown,
        too_low=TOO_LOW if "away" not in shapes else "",
        too_high=TOO_HIGH if "flat" in shapes else "",
        cliff=CLIFF if max(near, default=0.0) > RECOVERED else "",
    )
    return NamedFigure(
        "overview",
        figure,
        "Left: s_n against L0. Middle: all projections of SAEs below, at and above the true L0. "
        "Right: decoder similarity, and how well the true features are recovered.",
    )


def spread_out(ns: Sequence[int], at_most: int = 4) -> tuple[int, ...]:
    """Up to four of some n, spread evenly, the first among them."""
    step = max(1, -(-len(ns) // at_most))
    return tuple(ns[::step])


def mean_over_seeds(table: pd.DataFrame, factor: str) -> pd.DataFrame:
    """A row per value of a factor: the mean of every number over the SAEs that have it.

    Args:
        table: a row per SAE.
        factor: the column that tells settings apart.
    """
    import pandas as pd

    groups = table.groupby(factor, sort=True)
    numbers = [
        name
        for name in table.columns
        if name not in (factor, "seed", "added") and pd.api.types.is_numeric_dtype(table[name])
    ]
    mean = pd.DataFrame({name: groups[name].mean() for name in numbers})
    return mean.assign(added=groups["added"].all()).reset_index()
