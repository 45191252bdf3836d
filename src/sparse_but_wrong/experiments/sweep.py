"""Sweeps over L0: where is s_n^dec smallest? What users' own specs are analysed by, and JumpReLU.

Source: the JumpReLU notebook of Chanin & Garriga-Alonso 2025, arXiv:2508.16560.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparse_but_wrong.experiments.analysis import Analysis, NamedFigure, Run
from sparse_but_wrong.experiments.findings import (
    NEAR,
    NOISE,
    find_projection_minima,
    in_words,
    ranges,
)
from sparse_but_wrong.experiments.verdict import Check, Verdict
from sparse_but_wrong.experiments.worlds import BUDGET, FIFTY_FEATURES, N_FEATURES
from sparse_but_wrong.runs.spec import ONLY_WORLD, ActivationsSpec, ExperimentSpec, SAESpec

if TYPE_CHECKING:
    import pandas as pd

RECOVERED = 0.99
"""Mean matched cosine above which an SAE's latents are the true features."""

PUBLISHED_COEFFICIENTS = (0.05, 0.07, 0.09, 0.1, 0.3, 0.5, 0.75, 1.0, 1.2, 1.3, 1.4, 1.5)
# sae_lens trains the threshold itself since 2026, not its logarithm, and then the published
# coefficients reach down to L0 ≈ 10 only. These reach the side below the truth.
ADDED_BELOW = (1.75, 2.0, 2.5, 3.0, 4.0, 5.0)
# Near the truth about one run in three lands in a poor minimum, and the published grid has two
# coefficients there. These make the curve's bottom visible.
ADDED_NEAR = (0.6, 0.67, 0.85, 0.92)


def _jumprelu(coefficient: float, added: bool) -> SAESpec:
    return SAESpec(
        sae_id=f"l0_coefficient_{coefficient:g}",
        architecture="jumprelu",
        config={
            "d_sae": N_FEATURES,
            "l0_coefficient": coefficient,
            "jumprelu_bandwidth": 2.0,
            "jumprelu_init_threshold": 0.1,
            "jumprelu_sparsity_loss_mode": "tanh",
            "l0_warm_up_steps": 10_000,
            "normalize_activations": "expected_average_only_in",
        },
        added=added,
        factors={"l0_coefficient": coefficient},
    )


JUMPRELU = ExperimentSpec(
    name="jumprelu",
    title="JumpReLU SAEs on the 50-feature world, over a sweep of L0 coefficients",
    claim="s_n^dec is smallest at the true L0 for JumpReLU SAEs (n a little above it)",
    worlds={ONLY_WORLD: FIFTY_FEATURES},
    saes=(
        *(_jumprelu(coefficient, added=False) for coefficient in PUBLISHED_COEFFICIENTS),
        *(_jumprelu(coefficient, added=True) for coefficient in (*ADDED_NEAR, *ADDED_BELOW)),
    ),
    training=BUDGET,
    projection_n=tuple(range(12, 26)),
    analysis="jumprelu",
)


class Sweep(Analysis):
    """What any sweep of SAEs on one toy world is analysed for."""

    def check(self, spec: ExperimentSpec) -> None:
        """As the base class: a sweep has one toy world, and SAEs."""
        _require_sweep(spec)
        spec.toy_world(*spec.worlds)

    def judge(self, run: Run) -> Verdict:
        """As the base class."""
        return judge_projections(
            run.table, run.projections, run.spec.projection_n, run.true_l0[run.only_world]
        )

    def draw(self, run: Run) -> list[NamedFigure]:
        """As the base class."""
        true_l0, ns = run.true_l0[run.only_world], run.spec.projection_n
        overview = [draw_overview(run, true_l0)] if ns else []
        return [*overview, *draw_projections(run, true_l0), draw_curves(run)]


