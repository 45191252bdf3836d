"""The analysis of a sweep on stored activations, of which nobody knows the right L0."""

from __future__ import annotations

from sparse_but_wrong.experiments.analysis import Analysis, NamedFigure, Results
from sparse_but_wrong.experiments.verdict import Verdict
from sparse_but_wrong.runs.spec import ActivationsSpec, ExperimentSpec


class UnknownL0(Analysis):
    """Measures and draws; there is no truth to judge by."""

    def check(self, spec: ExperimentSpec) -> None:
        """As the base class: one world of stored activations, and SAEs.

        Raises:
            ValueError: what is missing in the spec.
        """
        if not spec.saes:
            raise ValueError(
                f"the spec {spec.name!r} has no SAEs; its analysis needs at least one."
            )
        if len(spec.worlds) != 1:
            raise ValueError(
                f"the analysis {spec.analysis!r} looks at one world, but the spec {spec.name!r} "
                f"has {len(spec.worlds)}: {', '.join(spec.worlds)}."
            )
        for name, world in spec.worlds.items():
            if not isinstance(world, ActivationsSpec):
                raise ValueError(
                    f"the analysis {spec.analysis!r} is for stored activations, but {name!r} is a "
                    "toy world; for those write analysis: sweep."
                )

    def judge(self, results: Results) -> Verdict:
        """As the base class: there is nothing to judge."""
        from sparse_but_wrong.report.diagnosis import remarks

        return Verdict(
            remarks=(
                "Nobody knows the features of these activations, so nothing is judged. `sbw "
                f"find-l0 {results.folder.path}` says what the sweep tells of the right L0.",
                *remarks(results.scores),
            )
        )

    def draw(self, results: Results) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.distributions import stream_scores
        from sparse_but_wrong.figures.sweep import projection_vs_l0
        from sparse_but_wrong.figures.training import training_curves
        from sparse_but_wrong.report.diagnosis import CAPTION

        figures = [
            NamedFigure(
                f"projections/s_{n}", projection_vs_l0(results.table, results.projections, n)
            )
            for n in results.spec.projection_n
        ]
        return [
            NamedFigure("overview", stream_scores(results.scores), CAPTION),
            *figures,
            NamedFigure("training_curves", training_curves(results.curves)),
        ]
