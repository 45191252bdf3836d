"""Latent correlation matrices of toy worlds: made, repaired, summarised. F features."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

_SMALLEST_EIGENVALUE = 1e-6
# Rounding entries to float32 moves eigenvalues by less; a matrix further below 0 is repaired.
_ROUNDING = 1e-7


def check_range(
    name: str, value: float | int, low: float | int, high: float | int = math.inf
) -> None:
    """Raise ValueError for a number outside [low, high]."""
    if not low <= value <= high:  # negated, so that NaN counts as wrong
        limits = f"lie in [{low}, {high}]" if high < math.inf else f"be at least {low}"
        raise ValueError(f"{name} is {value}; it must {limits}.")


def generate_random_correlation_matrix(
    num_features: int,
    positive_ratio: float | int = 0.5,
    correlation_strength_range: tuple[float | int, float | int] = (0.3, 0.8),
    sparsity: float | int = 0.3,
    seed: int | None = None,
) -> Float[Tensor, "num_features num_features"]:
    """A random latent correlation matrix: random pairs of features, with random strengths.

    The result is *far from what was asked* for all but small or sparse matrices. A symmetric matrix
    of strong random entries is not positive semi-definite; its negative eigenvalues are clipped at
    1e-6 and its diagonal scaled back to 1, which shrinks the chosen entries and fills the zeros in
    between. Fifty features with strengths 0.3 to 0.9 end with a mean |c| of 0.13, a largest |c| of
    0.41 and almost no zeros; see `summarize_correlation_matrix`. It is also nearly singular:
    rounding may leave its smallest eigenvalue a little below 0.

    Args:
        positive_ratio: share of the correlated pairs with a positive correlation, in [0, 1].
        correlation_strength_range: (lo, hi) of |c| before clipping, 0 <= lo <= hi <= 1.
        sparsity: share of all pairs left uncorrelated before clipping, in [0, 1].
        seed: None gives a different matrix each time. Global generators are neither read nor
            changed.
    Returns:
        shape [F, F], float32, on the CPU: symmetric, unit diagonal.
    Raises:
        ValueError: an argument outside its range.
    """
    low, high = correlation_strength_range
    check_range("num_features", num_features, 1)
    check_range("positive_ratio", positive_ratio, 0, 1)
    check_range("sparsity", sparsity, 0, 1)
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"correlation_strength_range is ({low}, {high}); it must be (lo, hi) with "
            "0 <= lo <= hi <= 1. The sign comes from positive_ratio."
        )
    # sae_lens.synthetic has this too, but draws in another order: its matrices are others.
    rng = random.Random(seed)
    pairs = list(combinations(range(num_features), 2))
    kept = rng.sample(pairs, len(pairs) - int(len(pairs) * sparsity))
    n_positive = int(len(kept) * positive_ratio)
    matrix = torch.eye(num_features, dtype=torch.float32)
    for index, (i, j) in enumerate(kept):
        strength = rng.uniform(low, high)
        matrix[i, j] = matrix[j, i] = strength if index < n_positive else -strength
    return _repaired(matrix)


def create_correlation_matrix(
    num_features: int,
    correlations: Mapping[tuple[int, int], float | int] | None = None,
    default_correlation: float | int = 0.0,
) -> Float[Tensor, "num_features num_features"]:
    """A latent correlation matrix with the given entries.

    Not every set of correlations is possible (three features cannot all be correlated at −0.9).
    An impossible matrix is repaired: its eigenvalues are clipped at 1e-6 and its diagonal scaled
    back to 1, and a warning says how far that moved it.

    Args:
        correlations: {(i, j): c}, for (i, j) and (j, i) alike; i and j in [0, F), c in [-1, 1].
        default_correlation: that of every pair not named.
    Returns:
        shape [F, F], float32, on the CPU: symmetric, unit diagonal, positive semi-definite.
    Raises:
        ValueError: a feature that does not exist, a feature paired with itself, a correlation
            outside [-1, 1], or (i, j) and (j, i) given different values.
    """
    check_range("num_features", num_features, 1)
    check_range("default_correlation", default_correlation, -1, 1)
    correlations = correlations or {}
    target = torch.full((num_features, num_features), default_correlation, dtype=torch.float64)
    target.fill_diagonal_(1)
    for (i, j), correlation in correlations.items():
        name = f"correlations[{(i, j)}]"
        if not (0 <= i < num_features and 0 <= j < num_features) or i == j:
            raise ValueError(
                f"{name} must name two different features; they are numbered 0 to "
                f"{num_features - 1}."
            )
        check_range(name, correlation, -1, 1)
        if correlations.get((j, i), correlation) != correlation:
            raise ValueError(
                f"{name} is {correlation} but correlations[{(j, i)}] is {correlations[j, i]}; "
                "give each pair once."
            )
        target[i, j] = target[j, i] = correlation
    smallest = float(torch.linalg.eigvalsh(target)[0])
    if smallest >= -_ROUNDING:
        return target.float()
    repaired = _repaired(target)
    change = (repaired - target).abs()
    i, j = divmod(int(change.argmax()), num_features)
    warnings.warn(
        f"No features can have these correlations together (smallest eigenvalue {smallest:.3g}). "
        "They were repaired by clipping eigenvalues, with a largest change of "
        f"{float(change.max()):.3g} (features {i} and {j}: from {float(target[i, j]):.3g} to "
        f"{float(repaired[i, j]):.3g}). Weaker correlations need no repair.",
        UserWarning,
        stacklevel=2,
    )
    return repaired.float()


def _repaired(matrix: Float[Tensor, "F F"]) -> Float[Tensor, "F F"]:
    """Clip the eigenvalues of a symmetric matrix at 1e-6, then scale its diagonal back to 1."""
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    clipped = (eigenvectors * eigenvalues.clamp(min=_SMALLEST_EIGENVALUE)) @ eigenvectors.T
    scale = clipped.diagonal().rsqrt()
    scaled = clipped * torch.outer(scale, scale)
    # The product above is symmetric up to rounding only.
    return ((scaled + scaled.T) / 2).fill_diagonal_(1)


@dataclass(frozen=True)
class CorrelationSummary:
    """The correlations between different features of one matrix."""

    mean_abs: float
    """Mean |c| over all pairs."""
    max_abs: float
    """Largest |c| of any pair."""
    share_near_zero: float
    """Share of the pairs with |c| < 0.01."""
    smallest_eigenvalue: float
    """Below 0 by more than rounding: not a correlation matrix; near 0: nearly singular."""


def summarize_correlation_matrix(matrix: Float[Tensor, "F F"]) -> CorrelationSummary:
    """What a correlation matrix, shape [F, F] with F ≥ 2, holds; to compare with what was asked.

    Raises:
        ValueError: a matrix that is not square or has fewer than two features.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] < 2:
        raise ValueError(
            f"The matrix has shape {list(matrix.shape)}: give a square one of two features or more."
        )
    matrix = matrix.detach().cpu().double()
    row, column = torch.triu_indices(*matrix.shape, offset=1)
    strengths = matrix[row, column].abs()
    return CorrelationSummary(
        mean_abs=float(strengths.mean()),
        max_abs=float(strengths.max()),
        share_near_zero=float((strengths < 0.01).double().mean()),
        smallest_eigenvalue=float(torch.linalg.eigvalsh(matrix)[0]),
    )


