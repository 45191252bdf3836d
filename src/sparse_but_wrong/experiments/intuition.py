"""Why s_n^dec tells a right SAE from a wrong one, as a drawing: nothing is trained.

Source: the argument of Chanin & Garriga-Alonso 2025, arXiv:2508.16560, for the metric.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.experiments.analysis import Analysis, NamedFigure, Run
from sparse_but_wrong.experiments.verdict import Verdict
from sparse_but_wrong.experiments.worlds import FIFTY_FEATURES
from sparse_but_wrong.runs.spec import ONLY_WORLD, ExperimentSpec

if TYPE_CHECKING:
    from sparse_but_wrong.worlds.world import ToyWorld

MIXED_BY = 0.5
"""Latents of the drawing's wrong SAE hold this much of every other feature times its latent
correlation with their own. A number for the eye: no SAE was measured to do exactly so."""

# As of the paper's sweep: above the L0 of 11, below half of 50 latents.
_N = 18

INTUITION = ExperimentSpec(
    name="intuition",
    title="Why the N-th decoder projection is small for a right SAE: a drawing",
    claim="none: two idealised SAEs, the true features and a copy that mixes correlated ones",
    worlds={ONLY_WORLD: FIFTY_FEATURES},
    evaluation_samples=20_000,
    analysis="intuition",
)


class Intuition(Analysis):
    """Draws the decoder projections of the true features and of a mixed copy of them."""

    def judge(self, run: Run) -> Verdict:
        """As the base class: there is nothing to judge."""
        del run
        return Verdict(
            remarks=(
                "This is a drawing. Nothing is trained and nothing is judged: the right SAE is the "
                "true features themselves, and the wrong one is a copy in which each latent holds "
                f"{MIXED_BY:g} times its correlation of every other feature.",
            )
        )

    def draw(self, run: Run) -> list[NamedFigure]:
        """As the base class."""
        from sparse_but_wrong.figures.distributions import (
            ProjectionPanel,
            projection_histograms,
        )

        world = run.world(run.only_world)
        activations = run.samples(run.only_world)[0]
        right = world.directions.T
        panels = [
            ProjectionPanel(
                projections=(activations @ rows.T).flatten().cpu().numpy(),
                s_n=nth_projection(activations, rows, _N),
                n=_N,
                title=title,
            )
            for rows, title in (
                (right, "Right L0: latents are features"),
                (mixed_directions(world, MIXED_BY), "L0 too low: latents mix features"),
            )
        ]
        return [
            NamedFigure(
                "overview",
                projection_histograms(panels),
                "All projections of activations on decoder rows. Where latents are features they "
                "are the magnitudes of the features: 0 for those that do not fire. Where latents "
                "mix features, those that do not fire get projections above 0 as well, and "
                f"s_n (n = {_N}) grows.",
            )
        ]


def mixed_directions(world: ToyWorld, by: float) -> Float[Tensor, "n_features d_in"]:
    """Unit rows, one per feature, each with `by` times its correlation of every other feature.

    Raises:
        ValueError: the world's features are independent.
    """
    if world.correlation_matrix is None:
        raise ValueError("the features of this world are independent: there is nothing to mix.")
    correlations = world.correlation_matrix.to(world.directions)
    mixing = torch.eye(len(correlations)).to(correlations) * (1 - by) + by * correlations
    return torch.nn.functional.normalize(mixing @ world.directions.T, dim=1)


def nth_projection(
    activations: Float[Tensor, "samples d_in"], rows: Float[Tensor, "latents d_in"], n: int
) -> float:
    """s_n^dec of unit rows without decoder bias."""
    from sparse_but_wrong.metrics.projections import SortedProjections

    projections = SortedProjections(rows, len(activations))
    projections.add(activations, torch.zeros_like(rows[0]))
    return projections.entries(torch.tensor([n * len(activations)])).item()
