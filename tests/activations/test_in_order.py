"""One pass over stored activations, in order."""

from __future__ import annotations

import pytest
import torch

from sparse_but_wrong.activations.in_order import contiguous_batches
from sparse_but_wrong.activations.stored import StoredActivations
from tests.activations.test_stored import Recorder

X = torch.arange(20.0).view(10, 2)


@pytest.mark.parametrize("n_samples", [None, 10, 11])
def test_everything_in_order(n_samples: int | None) -> None:
    stored = StoredActivations.of(X.bfloat16())
    batches = list(contiguous_batches(stored, 4, n_samples))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert all(batch.dtype == torch.float32 for batch in batches)
    assert torch.equal(torch.cat(batches), X)


def test_fewer_samples_are_whole_batches_spread_evenly() -> None:
    part = Recorder(100)
    stored = StoredActivations("x", (part,))
    assert [len(batch) for batch in contiguous_batches(stored, 10, n_samples=49)] == [10] * 4
    # Each in the middle of a quarter: 25 samples, 15 of them to spare.
    assert part.asked == [(7, 17), (32, 42), (57, 67), (82, 92)]
    part.asked.clear()
    (only,) = contiguous_batches(stored, 10, n_samples=10)
    assert only[:, 0].tolist() == list(range(45, 55))
    part.asked.clear()
    list(contiguous_batches(stored, 10, n_samples=99))
    assert all(a[1] <= b[0] for a, b in zip(part.asked, part.asked[1:], strict=False))
    assert len(part.asked) == 9


def test_nothing_is_read_ahead() -> None:
    part = Recorder(100)
    batches = contiguous_batches(StoredActivations("x", (part,)), 10)
    next(batches)
    assert part.asked == [(0, 10)]


def test_a_batch_larger_than_all_is_all() -> None:
    (batch,) = contiguous_batches(StoredActivations.of(X), 64)
    assert torch.equal(batch, X)


def test_what_makes_no_batches_is_refused_at_once() -> None:
    stored = StoredActivations.of(X)
    with pytest.raises(ValueError, match="not batch_size = 0"):
        contiguous_batches(stored, 0)
    with pytest.raises(ValueError, match="n_samples = 3 is less than a batch of 4"):
        contiguous_batches(stored, 4, n_samples=3)
