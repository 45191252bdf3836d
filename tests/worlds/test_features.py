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


def decaying_correlations(n_features: int) -> Tensor:
    """C_ij = (−0.6)^|i−j|: positive definite, well conditioned, no zeros."""
    index = torch.arange(n_features)
    return torch.tensor(-0.6) ** (index[:, None] - index).abs()


def notebook_probabilities() -> Tensor:
    return 0.345 * (50 - torch.arange(50) - 1) / 50 + 0.05


@pytest.fixture
def no_shape_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside pytest nobody checks shapes before our own messages."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


class TestOneValueForAllFeatures:
    def test_a_tensor_without_dimensions_holds_for_every_feature(self) -> None:
        probabilities = notebook_probabilities()
        one = FeatureSampler(probabilities, torch.tensor(0.15), torch.tensor(2.0))
        each = FeatureSampler(probabilities, torch.full((50,), 0.15), torch.full((50,), 2.0))
        first, second = (torch.Generator().manual_seed(0) for _ in range(2))
        assert torch.equal(one.sample(100, first), each.sample(100, second))


class TestPublishedBatches:
    @pytest.mark.parametrize("batch_size", [1, 3, 1024])
    def test_same_seed_same_batches_bit_for_bit(self, batch_size: int) -> None:
        probabilities = notebook_probabilities()
        std = torch.linspace(0, 2, 50)
        mean = torch.linspace(-1, 3, 50)
        matrix = decaying_correlations(50)
        sampler = FeatureSampler(probabilities, std, mean, matrix)
        torch.manual_seed(5)
        expected = [published_batch(batch_size, probabilities, std, mean, matrix) for _ in range(3)]
        torch.manual_seed(5)
        for batch in expected:
            assert torch.equal(sampler.sample(batch_size), batch)

    def test_thresholds_bit_for_bit(self) -> None:
        # A batch seldom falls between two neighbouring floats, so compare the constants too.
        probabilities = torch.cat([torch.linspace(0, 1, 501), torch.tensor([1e-12, 1e-6])])
        sampler = FeatureSampler(probabilities, correlation_matrix=torch.eye(503))
        expected = torch.tensor([float(norm.ppf(1 - p)) for p in probabilities.tolist()])
        assert sampler._thresholds is not None
        assert torch.equal(sampler._thresholds, expected)
        assert expected[0] == math.inf
        assert expected[500] == -math.inf

    def test_the_notebook_world_bit_for_bit(self) -> None:
        matrix = generate_random_correlation_matrix(
            50, correlation_strength_range=(0.3, 0.9), seed=42
        )
        if torch.linalg.cholesky_ex(matrix).info:
            pytest.skip("the published code fails here: no float32 Cholesky factor on this machine")
        probabilities = notebook_probabilities()
        std = torch.full((50,), 0.15)
        sampler = FeatureSampler(probabilities, std, correlation_matrix=matrix)
        torch.manual_seed(0)
        expected = published_batch(1024, probabilities, std, torch.ones(50), matrix)
        torch.manual_seed(0)
        assert torch.equal(sampler.sample(1024), expected)

    def test_independent_firing_uses_bernoulli(self) -> None:
        probabilities = notebook_probabilities()
        sampler = FeatureSampler(probabilities, torch.full((50,), 0.15))
        torch.manual_seed(3)
        firings = torch.bernoulli(probabilities.unsqueeze(0).expand(64, -1))
        expected = firings * torch.relu(1 + torch.randn(64, 50) * 0.15)
        torch.manual_seed(3)
        assert torch.equal(sampler.sample(64), expected)

    def test_magnitudes_are_drawn_even_without_spread(self) -> None:
        # Otherwise every later batch of the same seed would differ from the published ones.
        sampler = FeatureSampler(torch.full((4,), 0.5), correlation_matrix=torch.eye(4))
        torch.manual_seed(1)
        sampler.sample(8)
        after = torch.get_rng_state()
        torch.manual_seed(1)
        torch.randn(8, 4)
        torch.randn(8, 4)
        assert torch.equal(torch.get_rng_state(), after)


