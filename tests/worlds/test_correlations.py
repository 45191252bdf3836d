"""Latent correlation matrices, what they hold, and what they mean for firings."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from sparse_but_wrong.worlds.correlations import (
    create_correlation_matrix,
    firing_correlation,
    generate_random_correlation_matrix,
    summarize_correlation_matrix,
)
from sparse_but_wrong.worlds.features import FeatureSampler


@pytest.mark.parametrize("entry", ["world", "second_check"])
def test_reproduces_the_published_matrices(data_dir: Path, entry: str) -> None:
    reference = json.loads((data_dir / "toy_world_seed42.json").read_text())[entry]
    matrix = generate_random_correlation_matrix(
        num_features=reference["num_features"],
        positive_ratio=reference["positive_ratio"],
        correlation_strength_range=tuple(reference["correlation_strength_range"]),
        sparsity=reference["sparsity"],
        seed=reference["seed"],
    )
    assert torch.allclose(matrix, torch.tensor(reference["matrix"]), rtol=0, atol=1e-5)
    assert matrix.dtype == torch.float32
    assert torch.equal(matrix, matrix.T)
    assert matrix.diagonal().eq(1).all()
    assert float(torch.linalg.eigvalsh(matrix.double())[0]) > -1e-6


def test_random_matrices_by_hand() -> None:
    # One pair, kept, negative; one uniform after the sample of the pairs; nothing to clip.
    rng = random.Random(9)
    rng.sample([(0, 1)], 1)
    strength = -rng.uniform(0.3, 0.8)
    matrix = generate_random_correlation_matrix(2, positive_ratio=0, sparsity=0, seed=9)
    expected = torch.tensor([[1, strength], [strength, 1]])
    assert torch.allclose(matrix, expected, rtol=0, atol=1e-6)
    independent = generate_random_correlation_matrix(6, sparsity=1, seed=0)
    assert torch.allclose(independent, torch.eye(6), rtol=0, atol=1e-6)
    defaults: dict[str, Any] = {"correlation_strength_range": (0.3, 0.8), "sparsity": 0.3}
    explicit = generate_random_correlation_matrix(12, positive_ratio=0.5, **defaults, seed=1)
    assert torch.equal(generate_random_correlation_matrix(12, seed=1), explicit)


def test_a_seed_decides_none_differs_each_time_and_global_generators_are_left_alone() -> None:
    make = partial(generate_random_correlation_matrix, 8)
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    assert torch.equal(make(seed=3), make(seed=3))
    assert not torch.equal(make(seed=3), make(seed=4))
    first = make(seed=None)
    random.setstate(python_state)
    assert not torch.equal(first, make(seed=None))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    np.testing.assert_equal(np.random.get_state(legacy=False), numpy_state)  # noqa: NPY002


def test_given_entries_are_kept_where_they_are_possible() -> None:
    matrix = create_correlation_matrix(3, {(0, 1): 0.4, (2, 0): -0.4}, 0.1)
    expected = torch.tensor([[1.0, 0.4, -0.4], [0.4, 1.0, 0.1], [-0.4, 0.1, 1.0]])
    assert torch.equal(matrix, expected)
    assert torch.equal(create_correlation_matrix(3), torch.eye(3))
    # Singular, but possible.
    assert torch.equal(create_correlation_matrix(4, default_correlation=1.0), torch.ones(4, 4))


def test_impossible_is_repaired_with_a_warning_that_says_how_far() -> None:
    # All at −0.9: the eigenvalue −0.8 along (1, 1, 1) is clipped to about 0, which leaves
    # 1.9·(I − 11ᵀ/3), and with a unit diagonal −1/2 everywhere else: a change of 0.4.
    with pytest.warns(UserWarning, match=r"eigenvalue -0\.8.*change of 0\.4 ") as told:
        matrix = create_correlation_matrix(3, default_correlation=-0.9)
    assert "from -0.9 to -0.5" in str(told[0].message)
    expected = torch.full((3, 3), -0.5).fill_diagonal_(1)
    assert torch.allclose(matrix, expected, rtol=0, atol=1e-5)
    assert matrix.dtype == torch.float32
    assert torch.equal(matrix, matrix.T)
    assert matrix.diagonal().eq(1).all()


def test_a_repaired_matrix_can_be_sampled_and_needs_no_repair() -> None:
    with pytest.warns(UserWarning, match="eigenvalue"):
        matrix = create_correlation_matrix(20, {(0, 1): 0.99, (1, 2): -0.99}, 0.9)
    assert FeatureSampler(torch.full((20,), 0.5), correlation_matrix=matrix).n_features == 20
    pairs = {(i, j): float(matrix[i, j]) for i in range(20) for j in range(i)}
    assert torch.equal(create_correlation_matrix(20, pairs), matrix)  # a warning would be an error


generate, create = (
    partial(generate_random_correlation_matrix, num_features=5),
    partial(create_correlation_matrix, num_features=3),
)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (generate, {"num_features": 0}, "num_features is 0"),
        (generate, {"positive_ratio": 1.2}, "positive_ratio is 1.2"),
        (generate, {"sparsity": -0.1}, "sparsity is -0.1"),
        (generate, {"sparsity": math.nan}, "sparsity is nan"),
        (generate, {"correlation_strength_range": (0.8, 0.3)}, r"range is \(0.8, 0.3\)"),
        (generate, {"correlation_strength_range": (-0.3, 0.3)}, r"range is \(-0.3, 0.3\)"),
        (generate, {"correlation_strength_range": (0.3, 1.3)}, r"range is \(0.3, 1.3\)"),
        (create, {"correlations": {(0, 3): 0.1}}, r"\(0, 3\)\] .* 0 to 2"),
        (create, {"correlations": {(-1, 0): 0.1}}, r"\(-1, 0\)\]"),
        (create, {"correlations": {(1, 1): 0.1}}, r"\(1, 1\)\]"),
        (create, {"correlations": {(0, 1): 1.1}}, r"\(0, 1\)\] is 1.1"),
        (create, {"correlations": {(0, 1): math.nan}}, r"\(0, 1\)\] is nan"),
        (create, {"correlations": {(0, 1): 0.1, (1, 0): 0.2}}, "once"),
        (create, {"default_correlation": -1.5}, "default_correlation is -1.5"),
        (create, {"num_features": 0}, "num_features is 0"),
        *(
            (partial(firing_correlation, c, 0.4, 0.4), {}, "latent_")
            for c in (1.1, -1.01, math.nan)
        ),
        *(
            (partial(firing_correlation, 0.4, 0.4, p), {}, "p_j is")
            for p in (0.0, 1.0, -0.1, math.nan)
        ),
    ],
)
def test_what_cannot_be_is_refused(
    make: Callable[..., Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_a_summary_by_hand() -> None:
    matrix = torch.tensor([[1.0, -0.6, 0.0], [-0.6, 1.0, 0.3], [0.0, 0.3, 1.0]])
    summary = summarize_correlation_matrix(matrix)
    assert summary.mean_abs == pytest.approx(0.3)
    assert summary.max_abs == pytest.approx(0.6)
    assert summary.share_near_zero == pytest.approx(1 / 3)
    # Characteristic polynomial of 1 + M: eigenvalues 1 and 1 ± √(0.6² + 0.3²).
    assert summary.smallest_eigenvalue == pytest.approx(1 - 0.45**0.5, abs=1e-6)


def test_the_published_world_is_far_from_what_was_asked() -> None:
    matrix = generate_random_correlation_matrix(
        50, correlation_strength_range=(0.3, 0.9), sparsity=0.3, seed=42
    )
    summary = summarize_correlation_matrix(matrix)
    assert summary.mean_abs == pytest.approx(0.13, abs=0.005)
    assert summary.max_abs == pytest.approx(0.41, abs=0.005)
    # A share of 0.3 was asked to be 0.
    assert summary.share_near_zero < 0.07
    assert abs(summary.smallest_eigenvalue) < 1e-5


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (4,)])
def test_refuses_what_holds_no_pairs(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    # Outside pytest nobody checks shapes before our own message.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="give a square one"):
        summarize_correlation_matrix(torch.zeros(shape))


@pytest.mark.parametrize("latent", [-0.9, -0.4, 0.0, 0.3, 0.8])
def test_closed_form_at_probability_one_half(latent: float) -> None:
    # Sheppard: P(both positive) = 1/4 + asin(c)/2π, so the correlation of signs is 2·asin(c)/π.
    assert firing_correlation(latent, 0.5, 0.5) == pytest.approx(
        2 * math.asin(latent) / math.pi, abs=1e-9
    )


def test_firing_correlations_by_hand() -> None:
    assert firing_correlation(0.4, 0.4, 0.4) == pytest.approx(0.2586, abs=5e-5)
    assert firing_correlation(1, 0.3, 0.3) == pytest.approx(1)
    # j fires only where i does: (0.2 − 0.3·0.2) / √(0.3·0.7·0.2·0.8)
    assert firing_correlation(1, 0.3, 0.2) == pytest.approx(0.14 / math.sqrt(0.0336))
    # They never fire together: (0 − 0.3·0.2) / √(0.3·0.7·0.2·0.8)
    assert firing_correlation(-1, 0.3, 0.2) == pytest.approx(-0.06 / math.sqrt(0.0336))
    # 0.7 + 0.8 > 1: they must overlap in half of the samples.
    assert firing_correlation(-1, 0.7, 0.8) == pytest.approx(-0.06 / math.sqrt(0.0336))
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
