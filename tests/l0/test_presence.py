"""Counting present directions, where the answer is known, and its control on noise."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sparse_but_wrong.l0.dictionaries import Directions
from sparse_but_wrong.l0.presence import cost_on_noise, count_present, featureless
from tests.l0.worlds import known, unit


def test_by_hand() -> None:
    # Two directions; the first is in both samples, the second in one: 1.5 per sample.
    directions = Directions(torch.eye(2), torch.tensor([5.0, -5.0]), penalty=1e-4)
    x = torch.tensor([[1.0, 0.0], [1.1, 0.9]]).repeat(50, 1) + directions.bias
    presence = count_present(directions, x)
    assert presence.l0 == pytest.approx(1.5, abs=1e-6)
    assert presence.above_cut == 1.5
    assert presence.ambiguity == pytest.approx(0, abs=1e-6)
    assert presence.residual < 1e-6
    assert presence.n_directions == 2
    # The counts of the samples are 1 and 2.
    assert presence.standard_error == pytest.approx(math.sqrt(0.25 / 99), rel=1e-3)


# Wide magnitudes reach down to where codes are noise; what is there has to be extrapolated.
@pytest.mark.parametrize(("sigma", "rel"), [(0.15, 0.003), (0.5, 0.015)])
def test_true_directions_count_the_truth(sigma: float, rel: float) -> None:
    true, x, truth = known(10_000, sigma=sigma)
    presence = count_present(true, x)
    assert presence.l0 == pytest.approx(truth, rel=rel)
    assert presence.score < 0.03


def test_with_wide_magnitudes_what_lies_below_the_cut_is_counted() -> None:
    # A larger penalty hides small magnitudes.
    true, x, truth = known(10_000, penalty=0.05, sigma=0.5)
    presence = count_present(true, x)
    assert presence.above_cut < truth * 0.995
    assert abs(presence.l0 - truth) < abs(presence.above_cut - truth)


def test_directions_that_are_mixed_or_too_few_score_worse() -> None:
    true, x, _ = known(5_000)
    mixed = torch.cat([unit(true.rows[:10] + 0.4 * true.rows[10:]), true.rows[10:]])
    right, wrong, missing = (
        count_present(replace(true, rows=rows), x) for rows in (true.rows, mixed, true.rows[1:])
    )
    assert wrong.score > 5 * right.score
    assert wrong.cost > right.cost
    assert missing.residual > 0.02
    assert right.residual < 0.002


def test_neighbours_that_are_alike_tell_less() -> None:
    # The same hundred samples in a row, and mixed; half of them hold the second direction.
    directions = Directions(torch.eye(2), torch.zeros(2), penalty=1e-4)
    alike = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).repeat_interleave(100, 0).repeat(32, 1)
    mixed = alike[torch.randperm(6_400, generator=torch.Generator().manual_seed(0))]
    apart, together = (count_present(directions, x).standard_error for x in (mixed, alike))
    expected = math.sqrt(0.25 / 6_400)
    assert apart == pytest.approx(expected, rel=0.3)
    assert apart >= 0.999 * expected
    # Of the 64 blocks, each of which holds one kind.
    assert together == pytest.approx(math.sqrt(0.25 / 63), rel=1e-3)


def test_featureless_samples_have_mean_and_covariance_and_no_more() -> None:
    x = known(40_000).x + 3
    batches = featureless(x, 40_000, seed=0)
    noise = next(batches)
    torch.testing.assert_close(noise.mean(0), x.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(noise.T), torch.cov(x.T), rtol=0, atol=0.01)
    kurtosis = ((noise - noise.mean(0)) ** 4).mean(0) / noise.var(0) ** 2
    assert float(kurtosis.mean()) == pytest.approx(3, abs=0.05)
    assert torch.equal(noise, next(featureless(x, 40_000, seed=0)))
    for other in (next(batches), next(featureless(x, 40_000, seed=1))):
        assert not torch.equal(noise, other)


def test_samples_in_fewer_dimensions_than_they_have() -> None:
    x = torch.randn(500, 3) @ torch.randn(3, 10)
    noise = next(featureless(x, 400, seed=0))
    assert noise.shape == (400, 10)
    assert torch.linalg.matrix_rank(noise - noise.mean(0), rtol=1e-4) == 3


def test_features_cost_less_than_noise() -> None:
    true, x, _ = known()
    assert cost_on_noise(true, x, seed=0) > 5 * count_present(true, x).cost
    # And on noise, as much as on other noise.
    noise = next(featureless(x, len(x), seed=1))
    there = count_present(true, noise).cost
    assert cost_on_noise(true, noise, seed=0) == pytest.approx(there, rel=0.02)
