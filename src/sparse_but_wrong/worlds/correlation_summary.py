"""What a correlation matrix holds, in four numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


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


def summarize_correlation_matrix(
    matrix: Float[Tensor, "n_features n_features"],
) -> CorrelationSummary:
    """What a correlation matrix holds, to compare with what was asked for.

    Args:
        matrix: shape [F, F], symmetric, for two features or more.
    Raises:
        ValueError: a matrix that is not square or has fewer than two features.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] < 2:
        raise ValueError(
            f"The matrix has shape {list(matrix.shape)}: give a square one of two features or more."
        )
    matrix = matrix.detach().cpu().double()
    n_features = matrix.shape[0]
    row, column = torch.triu_indices(n_features, n_features, offset=1)
    strengths = matrix[row, column].abs()
    return CorrelationSummary(
        mean_abs=float(strengths.mean()),
        max_abs=float(strengths.max()),
        share_near_zero=float((strengths < 0.01).double().mean()),
        smallest_eigenvalue=float(torch.linalg.eigvalsh(matrix)[0]),
    )
