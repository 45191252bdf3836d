"""The BatchTopK experiment: every k from 1 to 25, five seeds each, on the 50-feature world.

Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sparse_but_wrong.experiments.analysis import Analysis, NamedFigure, Results
from sparse_but_wrong.experiments.findings import NEAR
from sparse_but_wrong.experiments.requirements import require_k_as_trained, require_numbers
from sparse_but_wrong.experiments.sweep import (
    RECOVERED,
    judge_projections,
    mean_over_seeds,
    require_one_world,
    spread_out,
)
from sparse_but_wrong.experiments.verdict import Check, Verdict
from sparse_but_wrong.experiments.worlds import BUDGET, FIFTY_FEATURES, batchtopk
from sparse_but_wrong.runs.spec import ONLY_WORLD, ExperimentSpec, SAESpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

KS = tuple(range(1, 26))
N_SEEDS = 5

BATCHTOPK = ExperimentSpec(
    name="batchtopk",
    title="BatchTopK SAEs on the 50-feature world: k = 1 to 25, five seeds each",
    claim="for BatchTopK SAEs too, s_n^dec, c_dec and c_enc are smallest at the true L0",
    worlds={ONLY_WORLD: FIFTY_FEATURES},
    saes=tuple(
        SAESpec(
            sae_id=f"k_{k}_seed_{seed}",
            architecture="batchtopk",
            config=batchtopk(k),
            factors={"k": k, "seed": seed},
        )
        for k in KS
        for seed in range(N_SEEDS)
    ),
    training=BUDGET,
    projection_n=tuple(range(12, 26)),
    analysis="batchtopk",
)


class BatchTopK(Analysis):
    """A sweep of k with several seeds, judged by the mean over the seeds."""

    def check(self, spec: ExperimentSpec) -> None:
        """As the base class: one world, BatchTopK SAEs with the factors k and seed, and n.

        Raises:
            ValueError: what is missing in the spec.
        """
        require_one_world(spec)
        require_k_as_trained(spec)
        require_numbers(spec, ["seed"])
        if not _looked_at(spec):
            raise ValueError(
                f"the analysis {spec.analysis!r} needs a projection_n below half of d_sae; the "
                f"spec {spec.name!r} has {', '.join(map(str, spec.projection_n)) or 'none'}."
            )

    def judge(self, results: Results) -> Verdict:
        """As the base class."""
        return judge_over_seeds(
            results.table, results.spec.projection_n, results.true_l0[results.only_world]
        )

    def draw(self, results: Results) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.sweep import (
            over_seeds,
            overview_over_seeds,
            projection_over_seeds,
        )
        from sparse_but_wrong.figures.training import training_curves

        table, projections = results.table, results.projections
        true_l0 = results.true_l0[results.only_world]
        shown = spread_out(_looked_at(results.spec))
        figures = [
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
                for n in results.spec.projection_n
            ),
        ]
        for column, label, what in (
            ("c_dec", r"$c_\mathrm{dec}$", "Decoder rows"),
            ("c_enc", r"$c_\mathrm{enc}$", "Encoder columns"),
        ):
            title = f"{what}: pairwise cosine similarity vs k"
            figure = over_seeds(table, column, true_l0, ylabel=label, title=title)
            figures.append(NamedFigure(f"similarity/{column}", figure))
        curves = training_curves(results.curves, true_l0)
        return [*figures, NamedFigure("training_curves", curves)]


def judge_over_seeds(table: pd.DataFrame, ns: Sequence[int], true_l0: float) -> Verdict:
    """Whether the mean over seeds of s_n^dec, c_dec and c_enc is smallest at the true L0.

    A check for which an SAE has no finite figure is not judged: its mean would be that of others.

    Args:
        table: a row per SAE, with the factors k and seed.
        ns: which n; those from half the number of latents on say nothing.
        true_l0: of the world.
    """
    mean = mean_over_seeds(table, "k")
    projections = judge_projections(mean, ns, true_l0)
    checks = (
        *projections.checks,
        *(_judge_similarity(mean, name, true_l0) for name in ("c_dec", "c_enc")),
    )
    looked_at = [name for n in ns if (name := f"s_{n}") in table]
    diverged = [
        _not_finite(table, ["l0", *columns]) for columns in (looked_at, ["c_dec"], ["c_enc"])
    ]
    checks = tuple(
        replace(check, holds=None, measured=f"{check.measured}; not judged, as {_missing(ids)}")
        if ids
        else check
        for check, ids in zip(checks, diverged, strict=True)
    )
    every = _not_finite(table, ["l0", *looked_at, "c_dec", "c_enc"])
    # Of projections around 0 a single SAE can make the mean the smallest; not the median.
    numeric = table.select_dtypes("number").columns.difference(["k"])
    median = table.groupby("k", sort=True)[list(numeric)].median().reset_index()
    by_median = judge_projections(median, ns, true_l0).checks[0]
    word = {True: "holds", False: "does not hold", None: "is not judged"}[
        None if diverged[0] else by_median.holds
    ]
    return Verdict(
        checks,
        (
            *projections.remarks,
            f"With the median seed in place of the mean, what is said of s_n^dec {word}: "
            f"{by_median.measured}.",
            *_remarks(table, true_l0),
            *([f"SAEs that diverged: {', '.join(every)}."] if every else []),
        ),
    )


def _not_finite(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The ids of the SAEs with a figure that is not finite."""
    finite = np.isfinite(table[list(columns)].to_numpy(float)).all(axis=1)
    return [str(sae_id) for sae_id in table.loc[~finite, "sae_id"]]


def _missing(ids: Sequence[str]) -> str:
    return f"{len(ids)} of the SAEs diverged and {'is' if len(ids) == 1 else 'are'} in no mean"


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


def _remarks(table: pd.DataFrame, true_l0: float) -> list[str]:
    off = (table["l0"] - table["k"]).abs()
    remarks = [
        "L0 here is that of the thresholded (JumpReLU) export, which a BatchTopK SAE is used as; "
        f"it differs from k by up to {off.max():.2f}."
    ]
    near = table.loc[(table["k"] - true_l0).abs() <= NEAR]
    if len(near):
        by_k = near.groupby("k")["mcc"]
        counts = ", ".join(
            f"{int((mcc > RECOVERED).sum())} of {len(mcc)} at k = {k:g}" for k, mcc in by_k
        )
        remarks.append(
            f"The mean matched cosine is above {RECOVERED:g} in {counts} (the true L0 is "
            f"{true_l0:.2f})."
        )
    return remarks


def _looked_at(spec: ExperimentSpec) -> list[int]:
    """The n that say something for every SAE of the spec."""
    narrowest = min(int(sae.config["d_sae"]) for sae in spec.saes)
    return [n for n in spec.projection_n if n < narrowest / 2]