class TestSample:
    def test_generator_decides_and_leaves_the_global_one_alone(self) -> None:
        sampler = FeatureSampler(torch.full((4,), 0.5), torch.ones(4))
        before = torch.get_rng_state()
        first = sampler.sample(16, torch.Generator().manual_seed(7))
        again = sampler.sample(16, torch.Generator().manual_seed(7))
        other = sampler.sample(16, torch.Generator().manual_seed(8))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_generator_gives_what_the_global_one_would(self) -> None:
        sampler = FeatureSampler(
            torch.full((4,), 0.5), torch.ones(4), correlation_matrix=decaying_correlations(4)
        )
        torch.manual_seed(11)
        assert torch.equal(
            sampler.sample(16), sampler.sample(16, torch.Generator().manual_seed(11))
        )

    @pytest.mark.parametrize("matrix", [None, torch.eye(3)], ids=["independent", "copula"])
    def test_probabilities_zero_and_one(self, matrix: Tensor | None) -> None:
        sampler = FeatureSampler(torch.tensor([0.0, 1.0, 0.5]), correlation_matrix=matrix)
        batch = sampler.sample(1000, torch.Generator().manual_seed(0))
        assert batch[:, 0].eq(0).all()
        assert batch[:, 1].eq(1).all()
        assert 0 < batch[:, 2].sum() < 1000

    def test_never_negative(self) -> None:
        sampler = FeatureSampler(torch.ones(2), torch.tensor([1.0, 1.0]), torch.tensor([-5.0, 0.0]))
        batch = sampler.sample(1000, torch.Generator().manual_seed(0))
        # Mean −5 at σ = 1 is positive once in 3 million draws; mean 0 is positive in half of them.
        assert batch[:, 0].eq(0).all()
        assert batch.min() == 0
        assert float(batch[:, 1].gt(0).float().mean()) == pytest.approx(
            0.5, abs=4 * 0.5 / 1000**0.5
        )

    def test_true_l0_and_magnitudes_of_the_notebook_world(self) -> None:
        sampler = FeatureSampler(
            notebook_probabilities(),
            torch.full((50,), 0.15),
            correlation_matrix=generate_random_correlation_matrix(
                50, correlation_strength_range=(0.3, 0.9), seed=42
            ),
        )
        batch = sampler.sample(100_000, torch.Generator().manual_seed(0))
        l0 = (batch > 0).float().sum(dim=1)
        # Σp = 10.9525, four standard errors.
        assert float(l0.mean()) == pytest.approx(10.9525, abs=4 * float(l0.std()) / 100_000**0.5)
        fired = batch[batch > 0]
        assert float(fired.mean()) == pytest.approx(1, abs=4 * 0.15 / fired.numel() ** 0.5)
        assert float(fired.std()) == pytest.approx(0.15, abs=1e-3)

    def test_latent_correlation_is_the_matrix(self) -> None:
        # At p = 1/2 a correlation of firings φ means a latent correlation sin(πφ/2).
        matrix = decaying_correlations(4)
        sampler = FeatureSampler(torch.full((4,), 0.5), correlation_matrix=matrix)
        firings = sampler.sample_firings(200_000, torch.Generator().manual_seed(0))
        latent = torch.sin(torch.corrcoef(firings.T) * math.pi / 2)
        # Standard error at most (π/2)/√n = 0.0035; four of them.
        assert torch.allclose(latent, matrix, atol=0.014)

    def test_keeps_copies(self) -> None:
        probabilities, std, mean = torch.ones(2), torch.zeros(2), torch.ones(2)
        sampler = FeatureSampler(probabilities, std, mean)
        probabilities.zero_()
        std.fill_(9)
        mean.fill_(9)
        assert sampler.sample(3).eq(1).all()

    def test_float64_input_gives_float32_batches(self) -> None:
        sampler = FeatureSampler(
            torch.full((3,), 0.5, dtype=torch.float64),
            torch.ones(3, dtype=torch.float64),
            correlation_matrix=torch.eye(3, dtype=torch.float64),
        )
        assert sampler.sample(2).dtype == torch.float32

    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_refuses_an_empty_batch(self, batch_size: int) -> None:
        with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
            FeatureSampler(torch.ones(2)).sample(batch_size)

    def test_refuses_a_generator_of_another_device(self) -> None:
        # "meta" stands for any device that is not the generator's.
        sampler = FeatureSampler(torch.ones(2), device="meta")
        with pytest.raises(ValueError, match=r"lives on 'cpu' .* draws on 'meta'"):
            sampler.sample(2, torch.Generator())


