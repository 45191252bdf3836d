"""Batches of features: bit for bit the published ones, and what they are in distribution."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jaxtyping
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from sparse_but_wrong.worlds import features as module
from sparse_but_wrong.worlds.correlations import generate_random_correlation_matrix
from sparse_but_wrong.worlds.features import (
    FeatureSampler,
    get_correlated_features,
    get_training_batch,
)

# The world of the published notebook; its matrix is nearly singular.
P50 = 0.345 * (50 - torch.arange(50) - 1) / 50 + 0.05
STD50 = torch.full((50,), 0.15)
C50 = generate_random_correlation_matrix(50, correlation_strength_range=(0.3, 0.9), seed=42)
HALF4 = torch.full((4,), 0.5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decaying_correlations(n_features: int) -> Tensor:
    """C_ij = (−0.6)^|i−j|: positive definite, well conditioned, no zeros."""
    index = torch.arange(n_features)
    return torch.tensor(-0.6) ** (index[:, None] - index).abs()


def published_batch(
    batch_size: int, probabilities: Tensor, std: Tensor, mean: Tensor, correlation_matrix: Tensor
) -> Tensor:
    """The slow oracle: a distribution object and scipy once per feature, on every batch."""
    n_features = probabilities.shape[0]
    distribution = torch.distributions.MultivariateNormal(
        torch.zeros(n_features), covariance_matrix=correlation_matrix
    )
    latent = distribution.sample((batch_size,))
    thresholds = torch.tensor([float(norm.ppf(1 - p)) for p in probabilities.tolist()])
    firings = (latent > thresholds).float()
    magnitudes = torch.relu(mean + torch.randn(batch_size, n_features) * std)
    return firings * magnitudes


@pytest.mark.parametrize(
    ("batch_size", "std", "mean", "matrix"),
    [
        *((n, torch.linspace(0, 2, 50), torch.linspace(-1, 3, 50), None) for n in (1, 3, 1024)),
        (1024, STD50, torch.ones(50), C50),
    ],
)
def test_same_seed_same_batches_as_published_bit_for_bit(
    batch_size: int, std: Tensor, mean: Tensor, matrix: Tensor | None
) -> None:
    matrix = decaying_correlations(50) if matrix is None else matrix
    if torch.linalg.cholesky_ex(matrix).info:
        pytest.skip("the published code fails here: no float32 Cholesky factor on this machine")
    sampler = FeatureSampler(P50, std, mean, matrix)
    torch.manual_seed(5)
    expected = [published_batch(batch_size, P50, std, mean, matrix) for _ in range(3)]
    torch.manual_seed(5)
    for batch in expected:
        assert torch.equal(sampler.sample(batch_size), batch)


def test_thresholds_bit_for_bit() -> None:
    # A batch seldom falls between two neighbouring floats, so compare the constants too.
    probabilities = torch.cat([torch.linspace(0, 1, 501), torch.tensor([1e-12, 1e-6])])
    sampler = FeatureSampler(probabilities, correlation_matrix=torch.eye(503))
    expected = torch.tensor([float(norm.ppf(1 - p)) for p in probabilities.tolist()])
    assert torch.equal(sampler._thresholds, expected)
    assert (expected[0], expected[500]) == (math.inf, -math.inf)


def test_independent_firing_uses_bernoulli() -> None:
    torch.manual_seed(3)
    firings = torch.bernoulli(P50.unsqueeze(0).expand(64, -1))
    expected = firings * torch.relu(1 + torch.randn(64, 50) * 0.15)
    torch.manual_seed(3)
    assert torch.equal(FeatureSampler(P50, STD50).sample(64), expected)


def test_magnitudes_are_drawn_even_without_spread() -> None:
    # Otherwise every later batch of the same seed would differ from the published ones.
    torch.manual_seed(1)
    FeatureSampler(HALF4, correlation_matrix=torch.eye(4)).sample(8)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    torch.randn(8, 4)
    torch.randn(8, 4)
    assert torch.equal(torch.get_rng_state(), after)


def test_one_value_holds_for_every_feature() -> None:
    one = FeatureSampler(P50, torch.tensor(0.15), torch.tensor(2.0))
    each = FeatureSampler(P50, STD50, torch.full((50,), 2.0))
    assert torch.equal(one.sample(100, seeded()), each.sample(100, seeded()))


def test_a_generator_decides_as_the_global_one_would_and_leaves_it_alone() -> None:
    sampler = FeatureSampler(HALF4, torch.ones(4), correlation_matrix=decaying_correlations(4))
    torch.manual_seed(7)
    expected = sampler.sample(16)
    before = torch.get_rng_state()
    assert torch.equal(sampler.sample(16, seeded(7)), expected)
    assert not torch.equal(sampler.sample(16, seeded(8)), expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("matrix", [None, torch.eye(3)], ids=["independent", "copula"])
def test_probabilities_zero_and_one(matrix: Tensor | None) -> None:
    sampler = FeatureSampler(torch.tensor([0.0, 1.0, 0.5]), correlation_matrix=matrix)
    batch = sampler.sample(1000, seeded())
    assert batch[:, 0].eq(0).all()
    assert batch[:, 1].eq(1).all()
    assert 0 < batch[:, 2].sum() < 1000


def test_never_negative() -> None:
    batch = FeatureSampler(torch.ones(2), torch.ones(2), torch.tensor([-5.0, 0.0])).sample(
        1000, seeded()
    )
    # Mean −5 at σ = 1 is positive once in 3 million draws; mean 0 is positive in half of them.
    assert batch[:, 0].eq(0).all()
    assert batch.min() == 0
    assert float(batch[:, 1].gt(0).float().mean()) == pytest.approx(0.5, abs=4 * 0.5 / 1000**0.5)


def test_true_l0_and_magnitudes_of_the_notebook_world() -> None:
    batch = FeatureSampler(P50, STD50, correlation_matrix=C50).sample(100_000, seeded())
    l0, fired = (batch > 0).float().sum(dim=1), batch[batch > 0]
    # Σp = 10.9525, four standard errors.
    assert float(l0.mean()) == pytest.approx(10.9525, abs=4 * float(l0.std()) / 100_000**0.5)
    assert float(fired.mean()) == pytest.approx(1, abs=4 * 0.15 / fired.numel() ** 0.5)
    assert float(fired.std()) == pytest.approx(0.15, abs=1e-3)


def no_cholesky(_: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full((50, 50), math.nan), torch.tensor(1)


@pytest.mark.parametrize(
    ("matrix", "n", "tolerance", "cholesky"),
    [
        # Standard error at most (π/2)/√n = 0.0035; four of them.
        (decaying_correlations(4), 200_000, 0.014, True),
        # 0.005; five of them, over 1225 pairs.
        (C50, 100_000, 0.025, False),
    ],
)
def test_latent_correlation_is_the_matrix(
    matrix: Tensor, n: int, tolerance: float, cholesky: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cholesky:
        monkeypatch.setattr(torch.linalg, "cholesky_ex", no_cholesky)
    sampler = FeatureSampler(torch.full((len(matrix),), 0.5), correlation_matrix=matrix)
    # At p = 1/2 a correlation of firings φ means a latent correlation sin(πφ/2).
    latent = torch.sin(torch.corrcoef(sampler.sample_firings(n, seeded()).T) * math.pi / 2)
    assert torch.allclose(latent, matrix, atol=tolerance)


def test_where_cholesky_fails_batches_hardly_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    make = partial(FeatureSampler, P50, correlation_matrix=decaying_correlations(50))
    expected = make().sample(1000, seeded())
    monkeypatch.setattr(torch.linalg, "cholesky_ex", no_cholesky)
    # The two factors agree to 1e-6; the density of g at a threshold is at most 0.4.
    assert int((make().sample(1000, seeded()) != expected).sum()) <= 3


def test_identical_features_fire_together() -> None:
    # Singular: no Cholesky factor in any precision.
    matrix = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    sampler = FeatureSampler(torch.tensor([0.3, 0.3, 0.3]), correlation_matrix=matrix)
    firings = sampler.sample_firings(10_000, seeded())
    # The factor is right to 1e-7, so a draw within that of the threshold may differ.
    assert float((firings[:, 0] != firings[:, 1]).float().mean()) <= 1e-3
    assert float(firings[:, 0].mean()) == pytest.approx(0.3, abs=4 * 0.46 / 100)
    assert float((firings[:, 0] != firings[:, 2]).float().mean()) > 0.3


def test_float64_where_float32_is_not_enough() -> None:
    # 1 − 1e-9 rounds to 1 in float32. At p = 1/2, P(differ) = acos(c)/π = 1.4e-5.
    matrix = torch.full((2, 2), 1 - 1e-9, dtype=torch.float64).fill_diagonal_(1)
    assert torch.linalg.cholesky_ex(matrix.float()).info != 0
    sampler = FeatureSampler(torch.full((2,), 0.5).double(), correlation_matrix=matrix)
    firings = sampler.sample_firings(10_000, seeded())
    assert float((firings[:, 0] != firings[:, 1]).float().mean()) <= 1e-3
    assert sampler.sample(2).dtype == torch.float32
    # Rounding below zero is accepted: the eigenvalues are 1 ± c, the smaller is −5e-6.
    matrix = torch.tensor([[1, 1 + 5e-6], [1 + 5e-6, 1]], dtype=torch.float64)
    assert FeatureSampler(torch.full((2,), 0.5), correlation_matrix=matrix).n_features == 2


def test_keeps_copies() -> None:
    tensors = torch.ones(2), torch.zeros(2), torch.ones(2)
    sampler = FeatureSampler(*tensors)
    for tensor in tensors:
        tensor.fill_(0.9)
    assert sampler.sample(3).eq(1).all()


def test_draws_that_cannot_be_are_refused() -> None:
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
            FeatureSampler(torch.ones(2)).sample(batch_size)
    # "meta" stands for any device that is not the generator's.
    with pytest.raises(ValueError, match=r"lives on 'cpu' .* draws on 'meta'"):
        FeatureSampler(torch.ones(2), device="meta").sample(2, torch.Generator())


P, STD, MEAN, C = (
    *("firing_probabilities", "std_firing_magnitudes", "mean_firing_magnitudes"),
    "correlation_matrix",
)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (P, [0.5, -0.1], r"\[1\] is -0\.1"),
        (P, [1.5, 0.5], r"\[0\] is 1\.5"),
        (P, [0.5, math.nan], r"\[1\] is nan"),
        (P, [], r"shape \[0\]"),
        (P, [[0.5]], r"shape \[1, 1\]"),
        (STD, [0.1, -0.5], r"\[1\] is -0\.5"),
        (STD, -1.0, r"\[0\] is -1"),
        (STD, [1.0], r"shape \[1\].* 2 features"),
        (MEAN, [1.0], r"shape \[1\].* 2 features"),
        (MEAN, [1.0, math.inf], r"\[1\] is inf"),
        (C, [[0.0] * 3] * 3, r"shape \[3, 3\].*\[2, 2\]"),
        (C, [[1.0, math.nan], [0.0, 1.0]], r"\[0, 1\] is nan"),
        (C, [[1.0, 0.0], [0.0, 2.0]], r"\[1, 1\] is 2; .*covariance"),
        (C, [[1.0, 0.3], [0.2, 1.0]], r"\[0, 1\] is 0\.3; .*not symmetric"),
        (C, [[1.0, -1.5], [-1.5, 1.0]], r"smallest eigenvalue is -0\.5.*create_correlation"),
    ],
)
def test_what_cannot_be_drawn_is_named(
    name: str, value: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Outside pytest nobody checks shapes before our own messages.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    arguments: dict[str, Any] = {P: torch.ones(2), name: torch.tensor(value)}
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        FeatureSampler(**arguments)
    for _ in range(2):  # on every call
        with pytest.raises(ValueError, match=rf"{name}.*{message}"):
            get_training_batch(8, **arguments, device="cpu")


P3, STD3, MEAN3 = (torch.tensor(v) for v in ([0.1, 0.4, 0.8], [0.0, 0.15, 0.5], [1.0, 2.0, 0.5]))
C3 = torch.tensor([[1.0, 0.4, -0.4], [0.4, 1.0, 0.0], [-0.4, 0.0, 1.0]])
draw3 = partial(get_training_batch, 256, P3, device="cpu")


@pytest.mark.parametrize("matrix", [None, C3], ids=["independent", "correlated"])
def test_a_training_batch_is_the_samplers_draw_from_the_global_generator(
    matrix: Tensor | None,
) -> None:
    sampler = FeatureSampler(P3, STD3, MEAN3, matrix)
    torch.manual_seed(2)
    expected = [sampler.sample(256) for _ in range(2)]
    torch.manual_seed(2)
    for batch in expected:
        drawn = get_training_batch(256, P3, STD3, MEAN3, "cpu", correlation_matrix=matrix)
        assert torch.equal(drawn, batch)


def test_correlated_features_are_the_first_half_of_the_draw() -> None:
    torch.manual_seed(4)
    batch = draw3(correlation_matrix=C3)  # of magnitude 1 by default
    torch.manual_seed(4)
    firings = get_correlated_features(256, P3, C3, "cpu")
    assert set(firings.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(firings, batch)


def test_modify_sees_firings_before_magnitudes() -> None:
    seen: list[Tensor] = []

    def silence_the_last(firings: Tensor) -> Tensor:
        seen.append(firings.clone())
        firings[:, 2] = 0
        return firings.bool()

    draw = partial(get_training_batch, 256, P3, STD3, MEAN3, "cpu", correlation_matrix=C3)
    torch.manual_seed(6)
    plain = draw()
    torch.manual_seed(6)
    modified = draw(modify_firing_features=silence_the_last)
    assert torch.equal(seen[0][:, :2] > 0, plain[:, :2] > 0)
    assert set(seen[0].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(modified, plain * torch.tensor([1.0, 1.0, 0.0]))
    with pytest.raises(ValueError, match=r"returned shape \[256, 1\] for firings .*\[256, 3\]"):
        draw3(modify_firing_features=lambda firings: firings[:, :1])


def test_worlds_are_remembered_by_content_and_not_for_ever() -> None:
    module._sampler_of_content.cache_clear()
    for _ in range(5):
        # New tensors of the same content: the same world.
        get_training_batch(4, torch.full((3,), 0.5), device="cpu", correlation_matrix=torch.eye(3))
    assert module._sampler_of_content.cache_info().misses == 1
    for index in range(40):
        get_training_batch(1, torch.full((2,), index / 40), device="cpu")
    assert module._sampler_of_content.cache_info().currsize <= 8


def test_a_tensor_changed_in_place_is_a_new_world() -> None:
    probabilities, std, mean = torch.ones(2), torch.zeros(2), torch.ones(2)
    draw = partial(get_training_batch, 50, probabilities, std, mean, "cpu")
    assert draw().eq(1).all()
    mean.fill_(3)
    assert draw().eq(3).all()
    std.fill_(0.1)
    assert draw().unique().numel() > 10
    probabilities.zero_()
    assert draw().eq(0).all()


def test_same_bytes_of_another_shape_or_type_are_another_world() -> None:
    zeros = torch.zeros(4, dtype=torch.float32)
    assert get_training_batch(2, zeros, device="cpu").shape == (2, 4)
    assert get_training_batch(2, zeros.view(torch.float64), device="cpu").shape == (2, 2)
    assert get_training_batch(2, torch.ones(3, dtype=torch.bfloat16), device="cpu").eq(1).all()
