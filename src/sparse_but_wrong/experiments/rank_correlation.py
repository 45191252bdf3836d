"""Correlation coefficients of two measurements, by value and by rank."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float


def pearson(xs: Float[np.ndarray, " n"], ys: Float[np.ndarray, " n"]) -> float:
    """Pearson's correlation; NaN where one of the two is constant or not finite."""
    if not (np.isfinite(xs).all() and np.isfinite(ys).all()):
        return math.nan
    if np.ptp(xs) == 0 or np.ptp(ys) == 0:
        return math.nan
    return float(np.corrcoef(xs, ys)[0, 1])


def rank_correlation(xs: Float[np.ndarray, " n"], ys: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation; NaN where one of the two is constant or not finite."""
    from scipy.stats import rankdata

    # Ranks are finite whatever they are the ranks of.
    if not (np.isfinite(xs).all() and np.isfinite(ys).all()):
        return math.nan
    return pearson(rankdata(xs), rankdata(ys))
