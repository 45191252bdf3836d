from __future__ import annotations

import json
import math
import random
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_but_wrong.worlds import training_batch as module
from sparse_but_wrong.worlds.sampler import FeatureSampler
from sparse_but_wrong.worlds.training_batch import (
    create_correlation_matrix,
    generate_random_correlation_matrix,
    get_correlated_features,
    get_training_batch,
)


class TestGenerateRandomCorrelationMatrix:
    @pytest.mark.parametrize("entry", ["world", "second_check"])
    def test_reproduces_the_published_matrices(self, data_dir: Path, entry: str) -> None:
        reference = json.loads((data_dir / "toy_world_seed42.json").read_text())[entry]
        matrix = generate_random_correlation_matrix(
            num_features=reference["num_features"],
            positive_ratio=reference["positive_ratio"],
            correlation_strength_range=tuple(reference["correlation_strength_range"]),
            sparsity=reference["sparsity"],
            seed=reference["seed"],
        )
        assert torch.allclose(matrix, torch.tensor(reference["matrix"]), rtol=0, atol=1e-5)

    def test_defaults(self) -> None:
        explicit = generate_random_correlation_matrix(
            12, positive_ratio=0.5, correlation_strength_range=(0.3, 0.8), sparsity=0.3, seed=1
        )
        assert torch.equal(generate_random_correlation_matrix(12, seed=1), explicit)

    def test_two_features_by_hand(self) -> None:
        # One pair, kept, negative; one uniform after the sample of the pairs; nothing to clip.
        rng = random.Random(9)
        rng.sample([(0, 1)], 1)
        strength = -rng.uniform(0.3, 0.8)
        matrix = generate_random_correlation_matrix(2, positive_ratio=0, sparsity=0, seed=9)
        expected = torch.tensor([[1, strength], [strength, 1]])
        assert torch.allclose(matrix, expected, rtol=0, atol=1e-6)

    def test_is_a_float32_correlation_matrix(self) -> None:
        matrix = generate_random_correlation_matrix(30, seed=0)
        assert matrix.shape == (30, 30)
        assert matrix.dtype == torch.float32
        assert torch.equal(matrix, matrix.T)
        assert matrix.diagonal().eq(1).all()
        assert float(torch.linalg.eigvalsh(matrix.double())[0]) > -1e-6

    def test_seed_decides_and_none_differs_each_time(self) -> None:
        make = partial(generate_random_correlation_matrix, 8)
        assert torch.equal(make(seed=3), make(seed=3))
        assert not torch.equal(make(seed=3), make(seed=4))
        random.seed(0)
        first = make(seed=None)
        random.seed(0)
        assert not torch.equal(first, make(seed=None))

    @pytest.mark.parametrize("seed", [None, 42])
    def test_global_generators_are_left_alone(self, seed: int | None) -> None:
        torch_state, python_state = torch.get_rng_state(), random.getstate()
        numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
        generate_random_correlation_matrix(8, seed=seed)
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert random.getstate() == python_state
        np.testing.assert_equal(np.random.get_state(legacy=False), numpy_state)  # noqa: NPY002

    def test_sparsity_one_is_independence(self) -> None:
        matrix = generate_random_correlation_matrix(6, sparsity=1, seed=0)
        assert torch.allclose(matrix, torch.eye(6), rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_features": 0}, "num_features is 0"),
            ({"positive_ratio": 1.2}, "positive_ratio is 1.2"),
            ({"sparsity": -0.1}, "sparsity is -0.1"),
            ({"sparsity": math.nan}, "sparsity is nan"),
            ({"correlation_strength_range": (0.8, 0.3)}, r"range is \(0.8, 0.3\)"),
            ({"correlation_strength_range": (-0.3, 0.3)}, r"range is \(-0.3, 0.3\)"),
            ({"correlation_strength_range": (0.3, 1.3)}, r"range is \(0.3, 1.3\)"),
        ],
    )
    def test_refuses(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            generate_random_correlation_matrix(**{"num_features": 5, "seed": 0, **arguments})


class TestCreateCorrelationMatrix:
    def test_by_hand(self) -> None:
        matrix = create_correlation_matrix(3, {(0, 1): 0.4, (2, 0): -0.4}, 0.1)
        expected = torch.tensor([[1.0, 0.4, -0.4], [0.4, 1.0, 0.1], [-0.4, 0.1, 1.0]])
        assert torch.equal(matrix, expected)

    def test_nothing_asked_is_independence(self) -> None:
        assert torch.equal(create_correlation_matrix(3), torch.eye(3))

    def test_singular_but_possible_is_kept(self) -> None:
        assert torch.equal(create_correlation_matrix(4, default_correlation=1.0), torch.ones(4, 4))

    def test_impossible_is_repaired_with_a_warning_that_says_how_far(self) -> None:
        # All at −0.9: the eigenvalue −0.8 along (1, 1, 1) is clipped to about 0, which leaves
        # 1.9·(I − 11ᵀ/3), and with a unit diagonal −1/2 everywhere else: a change of 0.4.
        with pytest.warns(
            UserWarning, match=r"eigenvalue -0\.8.*change of an entry: 0\.4 "
        ) as told:
            matrix = create_correlation_matrix(3, default_correlation=-0.9)
        assert "asked -0.9, got -0.5" in str(told[0].message)
        expected = torch.full((3, 3), -0.5).fill_diagonal_(1)
        assert torch.allclose(matrix, expected, rtol=0, atol=1e-5)
        assert matrix.dtype == torch.float32
        assert torch.equal(matrix, matrix.T)
        assert matrix.diagonal().eq(1).all()

    def test_a_repaired_matrix_can_be_sampled(self) -> None:
        with pytest.warns(UserWarning, match="impossible together"):
            matrix = create_correlation_matrix(20, {(0, 1): 0.99, (1, 2): -0.99}, 0.9)
        assert FeatureSampler(torch.full((20,), 0.5), correlation_matrix=matrix).n_features == 20
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pairs = {(i, j): float(matrix[i, j]) for i in range(20) for j in range(i)}
            again = create_correlation_matrix(20, pairs)
        assert torch.equal(again, matrix)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"correlations": {(0, 3): 0.1}}, r"\(0, 3\)\] names feature 3, .* 0 to 2"),
            ({"correlations": {(-1, 0): 0.1}}, r"\(-1, 0\)\] names feature -1"),
            ({"correlations": {(1, 1): 0.1}}, r"\(1, 1\)\] pairs feature 1 with itself"),
            ({"correlations": {(0, 1): 1.1}}, r"\(0, 1\)\] is 1.1"),
            ({"correlations": {(0, 1): math.nan}}, r"\(0, 1\)\] is nan"),
            ({"correlations": {(0, 1): 0.1, (1, 0): 0.2}}, "give a pair once"),
            ({"default_correlation": -1.5}, "default_correlation is -1.5"),
            ({"num_features": 0}, "num_features is 0"),
        ],
    )
    def test_refuses(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            create_correlation_matrix(**{"num_features": 3, **arguments})


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
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
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

    def test_a_matrix_changed_behind_torchs_back_is_a_new_world(self) -> None:
        matrix = np.eye(2, dtype=np.float32)
        draw = partial(
            get_correlated_features, 200, torch.full((2,), 0.5), torch.from_numpy(matrix), "cpu"
        )
        before = draw()
        assert not torch.equal(before[:, 0], before[:, 1])
        matrix[:] = -1
        np.fill_diagonal(matrix, 1)
        after = draw()
        assert int((after[:, 0] == after[:, 1]).sum()) <= 2

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