class TestFactor:
    def test_identical_features_fire_together(self) -> None:
        # Singular: no Cholesky factor in any precision.
        matrix = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        sampler = FeatureSampler(torch.tensor([0.3, 0.3, 0.3]), correlation_matrix=matrix)
        firings = sampler.sample_firings(10_000, torch.Generator().manual_seed(0))
        # The factor is right to 1e-7, so a draw within that of the threshold may differ.
        assert float((firings[:, 0] != firings[:, 1]).float().mean()) <= 1e-3
        assert float(firings[:, 0].mean()) == pytest.approx(0.3, abs=4 * 0.46 / 100)
        assert float((firings[:, 0] != firings[:, 2]).float().mean()) > 0.3

    def test_float64_where_float32_is_not_enough(self) -> None:
        # 1 − 1e-9 rounds to 1 in float32. At p = 1/2, P(differ) = acos(c)/π = 1.4e-5.
        matrix = torch.full((2, 2), 1 - 1e-9, dtype=torch.float64).fill_diagonal_(1)
        assert torch.linalg.cholesky_ex(matrix.float()).info != 0
        sampler = FeatureSampler(torch.full((2,), 0.5), correlation_matrix=matrix)
        firings = sampler.sample_firings(10_000, torch.Generator().manual_seed(0))
        assert float((firings[:, 0] != firings[:, 1]).float().mean()) <= 1e-3

    def test_where_cholesky_fails_batches_hardly_differ(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        matrix = decaying_correlations(50)
        probabilities = notebook_probabilities()
        expected = FeatureSampler(probabilities, correlation_matrix=matrix).sample(
            1000, torch.Generator().manual_seed(0)
        )
        failure = (torch.full((50, 50), math.nan), torch.tensor(1))
        monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda _: failure)
        batch = FeatureSampler(probabilities, correlation_matrix=matrix).sample(
            1000, torch.Generator().manual_seed(0)
        )
        # The two factors agree to 1e-6; the density of g at a threshold is at most 0.4.
        assert int((batch != expected).sum()) <= 3

    def test_the_nearly_singular_notebook_matrix_without_cholesky(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        failure = (torch.full((50, 50), math.nan), torch.tensor(1))
        matrix = generate_random_correlation_matrix(
            50, correlation_strength_range=(0.3, 0.9), seed=42
        )
        monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda _: failure)
        sampler = FeatureSampler(torch.full((50,), 0.5), correlation_matrix=matrix)
        firings = sampler.sample_firings(100_000, torch.Generator().manual_seed(0))
        latent = torch.sin(torch.corrcoef(firings.T) * math.pi / 2)
        # Standard error at most (π/2)/√n = 0.005; five of them, over 1225 pairs.
        assert torch.allclose(latent, matrix, atol=0.025)

    def test_rounding_below_zero_is_accepted(self) -> None:
        # Eigenvalues 1 ± c: the smaller is −5e-6.
        matrix = torch.tensor([[1, 1 + 5e-6], [1 + 5e-6, 1]], dtype=torch.float64)
        assert FeatureSampler(torch.full((2,), 0.5), correlation_matrix=matrix).n_features == 2


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
@pytest.mark.usefixtures("no_shape_checks")
def test_what_cannot_be_drawn_is_named(name: str, value: Any, message: str) -> None:
    arguments: dict[str, Any] = {P: torch.ones(2), name: torch.tensor(value)}
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        FeatureSampler(**arguments)


