"""From the latent correlation of two features to the correlation of their firings."""

from __future__ import annotations

import math


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
    if not -1 <= latent_correlation <= 1:
        raise ValueError(f"latent_correlation is {latent_correlation}; it must lie in [-1, 1].")
    for name, probability in (("p_i", p_i), ("p_j", p_j)):
        if not 0 < probability < 1:
            raise ValueError(
                f"{name} is {probability}; the correlation of firings exists only for a "
                "probability strictly between 0 and 1."
            )
    both = _both_fire(latent_correlation, p_i, p_j)
    return (both - p_i * p_j) / math.sqrt(p_i * (1 - p_i) * p_j * (1 - p_j))


def _both_fire(latent_correlation: float | int, p_i: float, p_j: float) -> float:
    # At ±1 both features follow one number, and the two-dimensional density does not exist.
    if latent_correlation == 1:
        return min(p_i, p_j)
    if latent_correlation == -1:
        return max(0.0, p_i + p_j - 1)
    import numpy as np
    from scipy.special import ndtri
    from scipy.stats import multivariate_normal

    covariance = np.array([[1.0, latent_correlation], [latent_correlation, 1.0]])
    # Near ±1 scipy's own test for singularity would refuse a matrix that the formula can take.
    latent = multivariate_normal(cov=covariance, allow_singular=True)  # pyright: ignore[reportArgumentType]
    return float(latent.cdf([ndtri(p_i), ndtri(p_j)]))
