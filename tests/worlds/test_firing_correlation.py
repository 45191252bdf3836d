from __future__ import annotations

import math

import pytest
import torch

from sparse_but_wrong.worlds.firing_correlation import firing_correlation
from sparse_but_wrong.worlds.sampler import FeatureSampler


def test_latent_04_at_probability_04_is_about_026() -> None:
    assert firing_correlation(0.4, 0.4, 0.4) == pytest.approx(0.2586, abs=5e-5)


@pytest.mark.parametrize("latent", [-0.9, -0.4, 0.0, 0.3, 0.8])
def test_closed_form_at_probability_one_half(latent: float) -> None:
    # Sheppard: P(both positive) = 1/4 + asin(c)/2π, so the correlation of signs is 2·asin(c)/π.
    assert firing_correlation(latent, 0.5, 0.5) == pytest.approx(
        2 * math.asin(latent) / math.pi, abs=1e-9
    )


def test_latent_one_and_minus_one() -> None:
    assert firing_correlation(1, 0.3, 0.3) == pytest.approx(1)
    # j fires only where i does: (0.2 − 0.3·0.2) / √(0.3·0.7·0.2·0.8)
    assert firing_correlation(1, 0.3, 0.2) == pytest.approx(0.14 / math.sqrt(0.0336))
    # They never fire together: (0 − 0.3·0.2) / √(0.3·0.7·0.2·0.8)
    assert firing_correlation(-1, 0.3, 0.2) == pytest.approx(-0.06 / math.sqrt(0.0336))
    # 0.7 + 0.8 > 1: they must overlap in half of the samples.
    assert firing_correlation(-1, 0.7, 0.8) == pytest.approx(-0.06 / math.sqrt(0.0336))


def test_continuous_towards_latent_one() -> None:
    assert firing_correlation(1 - 1e-12, 0.3, 0.2) == pytest.approx(firing_correlation(1, 0.3, 0.2))


@pytest.mark.parametrize(("latent", "p_i", "p_j"), [(0.4, 0.4, 0.4), (-0.3, 0.388, 0.05)])
def test_agrees_with_simulated_firings(latent: float, p_i: float, p_j: float) -> None:
    sampler = FeatureSampler(
        torch.tensor([p_i, p_j]),
        correlation_matrix=torch.tensor([[1.0, latent], [latent, 1.0]]),
    )
    n_samples = 400_000
    firings = sampler.sample_firings(n_samples, torch.Generator().manual_seed(0))
    measured = float(torch.corrcoef(firings.T)[0, 1])
    # The standard error of a correlation is at most about 1/√n = 0.0016; four of them.
    assert measured == pytest.approx(firing_correlation(latent, p_i, p_j), abs=4 / n_samples**0.5)


@pytest.mark.parametrize("latent", [1.1, -1.01, math.nan])
def test_refuses_an_impossible_latent_correlation(latent: float) -> None:
    with pytest.raises(ValueError, match="latent_correlation is"):
        firing_correlation(latent, 0.4, 0.4)


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, math.nan])
def test_refuses_a_feature_whose_firings_do_not_vary(probability: float) -> None:
    with pytest.raises(ValueError, match="p_j is"):
        firing_correlation(0.4, 0.4, probability)
