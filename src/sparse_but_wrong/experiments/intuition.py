"""Why s_n^dec tells a right SAE from a wrong one, as a drawing: nothing is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.experiments.analysis import Analysis, Figures, Run
from sparse_but_wrong.experiments.verdict import Verdict
from sparse_but_wrong.figures.distributions import projection_histograms
from sparse_but_wrong.metrics.projections import SortedProjections

if TYPE_CHECKING:
    from sparse_but_wrong.worlds.world import ToyWorld

MIXED_BY = 0.5
"""Latents of the drawing's wrong SAE hold this much of every other feature times its latent
correlation with their own. A number for the eye: no SAE was measured to do exactly so."""

# As of the paper's sweep: above the L0 of 11, below half of 50 latents.
_N = 18


def _judge(_: Run) -> Verdict:
    remark = (
        "This is a drawing. Nothing is trained and nothing is judged: the right SAE is the true "
        "features themselves, and the wrong one is a copy in which each latent holds "
        f"{MIXED_BY:g} times its correlation of every other feature."
    )
    return Verdict(remarks=(remark,))


def _draw(run: Run) -> Figures:
    world, (activations, _) = run.world(), run.samples()
    decoders = {
        "Right L0: latents are features": world.directions.T,
        "L0 too low: latents mix features": mixed_directions(world, MIXED_BY),
    }
    panels = [
        (title, (activations @ rows.T).flatten().cpu().numpy()) for title, rows in decoders.items()
    ]
    s_n = [nth_projection(activations, rows, _N) for rows in decoders.values()]
    caption = (
        "All projections of activations on decoder rows. Where latents are features they are the "
        "magnitudes of the features: 0 for those that do not fire. Where latents mix features, "
        f"those that do not fire get projections above 0 as well, and s_n (n = {_N}) grows."
    )
    return {"overview": (projection_histograms(panels, s_n, _N), caption)}


def mixed_directions(world: ToyWorld, by: float) -> Float[Tensor, "n_features d_in"]:
    """Unit rows, one per feature, each with `by` times its correlation of every other feature."""
    assert world.correlation_matrix is not None
    correlations = world.correlation_matrix.to(world.directions)
    mixing = torch.eye(len(correlations)).to(correlations) * (1 - by) + by * correlations
    return torch.nn.functional.normalize(mixing @ world.directions.T, dim=1)


def nth_projection(
    activations: Float[Tensor, "samples d_in"], rows: Float[Tensor, "latents d_in"], n: int
) -> float:
    """s_n^dec of unit rows without decoder bias."""
    projections = SortedProjections(rows, len(activations))
    projections.add(activations, torch.zeros_like(rows[0]))
    return projections.entries(torch.tensor([n * len(activations)])).item()


ANALYSES = {"intuition": Analysis(_judge, _draw)}
