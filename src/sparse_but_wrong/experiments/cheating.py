"""The cheating experiment: at a low L0 a wrong SAE reconstructs better than the right one.

Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sparse_but_wrong.experiments.analysis import Analysis, MeasuredTable, NamedFigure, Results
from sparse_but_wrong.experiments.findings import NEAR, ranges
from sparse_but_wrong.experiments.requirements import (
    require_k_around_the_truth,
    require_k_as_trained,
    require_latent_per_feature,
)
from sparse_but_wrong.experiments.sweep import RECOVERED, require_one_world
from sparse_but_wrong.experiments.verdict import Check, Verdict
from sparse_but_wrong.experiments.worlds import BUDGET, FIFTY_FEATURES, batchtopk
from sparse_but_wrong.metrics.reconstruction import reconstruction_at_k
from sparse_but_wrong.metrics.recovery import matched_cosines
from sparse_but_wrong.runs.make import make_saes
from sparse_but_wrong.runs.spec import ONLY_WORLD, ExperimentSpec, SAESpec

if TYPE_CHECKING:
    import pandas as pd

KS = tuple(range(1, 26))

SHOWN = (5, 9)
"""The k whose figures the verdict states; those of the paper."""

CHEATING = ExperimentSpec(
    name="cheating",
    title="Reconstruction of BatchTopK SAEs with k = 1 to 25 against that of the true features",
    claim="below the true L0 the wrong SAE reconstructs better than the right one held to its k",
    worlds={ONLY_WORLD: FIFTY_FEATURES},
    saes=tuple(
        SAESpec(
            sae_id=f"k_{k}",
            architecture="batchtopk",
            config=batchtopk(k),
            factors={"k": k},
        )
        for k in KS
    ),
    training=BUDGET,
    analysis="cheating",
)

TRAINED, RIGHT, TRUE = "trained at this k", "trained at the right k", "true features"


class Cheating(Analysis):
    """What SAEs reconstruct at each k, trained there, trained at the right k, or not trained."""

    def check(self, spec: ExperimentSpec) -> None:
        """As the base class: one world, and BatchTopK SAEs of whole k at and below its true L0.

        Raises:
            ValueError: what is missing in the spec.
        """
        require_one_world(spec)
        require_k_as_trained(spec)
        require_latent_per_feature(spec)
        require_k_around_the_truth(spec, NEAR, above=False)
        for sae in spec.saes:
            if sae.factors["k"] != int(sae.factors["k"]):
                raise ValueError(
                    f"the analysis {spec.analysis!r} looks at whole k, but that of SAE "
                    f"{sae.sae_id!r} is {sae.factors['k']}."
                )
        ks = [sae.factors["k"] for sae in spec.saes]
        if len(set(ks)) < len(ks):
            raise ValueError(
                f"the analysis {spec.analysis!r} looks at one SAE for every k, but the spec "
                f"{spec.name!r} has several of one k."
            )

    def measure(self, results: Results) -> dict[str, MeasuredTable]:
        """As the base class: a row per k and kind of SAE."""
        import pandas as pd

        world = results.world(results.only_world)
        activations = results.activations(results.only_world)
        saes = _by_k(results.spec)
        right_k = nearest(list(saes), results.true_l0[results.only_world])
        right = results.folder.load_sae(saes[right_k].sae_id, results.device)
        true_spec = replace(saes[right_k], init="true_features")
        (true,) = make_saes(
            [true_spec], world.directions.shape[0], results.seed, results.device, world.model
        )
        rows = []
        for k, sae in saes.items():
            trained = results.folder.load_sae(sae.sae_id, results.device)
            for kind, held in ((TRAINED, trained), (RIGHT, right), (TRUE, true)):
                measured = reconstruction_at_k(held, activations, k)
                rows.append(
                    {
                        "k": k,
                        "sae": kind,
                        "mse": measured.mse,
                        "variance_explained": measured.variance_explained,
                    }
                )
        return {
            "tradeoff": MeasuredTable(
                pd.DataFrame(rows),
                "Squared error (summed over dimensions, mean over samples, unscaled activations) "
                f"of SAEs held to each k. The right k is {right_k}.",
            )
        }

    def judge(self, results: Results) -> Verdict:
        """As the base class."""
        return judge_tradeoff(
            results.tables["tradeoff"].frame, results.table, results.true_l0[results.only_world]
        )

    def draw(self, results: Results) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.heatmaps import decoder_cosines
        from sparse_but_wrong.figures.sweep import tradeoff
        from sparse_but_wrong.figures.training import training_curves

        true_l0 = results.true_l0[results.only_world]
        frame, saes = results.tables["tradeoff"].frame, _by_k(results.spec)
        right_k = nearest(list(saes), true_l0)
        labels = {
            TRAINED: "trained at this $k$",
            RIGHT: f"trained at $k = {right_k}$, held to this $k$",
            TRUE: "true features, held to this $k$",
        }
        curves = {label: frame.loc[frame["sae"] == kind] for kind, label in labels.items()}
        directions = results.world(results.only_world).directions
        panels = []
        for k in dict.fromkeys((*(k for k in SHOWN if k in saes), right_k)):
            sae = results.sae(saes[k].sae_id)
            matrix = matched_cosines(sae, directions).double().numpy()
            if np.isfinite(matrix).all():
                panels.append((f"Trained at $k = {k}$", matrix))
        figures = [
            NamedFigure(
                "overview",
                tradeoff(curves, results.table, true_l0),
                "Left: squared error of SAEs held to the same k, all with the k largest latents "
                "per sample over the whole evaluation batch. Right: mean cosine of the latents of "
                "the trained SAEs with the true features.",
            )
        ]
        if panels:
            figures.append(
                NamedFigure(
                    "decoders",
                    decoder_cosines(panels),
                    "Cosine of every latent with every true feature.",
                )
            )
        return [
            *figures,
            NamedFigure("training_curves", training_curves(results.curves, true_l0)),
        ]


def judge_tradeoff(tradeoff: pd.DataFrame, table: pd.DataFrame, true_l0: float) -> Verdict:
    """Whether SAEs trained below the true L0 reconstruct better than right ones held to their k.

    What there is no SAE for, below the true L0 or at it, is not judged.

    Args:
        tradeoff: a row per k and kind of SAE with columns `k`, `sae` and `mse`.
        table: a row per trained SAE with columns `k` and `mcc`.
        true_l0: of the world; k below it by more than NEAR are too low.
    """
    mse = tradeoff.pivot(index="k", columns="sae", values="mse").sort_index()
    right_k = nearest([int(k) for k in mse.index], true_l0)
    low = mse.loc[mse.index < true_l0 - NEAR]
    shown = [k for k in SHOWN if k in low.index] or [int(k) for k in low.index[-1:]]
    there_is_none = f"there is no SAE with a k more than {NEAR:g} below the true L0 {true_l0:.2f}"
    no_right = "" if abs(right_k - true_l0) <= NEAR else f"; k = {right_k} is not at the true L0"
    of_low = f" (k = {ranges([int(k) for k in low.index])})" if len(low) else ""
    checks = []
    for kind, name in (
        (RIGHT, f"the SAE trained at k = {right_k}, held to the same k"),
        (TRUE, "the true features, held to the same k"),
    ):
        better = low[TRAINED] < low[kind]
        figures = "; ".join(
            f"MSE {low[TRAINED][k]:.2f} against {low[kind][k]:.2f} at k = {k}" for k in shown
        )
        lacks = no_right if kind == RIGHT else ""
        checks.append(
            Check(
                f"for every k more than {NEAR:g} below the true L0{of_low} the SAE trained there "
                f"has a lower MSE than {name}",
                f"{int(better.sum())} of {len(low)}; {figures}{lacks}"
                if len(low)
                else there_is_none,
                bool(better.all()) if len(low) and not lacks else None,
            )
        )
    wrong = table.loc[(table["k"] < true_l0 - NEAR)]
    checks.append(
        Check(
            f"none of the SAEs trained more than {NEAR:g} below the true L0 has the true features: "
            f"mean matched cosine < {RECOVERED:g}",
            f"the largest is {wrong['mcc'].max():.3f}, "
            + ", ".join(f"{_mcc(wrong, k):.3f} at k = {k}" for k in shown)
            if len(wrong)
            else there_is_none,
            bool((wrong["mcc"] < RECOVERED).all()) if len(wrong) else None,
        )
    )
    best = int(mse.index[int(np.nan_to_num(mse[TRAINED].to_numpy(float), nan=np.inf).argmin())])
    remarks = [
        "MSE is the squared error summed over dimensions, in the units of the unscaled "
        "activations; published at k = 5: 2.73 for the trained SAE, 4.88 for the true features.",
        f"Over the sweep the trained SAE with the lowest MSE is that with k = {best}; the true L0 "
        f"is {true_l0:.2f}.",
    ]
    return Verdict(tuple(checks), tuple(remarks))


def nearest(ks: list[int], true_l0: float) -> int:
    """The k nearest to the true L0."""
    return min(ks, key=lambda k: abs(k - true_l0))


def _mcc(table: pd.DataFrame, k: int) -> float:
    return float(table.loc[table["k"] == k, "mcc"].iloc[0])


def _by_k(spec: ExperimentSpec) -> dict[int, SAESpec]:
    return {int(sae.factors["k"]): sae for sae in sorted(spec.saes, key=lambda s: s.factors["k"])}
