"""The control of a count: the same directions on samples without features."""

from __future__ import annotations

import pytest
import torch

from sparse_but_wrong.l0.presence import cost_on_noise, featureless, measure_presence
from tests.l0.worlds import samples, small_world, true_directions


def test_featureless_samples_have_mean_and_covariance_and_no_more() -> None:
    x, _ = samples(small_world(), 40_000)
    x = x + 3
    noise = featureless(x, seed=0)
    torch.testing.assert_close(noise.mean(0), x.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(noise.T), torch.cov(x.T), rtol=0, atol=0.01)
    kurtosis = ((noise - noise.mean(0)) ** 4).mean(0) / noise.var(0) ** 2
    assert float(kurtosis.mean()) == pytest.approx(3, abs=0.05)
    assert torch.equal(noise, featureless(x, seed=0))
    assert not torch.equal(noise, featureless(x, seed=1))


def test_samples_in_fewer_dimensions_than_they_have() -> None:
    x = torch.randn(500, 3) @ torch.randn(3, 10)
    assert torch.linalg.matrix_rank(featureless(x, 0) - featureless(x, 0).mean(0), rtol=1e-4) == 3


def test_features_cost_less_than_noise() -> None:
    x, _ = samples(small_world(), 8_192)
    directions = true_directions(small_world())
    here = measure_presence(directions, x).cost
    assert cost_on_noise(directions, x, seed=0) > 5 * here
    # And on noise, as much as on other noise.
    noise = featureless(x, seed=1)
    there = measure_presence(directions, noise).cost
    assert cost_on_noise(directions, noise, seed=0) == pytest.approx(there, rel=0.02)
