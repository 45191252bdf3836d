from __future__ import annotations

import jaxtyping
import pytest
import torch

from sparse_but_wrong.worlds.correlation_summary import summarize_correlation_matrix
from sparse_but_wrong.worlds.training_batch import generate_random_correlation_matrix


def test_by_hand() -> None:
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
