"""The ground-truth-init experiment: does an SAE that starts at the true features stay there?

Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparse_but_wrong.experiments.analysis import Analysis, MeasuredTable, NamedFigure, Results
from sparse_but_wrong.experiments.findings import NEAR
from sparse_but_wrong.experiments.requirements import require_k_as_trained, true_l0_of
from sparse_but_wrong.experiments.sweep import RECOVERED
from sparse_but_wrong.experiments.verdict import Check, Verdict
from sparse_but_wrong.experiments.worlds import BUDGET, FIFTY_FEATURES, batchtopk
from sparse_but_wrong.metrics.reconstruction import reconstruction_at_k
from sparse_but_wrong.metrics.recovery import match_latents, matched_cosines
from sparse_but_wrong.runs.make import make_saes
from sparse_but_wrong.runs.spec import ExperimentSpec, SAESpec

if TYPE_CHECKING:
    import pandas as pd

TOO_LOW_K, RIGHT_K = 5, 11

# The start is the same for every seed, so what differs is the world: its directions and its data.
WORLDS = ("first", "second", "third")

GROUND_TRUTH_INIT = ExperimentSpec(
    name="ground-truth-init",
    title="BatchTopK SAEs that start at the true features, with the right k and with a low one",
    claim="trained at a k below the true L0, an SAE leaves the true features to lower its loss",
    worlds=dict.fromkeys(WORLDS, FIFTY_FEATURES),
    saes=tuple(
        SAESpec(
            sae_id=f"k_{k}_{world}_world",
            architecture="batchtopk",
            config=batchtopk(k),
            world=world,
            factors={"k": k},
            init="true_features",
        )
        for world in WORLDS
        for k in (TOO_LOW_K, RIGHT_K)
    ),
    training=BUDGET,
    analysis="ground-truth-init",
)


class GroundTruthInit(Analysis):
    """SAEs that start at the true features: where training took them, and what it gained."""

    def check(self, spec: ExperimentSpec) -> None:
        """As the base class: BatchTopK SAEs that start at the true features.

        Raises:
            ValueError: what is missing in the spec.
        """
        require_k_as_trained(spec)
        for sae in spec.saes:
            if sae.init != "true_features":
                raise ValueError(
                    f"the analysis {spec.analysis!r} is about SAEs that start at the true "
                    f"features; give SAE {sae.sae_id!r} init: true_features."
                )
        off = [float(sae.factors["k"]) - true_l0_of(spec, sae.world) for sae in spec.saes]
        for side, is_there in (
            (f"more than {NEAR:g} below", any(value < -NEAR for value in off)),
            (f"within {NEAR:g} of", any(abs(value) <= NEAR for value in off)),
        ):
            if not is_there:
                raise ValueError(
                    f"the analysis {spec.analysis!r} needs an SAE with a k {side} the true L0 of "
                    f"its world; the spec {spec.name!r} has none."
                )

    def measure(self, results: Results) -> dict[str, MeasuredTable]:
        """As the base class: a row per SAE, at the start and at the end."""
        import pandas as pd

        rows = []
        for name in results.spec.worlds:
            world, activations = results.world(name), results.activations(name)
            for sae_spec in results.spec.of_world(name):
                k = float(sae_spec.factors["k"])
                (start,) = make_saes(
                    [sae_spec], world.directions.shape[0], results.seed, results.device, world.model
                )
                end = results.folder.load_sae(sae_spec.sae_id, results.device)
                rows.append(
                    {
                        "sae_id": sae_spec.sae_id,
                        "world": name,
                        "k": sae_spec.factors["k"],
                        "true_l0": results.true_l0[name],
                        "mcc_start": match_latents(start, world.directions).mcc,
                        "mcc_end": match_latents(end, world.directions).mcc,
                        "mse_start": reconstruction_at_k(start, activations, k).mse,
                        "mse_end": reconstruction_at_k(end, activations, k).mse,
                    }
                )
        return {
            "start_and_end": MeasuredTable(
                pd.DataFrame(rows),
                "Mean matched cosine, and squared error (summed over dimensions, unscaled "
                "activations) when held to the k of training, at the start and at the end.",
            )
        }

    def judge(self, results: Results) -> Verdict:
        """As the base class."""
        return judge_start_and_end(results.tables["start_and_end"].frame)

    def draw(self, results: Results) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.heatmaps import decoder_cosines
        from sparse_but_wrong.figures.training import training_curves

        name = next(name for name in results.spec.worlds if results.spec.of_world(name))
        world = results.world(name)
        saes = sorted(results.spec.of_world(name), key=lambda sae: float(sae.factors["k"]))
        ends = []
        for sae in saes:
            matrix = matched_cosines(results.sae(sae.sae_id), world.directions).double().numpy()
            if np.isfinite(matrix).all():
                ends.append((f"After training at $k = {sae.factors['k']:g}$", matrix))
        (start,) = make_saes(
            saes[:1], world.directions.shape[0], results.seed, results.device, world.model
        )
        begin = matched_cosines(start, world.directions).double().numpy()
        true_l0 = results.true_l0[name] if len(results.spec.worlds) == 1 else None
        return [
            NamedFigure(
                "overview",
                decoder_cosines([("At the start", begin), *ends]),
                "Cosine of every latent with every true feature, latents in the order of the "
                f"features they are matched to. The true L0 is {results.true_l0[name]:.2f}.",
            ),
            NamedFigure("training_curves", training_curves(results.curves, true_l0)),
        ]


def judge_start_and_end(table: pd.DataFrame) -> Verdict:
    """Whether SAEs at the true features leave them at a low k, lower their loss by it, and stay at
    the right k.

    Args:
        table: a row per SAE with columns `k`, `true_l0`, `mcc_start`, `mcc_end`, `mse_start` and
            `mse_end`.
    """

    def held(rows: pd.DataFrame, column: str) -> bool | None:
        return bool(rows[column].all()) if len(rows) else None

    table = table.assign(
        left=table["mcc_end"] < RECOVERED,
        stayed=table["mcc_end"] > RECOVERED,
        gained=table["mse_end"] < table["mse_start"],
    )
    low = table.loc[table["k"] < table["true_l0"] - NEAR]
    right = table.loc[(table["k"] - table["true_l0"]).abs() <= NEAR]
    return Verdict(
        (
            Check(
                f"trained at a k more than {NEAR:g} below the true L0, every SAE that starts at "
                f"the true features leaves them: mean matched cosine < {RECOVERED:g}",
                _in_words(low, "mcc"),
                held(low, "left"),
            ),
            Check(
                "leaving them pays: its MSE at its k is lower at the end than at the start",
                _in_words(low, "mse"),
                held(low, "gained"),
            ),
            Check(
                f"trained at the right k it stays: mean matched cosine > {RECOVERED:g}",
                _in_words(right, "mcc"),
                held(right, "stayed"),
            ),
        ),
        (f"At the right k the MSE went {_in_words(right, 'mse')}.",),
    )


def _in_words(rows: pd.DataFrame, figure: str) -> str:
    if rows.empty:
        return "there is no such SAE"
    digits = ".3f" if figure == "mcc" else ".3g"
    return ", ".join(
        f"{start:{digits}} → {end:{digits}} (k = {k:g})"
        for k, start, end in zip(
            rows["k"], rows[f"{figure}_start"], rows[f"{figure}_end"], strict=True
        )
    )
