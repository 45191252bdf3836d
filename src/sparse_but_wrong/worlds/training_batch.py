"""Latent correlation matrices of a toy world, and batches of its feature activations.

B batch, F features.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.tensors import DEFAULT_DEVICE
from sparse_but_wrong.worlds.sampler import FeatureSampler

_SMALLEST_EIGENVALUE = 1e-6
# Below this an eigenvalue is more than the rounding of float32 entries, and the matrix is repaired.
_ROUNDING = 1e-7


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
    0.41 and almost no zeros. `summarize_correlation_matrix` reports what a matrix holds. It is also
    nearly singular: rounding may leave its smallest eigenvalue a little below 0.

    Args:
        num_features: F.
        positive_ratio: share of the correlated pairs with a positive correlation, in [0, 1].
        correlation_strength_range: (lo, hi) of |c| before clipping, 0 <= lo <= hi <= 1.
        sparsity: share of all pairs left uncorrelated before clipping, in [0, 1].
        seed: the same seed gives the same matrix; None a different one each time. Global random
            generators are neither read nor changed.
    Returns:
        shape [F, F], float32, on the CPU: symmetric, unit diagonal.
    Raises:
        ValueError: an argument outside its range.
    """
    low, high = correlation_strength_range
    _check_num_features(num_features)
    _check_in_range("positive_ratio", positive_ratio, 0, 1)
    _check_in_range("sparsity", sparsity, 0, 1)
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"correlation_strength_range is ({low}, {high}); it must be (lo, hi) with "
            "0 <= lo <= hi <= 1. The sign comes from positive_ratio."
        )
    rng = random.Random(seed)
    pairs = list(combinations(range(num_features), 2))
    kept = rng.sample(pairs, len(pairs) - int(len(pairs) * sparsity))
    n_positive = int(len(kept) * positive_ratio)
    matrix = torch.eye(num_features, dtype=torch.float32)
    for index, (i, j) in enumerate(kept):
        strength = rng.uniform(low, high)
        matrix[i, j] = matrix[j, i] = strength if index < n_positive else -strength
    return _nearby_correlation_matrix(matrix)


def create_correlation_matrix(
    num_features: int,
    correlations: Mapping[tuple[int, int], float | int] | None = None,
    default_correlation: float | int = 0.0,
) -> Float[Tensor, "num_features num_features"]:
    """A latent correlation matrix with the given entries.

    Not every set of correlations is possible (three features cannot all be correlated at −0.9).
    Where the matrix asked for is not positive semi-definite, its eigenvalues are clipped at 1e-6
    and its diagonal scaled back to 1, and a warning says how far that moved it.

    Args:
        num_features: F.
        correlations: {(i, j): c}, for (i, j) and (j, i) alike; i and j in [0, F), c in [-1, 1].
        default_correlation: that of every pair not named.
    Returns:
        shape [F, F], float32, on the CPU: symmetric, unit diagonal, positive semi-definite.
    Raises:
        ValueError: a feature that does not exist, a feature paired with itself, a correlation
            outside [-1, 1], or (i, j) and (j, i) given different values.
    Warns:
        UserWarning: the matrix was repaired; the message holds the largest change of an entry.
    """
    _check_num_features(num_features)
    _check_in_range("default_correlation", default_correlation, -1, 1)
    correlations = correlations or {}
    asked = torch.full((num_features, num_features), default_correlation, dtype=torch.float64)
    asked.fill_diagonal_(1)
    for (i, j), correlation in correlations.items():
        for index in (i, j):
            if not 0 <= index < num_features:
                raise ValueError(
                    f"correlations[{(i, j)}] names feature {index}, but the features are numbered "
                    f"0 to {num_features - 1}."
                )
        if i == j:
            raise ValueError(
                f"correlations[{(i, j)}] pairs feature {i} with itself, which is always correlated "
                "at 1: leave it out."
            )
        _check_in_range(f"correlations[{(i, j)}]", correlation, -1, 1)
        if correlations.get((j, i), correlation) != correlation:
            raise ValueError(
                f"correlations[{(i, j)}] is {correlation} but correlations[{(j, i)}] is "
                f"{correlations[j, i]}: give a pair once."
            )
        asked[i, j] = asked[j, i] = correlation
    smallest = float(torch.linalg.eigvalsh(asked)[0])
    if smallest >= -_ROUNDING:
        return asked.float()
    repaired = _nearby_correlation_matrix(asked)
    change = (repaired - asked).abs()
    i, j = divmod(int(change.argmax()), num_features)
    warnings.warn(
        f"The correlations asked for are impossible together (smallest eigenvalue {smallest:.3g}); "
        "they were repaired by clipping eigenvalues. Largest change of an entry: "
        f"{float(change.max()):.3g} (features {i} and {j}: asked {float(asked[i, j]):.3g}, got "
        f"{float(repaired[i, j]):.3g}). Weaker correlations need no repair.",
        UserWarning,
        stacklevel=2,
    )
    return repaired.float()


def get_correlated_features(
    batch_size: int,
    firing_probabilities: Float[Tensor, " n_features"],
    correlation_matrix: Float[Tensor, "n_features n_features"],
    device: torch.device | str = DEFAULT_DEVICE,
) -> Float[Tensor, "batch n_features"]:
    """Which features fire, as 0.0 and 1.0, drawn from torch's global generator.

    Args:
        batch_size: number of samples B, at least 1.
        firing_probabilities: shape [F], each in [0, 1].
        correlation_matrix: shape [F, F], the *latent* correlation; that of the firings is weaker
            (see `firing_correlation`).
        device: where to draw.
    Returns:
        shape [B, F].
    Raises:
        ValueError: as `FeatureSampler`.
    """
    sampler = _remembered_sampler(firing_probabilities, None, None, correlation_matrix, device)
    return sampler.sample_firings(batch_size)