def firing_correlation(latent_correlation: float | int, p_i: float, p_j: float) -> float:
    """The correlation of the 0/1 firings of two features with a given latent correlation.

    Feature i fires when g_i > Φ⁻¹(1 − p_i). With P = Φ₂(Φ⁻¹(p_i), Φ⁻¹(p_j); c) the probability that
    both fire, the correlation of the firings is (P − p_i·p_j) / √(p_i(1−p_i)·p_j(1−p_j)), the phi
    coefficient. It is weaker than c: latent 0.4 between features of probability 0.4 gives 0.26.

    Args:
        latent_correlation: c, in [-1, 1].
        p_i, p_j: firing probabilities, strictly between 0 and 1.
    Raises:
        ValueError: c outside [-1, 1], or a probability not between 0 and 1 (a feature that always
            or never fires has no correlation with anything).
    Source: the Gaussian copula; the bivariate normal distribution function Φ₂ is scipy's.
    """
    check_range("latent_correlation", latent_correlation, -1, 1)
    for name, probability in (("p_i", p_i), ("p_j", p_j)):
        if not 0 < probability < 1:
            raise ValueError(f"{name} is {probability}; it must lie strictly between 0 and 1.")
    # At ±1 both features follow one number, and the two-dimensional density does not exist.
    if latent_correlation == 1:
        both = min(p_i, p_j)
    elif latent_correlation == -1:
        both = max(0.0, p_i + p_j - 1)
    else:
        from scipy.special import ndtri
        from scipy.stats import multivariate_normal

        covariance: list[list[float | int]] = [[1, latent_correlation], [latent_correlation, 1]]
        # Near ±1 scipy's own test for singularity would refuse a matrix that the formula can take.
        latent = multivariate_normal(cov=covariance, allow_singular=True)  # pyright: ignore[reportArgumentType]
        both = float(latent.cdf([ndtri(p_i), ndtri(p_j)]))
    return (both - p_i * p_j) / math.sqrt(p_i * (1 - p_i) * p_j * (1 - p_j))
