"""What directions make of samples without features: the control of a count.

Axes: B samples, D d_in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.l0.presence import measure_presence

if TYPE_CHECKING:
    from sparse_but_wrong.l0.directions import Directions


def featureless(samples: Float[Tensor, "B D"], seed: int) -> Float[Tensor, "B D"]:
    """As many Gaussian samples of the same mean and covariance."""
    mean = samples.mean(0)
    centred = (samples - mean).double()
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(samples))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(centred.shape, generator=generator, dtype=torch.float64)
    return mean + (drawn * variances.clamp_min(0).sqrt() @ axes.T).to(samples.dtype)


@torch.no_grad()
def cost_on_noise(directions: Directions, samples: Float[Tensor, "B D"], seed: int) -> float:
    """`Presence.cost` of directions on `featureless` samples in place of the samples.

    Whatever the samples are, directions can be learned that express them: of noise in a few
    dimensions, some that are nearly all present in nearly every sample. Those cost as much on other
    noise. Directions of features cost far more, because noise does not keep to their cones.
    """
    return measure_presence(directions, featureless(samples, seed)).cost