def get_training_batch(
    batch_size: int,
    firing_probabilities: Float[Tensor, " n_features"],
    std_firing_magnitudes: Float[Tensor, " n_features"] | Float[Tensor, ""] | None = None,
    mean_firing_magnitudes: Float[Tensor, " n_features"] | Float[Tensor, ""] | None = None,
    device: torch.device | str = DEFAULT_DEVICE,
    modify_firing_features: Callable[[Tensor], Tensor] | None = None,
    correlation_matrix: Float[Tensor, "n_features n_features"] | None = None,
) -> Float[Tensor, "batch n_features"]:
    """A batch of feature activations, drawn from torch's global generator.

    What is constant in a world is computed on the first call and remembered for the last few
    worlds, by the content of the tensors: a tensor changed in place is a new world. Comparing
    contents copies tensors that live on a GPU to the host on every call; keep them on the CPU, or
    make a `FeatureSampler` once, which also takes an explicit generator.

    Args:
        batch_size: number of samples B, at least 1.
        firing_probabilities: shape [F], each in [0, 1].
        std_firing_magnitudes: shape [F], or [] for one value everywhere; 0 if left out.
        mean_firing_magnitudes: shape [F], or []; 1 everywhere if left out.
        device: where to draw, and where the batch lies.
        modify_firing_features: a function of the 0/1 firings [B, F], applied before they are
            multiplied by magnitudes; it returns firings of the same shape.
        correlation_matrix: shape [F, F], the *latent* correlation; independent if left out.
    Returns:
        shape [B, F]; 0 where a feature does not fire, its magnitude where it does.
    Raises:
        ValueError: as `FeatureSampler`, or `modify_firing_features` returned another shape.
    """
    sampler = _remembered_sampler(
        firing_probabilities,
        std_firing_magnitudes,
        mean_firing_magnitudes,
        correlation_matrix,
        device,
    )
    if modify_firing_features is None:
        return sampler.sample(batch_size)
    drawn = sampler.sample_firings(batch_size)
    firings = modify_firing_features(drawn)
    if firings.shape != drawn.shape:
        raise ValueError(
            f"modify_firing_features returned shape {list(firings.shape)} for firings of shape "
            f"{list(drawn.shape)}: it must return one value per sample and feature."
        )
    return sampler.sample_magnitudes(batch_size).mul_(firings)


class _Content(NamedTuple):
    """A tensor's content as a hashable value."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def _content(tensor: Tensor) -> _Content:
    tensor = tensor.detach().cpu()
    # numpy knows no bfloat16, and every bfloat16 is a float32.
    array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return _Content(array.dtype.str, array.shape, array.tobytes())


def _tensor(content: _Content) -> Tensor:
    array = np.frombuffer(content.data, dtype=content.dtype).reshape(content.shape)
    return torch.from_numpy(array.copy())


def _remembered_sampler(
    firing_probabilities: Tensor,
    std_firing_magnitudes: Tensor | None,
    mean_firing_magnitudes: Tensor | None,
    correlation_matrix: Tensor | None,
    device: torch.device | str,
) -> FeatureSampler:
    return _sampler_of_content(
        _content(firing_probabilities),
        None if std_firing_magnitudes is None else _content(std_firing_magnitudes),
        None if mean_firing_magnitudes is None else _content(mean_firing_magnitudes),
        None if correlation_matrix is None else _content(correlation_matrix),
        str(device),
    )


# The key is the content itself, so neither a tensor changed in place nor a hash collision can bring
# back a wrong sampler. A sampler never changes once made, so threads may share it.
@lru_cache(maxsize=8)
def _sampler_of_content(
    firing_probabilities: _Content,
    std_firing_magnitudes: _Content | None,
    mean_firing_magnitudes: _Content | None,
    correlation_matrix: _Content | None,
    device: str,
) -> FeatureSampler:
    return FeatureSampler(
        _tensor(firing_probabilities),
        None if std_firing_magnitudes is None else _tensor(std_firing_magnitudes),
        None if mean_firing_magnitudes is None else _tensor(mean_firing_magnitudes),
        None if correlation_matrix is None else _tensor(correlation_matrix),
        device,
    )


def _nearby_correlation_matrix(
    matrix: Float[Tensor, "n_features n_features"],
) -> Float[Tensor, "n_features n_features"]:
    """Clip the eigenvalues of a symmetric matrix at 1e-6, then scale its diagonal back to 1."""
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    clipped = (eigenvectors * eigenvalues.clamp(min=_SMALLEST_EIGENVALUE)) @ eigenvectors.T
    scale = clipped.diagonal().rsqrt()
    scaled = clipped * torch.outer(scale, scale)
    # The product above is symmetric up to rounding only.
    return ((scaled + scaled.T) / 2).fill_diagonal_(1)


def _check_num_features(num_features: int) -> None:
    if num_features < 1:
        raise ValueError(f"num_features is {num_features}; a world has at least 1 feature.")


def _check_in_range(name: str, value: float | int, low: int, high: int) -> None:
    # Negated, so that NaN counts as wrong.
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must lie in [{low}, {high}].")
