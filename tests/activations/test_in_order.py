"""One pass over stored activations, in order."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sparse_but_wrong.activations.in_order import contiguous_batches, without_tokens
from sparse_but_wrong.activations.split import hold_out
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


@dataclass(frozen=True)
class WithIds(Recorder):
    """A part whose samples are of the tokens 0, 1, 2, 0, 1, 2 and so on."""

    def read_token_ids(self, start: int, stop: int) -> Tensor:
        return torch.arange(start, stop) % 3


def test_tokens_are_left_out() -> None:
    stored = StoredActivations("x", (WithIds(4), WithIds(7)))
    batches = list(contiguous_batches(stored, 3, keep=without_tokens([0, 2])))
    # Samples 0 to 3 and then 0 to 6; a batch of which nothing is kept is left out.
    assert [batch[:, 0].tolist() for batch in batches] == [[1], [1], [4]]
    held = hold_out(stored, 4)[1]
    # Samples 0 and 3, and then 2 and 5, the last two of token 2.
    (rows,) = contiguous_batches(held, 4, keep=without_tokens([0]))
    assert rows[:, 0].tolist() == [2, 5]
    with pytest.raises(ValueError, match="of x no sample is kept"):
        list(contiguous_batches(stored, 3, keep=without_tokens(range(3))))
    mixed = StoredActivations("x", (WithIds(4), Recorder(7)))
    assert mixed.read_token_ids(0, 4) is not None
    with pytest.raises(ValueError, match="no token_ids are stored"):
        list(contiguous_batches(mixed, 3, keep=without_tokens([0])))


def test_samples_are_left_out_by_what_they_are() -> None:
    rows = X.clone()
    rows[4] = 1e4
    stored = StoredActivations.of(rows.half())

    def keep(rows: Tensor, token_ids: Tensor | None) -> Tensor:
        assert token_ids is None
        assert rows.dtype == torch.float32
        return rows.norm(dim=1) < 1000

    batches = list(contiguous_batches(stored, 4, keep=keep))
    assert [len(batch) for batch in batches] == [4, 3, 2]
    assert torch.equal(torch.cat(batches), torch.cat([X[:4], X[5:]]))
