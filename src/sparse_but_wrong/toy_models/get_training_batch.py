"""The published import path of toy worlds' batches and correlations."""

from sparse_but_wrong.worlds.correlations import (
    create_correlation_matrix,
    generate_random_correlation_matrix,
)
from sparse_but_wrong.worlds.features import get_correlated_features, get_training_batch

__all__ = [
    "create_correlation_matrix",
    "generate_random_correlation_matrix",
    "get_correlated_features",
    "get_training_batch",
]
