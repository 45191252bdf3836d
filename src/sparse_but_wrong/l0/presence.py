"""Counting: how many directions are present in a sample, by their codes, and its control.

Axes: B samples, D d_in, A directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.l0.dictionaries import Directions

_CHUNK = 8192
_BINS = 100
HISTOGRAM_TOP = 2.0
"""Where the histogram ends, in units of a direction's level; it begins at 0."""

_PEAK = (0.5, 1.3)
"""Where the peak of present directions is looked for, in units of a direction's level."""


SMALLEST_NOISE_COST = 1.5
"""Cost on noise, in units of that on the samples, below which nothing tells the two apart. Of eight
kinds of noise (Gaussian of several spectra and ranks, uniform, Laplace) it was 0.99 to 1.02; of
small worlds with features, noise and densities of up to 40 % among them, 2.5 and more."""


@dataclass(frozen=True, eq=False)
class Presence:
    """How many of some directions are present in a sample, and how sure that is."""

    l0: float
    """Directions present per sample: those above the cut, and what the density at the cut says lies
    below it."""

    above_cut: float
    """Directions above the cut, per sample."""

    standard_error: float
    """Of `above_cut`: from its spread over samples, or over blocks of neighbours where that says
    more, as it does where neighbours are of one text."""

    cut: float
    """Where present and absent part, in units of a direction's level."""

    residual: float
    """Share of the variance that the codes leave unexplained."""

    cost: float
    """½·residual + penalty·Σ|codes|, per unit of variance: what the lasso minimises."""

    histogram: Float[Tensor, " bins"]
    """Density of codes per sample, over levels of 0 to 2; codes of exactly 0 are not in it. On the
    CPU, whatever was counted where."""

    n_directions: int

    @property
    def ambiguity(self) -> float:
        """Share of `l0` that lies below the cut, where nothing tells present from absent."""
        return (self.l0 - self.above_cut) / self.l0 if self.l0 > 0 else math.inf

    @property
    def score(self) -> float:
        """What is wrong with the directions: 0 where codes split clearly into present and absent
        and express everything."""
        return self.ambiguity + self.residual


@torch.no_grad()
def count_present(directions: Directions, activations: Float[Tensor, "B D"]) -> Presence:
    """Count how many directions are present per sample.

    Each direction's codes are divided by its level, Σy⁴/Σy³, which is its magnitude where it is
    present, whatever small codes it has elsewhere. The histogram of all of them together has a peak
    near 1 and, where the directions are right, a valley between that and the small codes that noise
    and overlap leave. Present is what lies above the valley; that the density there goes on down to
    0 is assumed of what lies below it, which matters where magnitudes are wide.
    """
    n_samples = activations.shape[0]
    codes = torch.cat([directions.codes(chunk) for chunk in activations.split(_CHUNK)])
    residual = (activations - directions.bias - codes @ directions.rows).square().sum().item()
    variance = activations.var(dim=0, correction=0).sum().item() * n_samples
    levels = levels_of(codes)
    cost = (0.5 * residual + directions.penalty * codes.sum().item()) / variance
    relative = codes.div_(levels.clamp_min(1e-30))
    width = HISTOGRAM_TOP / _BINS
    counts = torch.histc(relative[relative > 0], _BINS, 0, HISTOGRAM_TOP).cpu().double()
    density = counts / (n_samples * width)
    smooth = _smoothed(density)
    first, last = (int(edge / width) for edge in _PEAK)
    peak = first + int(smooth[first:last].argmax())
    # The first bin holds the smallest codes, of which there are always many.
    valley = 1 + int(smooth[1:peak].argmin())
    cut = (valley + 0.5) * width
    present = (relative > cut).sum(1).double()
    above = present.mean().item()
    return Presence(
        l0=above + float(smooth[valley]) * cut,
        above_cut=above,
        standard_error=_standard_error(present),
        cut=cut,
        residual=residual / variance,
        cost=cost,
        histogram=density,
        n_directions=len(directions.rows),
    )


def _standard_error(per_sample: Float[Tensor, " B"]) -> float:
    n = len(per_sample)
    error = per_sample.std().item() / math.sqrt(n)
    if n < 2 * _BLOCKS:
        return error
    blocks = per_sample[: n - n % _BLOCKS].view(_BLOCKS, -1).mean(1)
    return max(error, blocks.std().item() / math.sqrt(_BLOCKS))


_BLOCKS = 64


def levels_of(codes: Float[Tensor, "B A"]) -> Float[Tensor, " A"]:
    """Σy⁴/Σy³ of each direction: its magnitude where it is present; 0 where it never is."""
    return (codes**4).sum(0) / (codes**3).sum(0).clamp_min(1e-30)


def _smoothed(values: Tensor) -> Tensor:
    weights = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0], dtype=values.dtype)
    padded = torch.nn.functional.pad(values[None, None], (2, 2), mode="replicate")
    return torch.nn.functional.conv1d(padded, (weights / weights.sum())[None, None])[0, 0]


def featureless(
    samples: Float[Tensor, "_N D"], batch_size: int, seed: int
) -> Iterator[Float[Tensor, "B D"]]:
    """Batches without end of Gaussian samples of the same mean and covariance, on their device.

    They are drawn on the CPU for every device: one seed, one noise.
    """
    mean = samples.mean(0)
    centred = (samples - mean).double()
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(samples))
    mixing = variances.clamp_min(0).sqrt()[:, None] * axes.T
    generator = torch.Generator().manual_seed(seed)
    while True:
        drawn = torch.randn(batch_size, len(mean), generator=generator, dtype=torch.float64)
        yield mean + (drawn.to(mixing.device) @ mixing).to(samples.dtype)


@torch.no_grad()
def cost_on_noise(directions: Directions, samples: Float[Tensor, "B D"], seed: int) -> float:
    """`Presence.cost` of directions on `featureless` samples in place of the samples.

    Whatever the samples are, directions can be learned that express them: of noise in a few
    dimensions, some that are nearly all present in nearly every sample. Those cost as much on other
    noise. Directions of features cost far more, because noise does not keep to their cones.
    """
    noise = next(featureless(samples, len(samples), seed))
    return count_present(directions, noise).cost
