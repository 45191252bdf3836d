"""The transition experiment: k lowered to the true L0 in training, or raised to it.

Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sparse_but_wrong.experiments.analysis import Analysis, NamedFigure, Results
from sparse_but_wrong.experiments.findings import NEAR
from sparse_but_wrong.experiments.requirements import require_numbers, true_l0_of
from sparse_but_wrong.experiments.sweep import RECOVERED, require_one_world
from sparse_but_wrong.experiments.verdict import Check, Verdict
from sparse_but_wrong.experiments.worlds import BUDGET, FIFTY_FEATURES, batchtopk
from sparse_but_wrong.metrics.recovery import matched_cosines
from sparse_but_wrong.runs.spec import ONLY_WORLD, ExperimentSpec, SAESpec
from sparse_but_wrong.training.controls import KTransition

if TYPE_CHECKING:
    import pandas as pd

RIGHT_K = 11
FROM_ABOVE, FROM_BELOW = 20, 2
N_SEEDS = 5

# 4,649 steps of the run are left once k is where it ends.
START_STEP, DURATION_STEPS = 2_000, 8_000


def _sae(schedule: str, initial_k: int, seed: int) -> SAESpec:
    return SAESpec(
        sae_id=f"{schedule}_seed_{seed}",
        architecture="batchtopk",
        config=batchtopk(RIGHT_K),
        factors={"schedule": schedule, "initial_k": initial_k, "seed": seed},
        control=None
        if initial_k == RIGHT_K
        else KTransition(float(initial_k), START_STEP, DURATION_STEPS),
    )


TRANSITION = ExperimentSpec(
    name="transition",
    title="BatchTopK SAEs whose k moves to the true L0 in training, from above and from below",
    claim="lowering k to the true L0 recovers the features; raising it to the true L0 does not",
    worlds={ONLY_WORLD: FIFTY_FEATURES},
    saes=tuple(
        _sae(schedule, initial_k, seed)
        for schedule, initial_k in (
            ("down", FROM_ABOVE),
            ("up", FROM_BELOW),
            ("constant", RIGHT_K),
        )
        for seed in range(N_SEEDS)
    ),
    training=BUDGET,
    analysis="transition",
)

SCHEDULES = ("down", "up", "constant")


class Transition(Analysis):
    """SAEs that end at the same k by different ways, each against the true features."""

    def check(self, spec: ExperimentSpec) -> None:
        """As the base class: one world, and SAEs of each schedule that take k to its true L0 so.

        Raises:
            ValueError: what is missing in the spec.
        """
        require_one_world(spec)
        require_numbers(spec, ["seed"])
        for sae in spec.saes:
            schedule = _schedule_of(sae)
            if sae.factors.get("schedule") != schedule:
                raise ValueError(
                    f"SAE {sae.sae_id!r} has the factor schedule = "
                    f"{sae.factors.get('schedule')!r}, but by its control its k goes "
                    f"{schedule!r}; the analysis {spec.analysis!r} tells SAEs apart by it."
                )
        for schedule in SCHEDULES:
            if not _of_schedule(spec, schedule):
                raise ValueError(
                    f"the analysis {spec.analysis!r} needs an SAE whose factor schedule is "
                    f"{schedule!r}; the spec {spec.name!r} has none."
                )
        ends = sorted({float(sae.config.get("k", 0)) for sae in spec.saes})
        if len(ends) > 1:
            raise ValueError(
                f"the analysis {spec.analysis!r} compares SAEs that end at the same k, but those "
                f"of the spec {spec.name!r} end at {', '.join(f'{k:g}' for k in ends)}."
            )
        (world,) = spec.worlds
        truth = true_l0_of(spec, world)
        if abs(ends[0] - truth) > NEAR:
            raise ValueError(
                f"the analysis {spec.analysis!r} is about SAEs that end within {NEAR:g} of the "
                f"true L0 ({truth:.2f}), but those of the spec {spec.name!r} end at k = "
                f"{ends[0]:g}."
            )

    def judge(self, results: Results) -> Verdict:
        """As the base class."""
        verdict = judge_transitions(results.table)
        still = loss_at_end(results.curves, results.table)
        return Verdict(verdict.checks, (*verdict.remarks, *still))

    def draw(self, results: Results) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.heatmaps import decoder_cosines
        from sparse_but_wrong.figures.training import training_curves, transitions

        true_l0 = results.true_l0[results.only_world]
        directions = results.world(results.only_world).directions
        labels, panels = {}, []
        for schedule in SCHEDULES:
            first = _of_schedule(results.spec, schedule)[0]
            end = f"{first.config['k']:g}"
            labels[schedule] = f"always {end}"
            if isinstance(first.control, KTransition):
                labels[schedule] = f"{first.control.initial_k:g} to {end}"
            matrix = matched_cosines(results.sae(first.sae_id), directions).double().numpy()
            if np.isfinite(matrix).all():
                panels.append((f"$k$: {labels[schedule]}", matrix))
        figures = [
            NamedFigure(
                "overview",
                transitions(results.curves, results.table, labels, true_l0, RECOVERED),
                "Left: k over training. Right: mean cosine of latents with the true features they "
                "are matched to at the end, a dot per seed.",
            )
        ]
        if panels:
            figures.append(
                NamedFigure(
                    "decoders",
                    decoder_cosines(panels),
                    "Cosine of every latent with every true feature at the end, of the first SAE "
                    "of each schedule.",
                )
            )
        curves = training_curves(results.curves, true_l0)
        return [*figures, NamedFigure("training_curves", curves)]


def judge_transitions(table: pd.DataFrame) -> Verdict:
    """Whether SAEs whose k went down recovered the features, and those whose k went up did not.

    Judged by the median seed, because single runs now and then land in a poor minimum. A run that
    diverged says nothing of the way its k went: medians are of the others, and not judged.

    Args:
        table: a row per SAE with columns `sae_id`, `schedule` and `mcc`.
    """
    of = {name: table.loc[table["schedule"] == name] for name in SCHEDULES}
    finite = {name: rows.loc[np.isfinite(rows["mcc"].to_numpy(float))] for name, rows in of.items()}
    median = {
        name: float(rows["mcc"].median()) if len(rows) else math.nan
        for name, rows in finite.items()
    }
    whole = {name: len(finite[name]) == len(of[name]) > 0 for name in SCHEDULES}
    checks = (
        Check(
            f"lowered to the right k, the median SAE recovers the features: mean matched cosine > "
            f"{RECOVERED:g}",
            _in_words(of["down"], median["down"]),
            median["down"] > RECOVERED if whole["down"] else None,
        ),
        Check(
            f"raised to the right k, the median SAE does not: mean matched cosine < {RECOVERED:g}",
            _in_words(of["up"], median["up"]),
            median["up"] < RECOVERED if whole["up"] else None,
        ),
    )
    constant = _in_words(of["constant"], median["constant"])
    remarks = [f"With the right k from the start: {constant}."]
    gap = median["down"] - median["up"]
    if math.isfinite(gap):
        remarks.append(
            f"The median of those lowered is {abs(gap):.3f} {'above' if gap >= 0 else 'below'} "
            "that of those raised."
        )
    return Verdict(checks, tuple(remarks))


def loss_at_end(curves: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """How the loss still moved when training ended, in a sentence; none of a short log.

    Args:
        curves: a row per SAE and logged step with columns `sae_id`, `step` and `mse_loss`.
        table: a row per SAE with columns `sae_id` and `schedule`.
    """
    steps = curves["step"]
    last = curves.loc[steps > 0.9 * steps.max()]
    before = curves.loc[(steps > 0.8 * steps.max()) & (steps <= 0.9 * steps.max())]
    if last.empty or before.empty:
        return []
    parts = []
    for schedule in SCHEDULES:
        ids = table.loc[table["schedule"] == schedule, "sae_id"]
        earlier, later = (
            float(rows.loc[rows["sae_id"].isin(ids)].groupby("sae_id")["mse_loss"].mean().median())
            for rows in (before, last)
        )
        parts.append(f"{earlier:.3g} → {later:.3g} ({schedule})")
    return [
        "From training's last tenth but one to its last, the MSE of the median SAE (of the scaled "
        f"activations) went {', '.join(parts)}: where it still falls, training had not settled, "
        "and a longer one may end elsewhere."
    ]


def _in_words(rows: pd.DataFrame, median: float) -> str:
    is_finite = np.isfinite(rows["mcc"].to_numpy(float))
    finite = rows.loc[is_finite, "mcc"]
    diverged = ", ".join(str(sae_id) for sae_id in rows.loc[~is_finite, "sae_id"])
    if finite.empty:
        return f"all diverged ({diverged})" if diverged else "there is no such SAE"
    each = ", ".join(f"{value:.3f}" for value in finite)
    count = int((finite > RECOVERED).sum())
    words = f"median {median:.3f}, {count} of {len(finite)} above {RECOVERED:g} ({each})"
    return f"{words}; diverged and left out: {diverged}" if diverged else words


def _schedule_of(sae: SAESpec) -> str:
    if not isinstance(sae.control, KTransition):
        return "constant"
    return "down" if sae.control.initial_k > float(sae.config.get("k", 0)) else "up"


def _of_schedule(spec: ExperimentSpec, schedule: str) -> list[SAESpec]:
    return [sae for sae in spec.saes if sae.factors.get("schedule") == schedule]
