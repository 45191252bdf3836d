"""The BatchTopK experiment: every k from 1 to 25, five seeds each, on the 50-feature world.

Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sparse_but_wrong.experiments.analysis import Analysis, NamedFigure, Run
from sparse_but_wrong.experiments.findings import NEAR
from sparse_but_wrong.experiments.sweep import (
    RECOVERED,
    draw_curves,
    judge_projections,
    spread_out,
)
from sparse_but_wrong.experiments.verdict import Check, Verdict
from sparse_but_wrong.experiments.worlds import BUDGET, FIFTY_FEATURES, batchtopk
from sparse_but_wrong.runs.spec import ONLY_WORLD, ExperimentSpec

if TYPE_CHECKING:
    import pandas as pd

KS, N_SEEDS = tuple(range(1, 26)), 5

BATCHTOPK = ExperimentSpec(
    name="batchtopk",
    title="BatchTopK SAEs on the 50-feature world: k = 1 to 25, five seeds each",
    claim="for BatchTopK SAEs too, s_n^dec, c_dec and c_enc are smallest at the true L0",
    worlds={ONLY_WORLD: FIFTY_FEATURES},
    saes=tuple(
        batchtopk(f"k_{k}_seed_{seed}", k, factors={"k": k, "seed": seed})
        for k in KS
        for seed in range(N_SEEDS)
    ),
    training=BUDGET,
    projection_n=tuple(range(12, 26)),
    analysis="batchtopk",
)


class BatchTopK(Analysis):
    """A sweep of k with several seeds, judged by the mean over the seeds."""

    def judge(self, run: Run) -> Verdict:
        """As the base class."""
        return judge_over_seeds(
            run.table, run.projections, run.spec.projection_n, run.true_l0[run.only_world]
        )

    def draw(self, run: Run) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.sweep import (
            over_seeds,
            overview_over_seeds,
            projection_over_seeds,
        )

        true_l0, ns = run.true_l0[run.only_world], run.spec.projection_n
        table, projections = run.table, run.projections
        shown = spread_out([n for n in ns if n < projections.shape[1] / 2])
        dec, enc = r"$c_\mathrm{dec}$", r"$c_\mathrm{enc}$"
        drawn = [
            ("c_dec", dec, "Decoder rows: pairwise cosine similarity vs k"),
            ("c_enc", enc, "Encoder columns: pairwise cosine similarity vs k"),
        ]
        return [
            NamedFigure(
                "overview",
                overview_over_seeds(table, projections, true_l0, ns=shown),
                "Mean over the seeds at every k, and a band of one standard deviation. The k is "
                "that of training; the L0 of the thresholded SAEs is in the table.",
            ),
            *(
                NamedFigure(
                    f"projections/s_{n}", projection_over_seeds(table, projections, n, true_l0)
                )
                for n in ns
            ),
            *(
                NamedFigure(
                    f"similarity/{column}",
                    over_seeds(table, column, true_l0, ylabel=label, title=title),
                )
                for column, label, title in drawn
            ),
            draw_curves(run),
        ]


def judge_over_seeds(
    table: pd.DataFrame, projections: pd.DataFrame, ns: Sequence[int], true_l0: float
) -> Verdict:
    """Whether the mean over seeds of s_n^dec, c_dec and c_enc is smallest at the true L0.

    A check for which an SAE has no finite number is not judged: its mean would be that of others.

    Args:
        table: a row per SAE, with the factors k and seed.
        projections: s_n^dec of the same SAEs, a column per n.
        ns: which n; those from half the number of latents on say nothing.
        true_l0: of the world.
    """
    by_k = table.groupby("k", sort=True)[["l0", "c_dec", "c_enc"]]
    s_by_k = projections.groupby(table["k"], sort=True)
    mean = by_k.agg("mean").reset_index()
    of_projections = judge_projections(mean, s_by_k.agg("mean"), ns, true_l0)
    metrics = table[["sae_id", "l0", "c_dec", "c_enc"]].join(projections)
    looked_at = [n for n in ns if n in projections]
    checks = []
    for check, columns in (
        (of_projections.checks[0], looked_at),
        (_judge_similarity(mean, "c_dec", true_l0), ["c_dec"]),
        (_judge_similarity(mean, "c_enc", true_l0), ["c_enc"]),
    ):
        if diverged := _not_finite(metrics, ["l0", *columns]):
            why = f"not judged, as {len(diverged)} of the SAEs diverged, which no mean includes"
            check = replace(check, holds=None, measured=f"{check.measured}; {why}")
        checks.append(check)
    every = _not_finite(metrics, ["l0", *looked_at, "c_dec", "c_enc"])
    # Where projections are near 0 a single SAE can make the mean the smallest; not the median.
    medians = (by_k.agg("median").reset_index(), s_by_k.agg("median"))
    by_median = judge_projections(*medians, ns, true_l0).checks[0]
    holds = None if _not_finite(metrics, ["l0", *looked_at]) else by_median.holds
    word = {True: "holds", False: "does not hold", None: "is not judged"}[holds]
    off = (table["l0"] - table["k"]).abs().max()
    near = table.loc[(table["k"] - true_l0).abs() <= NEAR].groupby("k")["mcc"]
    counts = ", ".join(f"{int((m > RECOVERED).sum())} of {len(m)} at k = {k:g}" for k, m in near)
    recovered = [f"The mean matched cosine is above {RECOVERED:g} in {counts}."] if counts else []
    return Verdict(
        tuple(checks),
        (
            *of_projections.remarks,
            f"With the median seed instead of the mean, the claim about s_n^dec {word}: "
            f"{by_median.measured}.",
            "L0 here is that of the thresholded (JumpReLU) export, which a BatchTopK SAE is used "
            f"as; it differs from k by up to {off:.2f}.",
            *recovered,
            *([f"SAEs that diverged: {', '.join(every)}."] if every else []),
        ),
    )


def _not_finite(table: pd.DataFrame, columns: Sequence[str | int]) -> list[str]:
    """The ids of the SAEs with a number that is not finite."""
    finite = np.isfinite(table[list(columns)].to_numpy(float)).all(axis=1)
    return [str(sae_id) for sae_id in table.loc[~finite, "sae_id"]]


def _judge_similarity(mean: pd.DataFrame, column: str, true_l0: float) -> Check:
    claim = (
        f"the mean {column} over the seeds is smallest within {NEAR:g} of the true L0 {true_l0:.2f}"
    )
    finite = mean.loc[mean[column].notna() & mean["l0"].notna()].sort_values(column)
    if finite.empty:
        return Check(claim, f"no finite {column}", None)
    best = finite.iloc[0]
    off = finite.loc[(finite["l0"] - true_l0).abs() > NEAR]
    measured = f"{best[column]:.4f} at k = {best['k']:g} (L0 {best['l0']:.2f})"
    if len(off):
        other = off.iloc[0]
        measured += f"; away from the true L0 at least {other[column]:.4f}, at k = {other['k']:g}"
    sides = (("below", finite["l0"] < true_l0 - NEAR), ("above", finite["l0"] > true_l0 + NEAR))
    missing = [side for side, there in sides if not there.any()]
    if missing:
        # Without SAEs on both sides there is nothing that the smallest could be smaller than.
        measured += f"; the sweep has no SAE more than {NEAR:g} {' or '.join(missing)} it"
        return Check(claim, measured, None)
    return Check(claim, measured, bool(abs(best["l0"] - true_l0) <= NEAR))