class TestGetTrainingBatch:
    probabilities = torch.tensor([0.1, 0.4, 0.8])
    std = torch.tensor([0.0, 0.15, 0.5])
    mean = torch.tensor([1.0, 2.0, 0.5])
    matrix = torch.tensor([[1.0, 0.4, -0.4], [0.4, 1.0, 0.0], [-0.4, 0.0, 1.0]])

    @pytest.mark.parametrize("correlated", [True, False])
    def test_is_the_samplers_draw_from_the_global_generator(self, correlated: bool) -> None:
        matrix = self.matrix if correlated else None
        sampler = FeatureSampler(self.probabilities, self.std, self.mean, matrix)
        torch.manual_seed(2)
        expected = [sampler.sample(32) for _ in range(2)]
        torch.manual_seed(2)
        for batch in expected:
            drawn = get_training_batch(
                32, self.probabilities, self.std, self.mean, "cpu", correlation_matrix=matrix
            )
            assert torch.equal(drawn, batch)

    def test_defaults_are_magnitude_one(self) -> None:
        batch = get_training_batch(1000, self.probabilities, device="cpu")
        assert set(batch.unique().tolist()) == {0.0, 1.0}

    def test_correlated_features_are_the_first_half_of_the_draw(self) -> None:
        torch.manual_seed(4)
        batch = get_training_batch(
            256, self.probabilities, device="cpu", correlation_matrix=self.matrix
        )
        torch.manual_seed(4)
        firings = get_correlated_features(256, self.probabilities, self.matrix, "cpu")
        assert set(firings.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(firings, batch)

    def test_modify_sees_firings_before_magnitudes(self) -> None:
        seen: list[Tensor] = []

        def silence_the_last(firings: Tensor) -> Tensor:
            seen.append(firings.clone())
            firings[:, 2] = 0
            return firings.bool()

        arguments = (256, self.probabilities, self.std, self.mean, "cpu")
        torch.manual_seed(6)
        plain = get_training_batch(*arguments, correlation_matrix=self.matrix)
        torch.manual_seed(6)
        modified = get_training_batch(
            *arguments, modify_firing_features=silence_the_last, correlation_matrix=self.matrix
        )
        assert torch.equal(seen[0][:, :2] > 0, plain[:, :2] > 0)
        assert set(seen[0].unique().tolist()) == {0.0, 1.0}
        assert torch.equal(modified, plain * torch.tensor([1.0, 1.0, 0.0]))

    def test_refuses_a_modification_of_another_shape(self) -> None:
        with pytest.raises(ValueError, match=r"returned shape \[8, 1\] for firings .*\[8, 3\]"):
            get_training_batch(
                8,
                self.probabilities,
                device="cpu",
                modify_firing_features=lambda firings: firings[:, :1],
            )

    def test_bad_input_is_refused_on_every_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"firing_probabilities\[0\] is 2"):
                get_training_batch(8, torch.tensor([2.0]), device="cpu")
            with pytest.raises(ValueError, match=r"correlation_matrix has shape \[3, 3\]"):
                get_correlated_features(8, torch.tensor([0.5]), self.matrix, "cpu")


class TestMemory:
    """What is constant is remembered between calls: by content, and not for ever."""

    def test_factorises_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module._sampler_of_content.cache_clear()
        made: list[FeatureSampler] = []

        class Counting(FeatureSampler):
            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, **named)
                made.append(self)

        monkeypatch.setattr(module, "FeatureSampler", Counting)
        for _ in range(5):
            # New tensors of the same content: the same world.
            get_training_batch(
                4, torch.full((3,), 0.5), device="cpu", correlation_matrix=torch.eye(3)
            )
        assert len(made) == 1
        module._sampler_of_content.cache_clear()

    def test_a_tensor_changed_in_place_is_a_new_world(self) -> None:
        probabilities, std, mean = torch.ones(2), torch.zeros(2), torch.ones(2)
        draw = partial(get_training_batch, 50, probabilities, std, mean, "cpu")
        assert draw().eq(1).all()
        mean.fill_(3)
        assert draw().eq(3).all()
        std.fill_(0.1)
        assert draw().unique().numel() > 10
        probabilities.zero_()
        assert draw().eq(0).all()

    def test_same_bytes_of_another_shape_or_type_are_another_world(self) -> None:
        zeros = torch.zeros(4, dtype=torch.float32)
        assert get_training_batch(2, zeros, device="cpu").shape == (2, 4)
        assert get_training_batch(2, zeros.view(torch.float64), device="cpu").shape == (2, 2)

    def test_bfloat16_is_understood(self) -> None:
        assert get_training_batch(2, torch.ones(3, dtype=torch.bfloat16), device="cpu").eq(1).all()

    def test_forgets(self) -> None:
        for index in range(40):
            get_training_batch(1, torch.full((2,), index / 40), device="cpu")
        assert module._sampler_of_content.cache_info().currsize <= 8