class Activations(Analysis):
    """A sweep on stored activations: nobody knows the right L0, so nothing is judged."""

    def check(self, spec: ExperimentSpec) -> None:
        """As the base class: one world of stored activations, and SAEs."""
        _require_sweep(spec)
        for name, world in spec.worlds.items():
            if not isinstance(world, ActivationsSpec):
                raise ValueError(
                    f"the analysis {spec.analysis!r} is for stored activations, but {name!r} is a "
                    "toy world; write analysis: sweep."
                )

    def judge(self, run: Run) -> Verdict:
        """As the base class: there is nothing to judge."""
        from sparse_but_wrong.metrics.findings import remarks

        first = (
            "Nobody knows the features of these activations, so nothing is judged. `sbw find-l0 "
            f"{run.folder.path}` says what the sweep tells about the right L0."
        )
        return Verdict(remarks=(first, *remarks(run.evaluations)))

    def draw(self, run: Run) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.distributions import plot_evaluations
        from sparse_but_wrong.report.evaluation import CAPTION

        overview = NamedFigure("overview", plot_evaluations(run.evaluations), CAPTION)
        return [overview, *draw_projections(run, None), draw_curves(run)]


class JumpReLU(Sweep):
    """A sweep, drawn as the notebook draws it, under the notebook's names."""

    def draw(self, run: Run) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.heatmaps import correlation_heatmap, firing_probabilities
        from sparse_but_wrong.figures.sweep import l0_vs_coefficient

        true_l0, world = run.true_l0[run.only_world], run.world(run.only_world)
        setup = "toy_setup_jumprelu/toy_model"
        assert world.correlation_matrix is not None
        return [
            draw_overview(run, true_l0),
            NamedFigure(
                f"{setup}_feature_firing_probabilities",
                firing_probabilities(world.firing_probabilities),
            ),
            NamedFigure(
                f"{setup}_correlation_matrix", correlation_heatmap(world.correlation_matrix)
            ),
            *draw_projections(run, true_l0, "dpn_jumprelu/dp_"),
            NamedFigure(
                "toy_l0_jumprelu/l0_vs_l0_coeff_jumprelu", l0_vs_coefficient(run.table, true_l0)
            ),
            draw_curves(run),
        ]


def _require_sweep(spec: ExperimentSpec) -> None:
    if not spec.saes:
        raise ValueError(f"the spec {spec.name!r} has no SAEs; its analysis needs at least one.")
    if len(spec.worlds) != 1:
        raise ValueError(
            f"the analysis {spec.analysis!r} looks at one world, but the spec {spec.name!r} has "
            f"{len(spec.worlds)}: {', '.join(spec.worlds)}."
        )


def judge_projections(
    table: pd.DataFrame, projections: pd.DataFrame, ns: Sequence[int], true_l0: float
) -> Verdict:
    """Whether s_n^dec is smallest at the true L0, for every n.

    Args:
        table: a row per SAE, or per setting where several seeds were averaged.
        projections: s_n^dec of the same, a column per n.
        ns: which n; those from half the number of latents on say nothing.
        true_l0: of the world.
    """
    findings = find_projection_minima(table, projections, ns)
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


def draw_curves(run: Run) -> NamedFigure:
    """The training curves, with the true L0 where there is one."""
    from sparse_but_wrong.figures.training import training_curves

    true_l0 = next(iter(run.true_l0.values())) if len(run.true_l0) == 1 else None
    return NamedFigure("training_curves", training_curves(run.curves, true_l0))


def draw_projections(
    run: Run, true_l0: float | None, prefix: str = "projections/s_"
) -> list[NamedFigure]:
    """s_n^dec against L0, a figure for every n of the spec."""
    from sparse_but_wrong.figures.sweep import projection_vs_l0

    return [
        NamedFigure(f"{prefix}{n}", projection_vs_l0(run.table, run.projections, n, true_l0))
        for n in run.spec.projection_n
    ]


def draw_overview(run: Run, true_l0: float) -> NamedFigure:
    """The finding in one figure, which says in words what this table shows, and only that."""
    from sparse_but_wrong.figures.overview import CLIFF, TOO_HIGH, TOO_LOW, overview

    table, shown = run.table, spread_out(run.spec.projection_n)
    findings = find_projection_minima(table, run.projections, shown)
    shapes = [finding.shape(true_l0) for finding in findings]
    near = table.loc[(table["l0"] - true_l0).abs() <= NEAR, "mcc"]
    figure = overview(
        table,
        run.projections,
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
    return tuple(ns[:: max(1, -(-len(ns) // at_most))])
