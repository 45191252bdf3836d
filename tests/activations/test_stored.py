"""Stored activations in memory: reading across parts, in order, held out, and by their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_but_wrong.activations.parts import Part, tensor_part
from sparse_but_wrong.activations.stored import (
    BLOCKS,
    StoredActivations,
    is_activations,
    is_hub_name,
    without_tokens,
)

X = torch.arange(20.0).view(10, 2)


@dataclass(frozen=True, eq=False)
class Recorder(Part):
    """A part that notes what it is asked for, and fails from a sample on.

    Its samples are of the tokens 0, 1, 2, 0, 1, 2 and so on, where it has `ids`.
    """

    name: str = "recorder"
    n_samples: int = 10
    d_in: int = 2
    dtype: torch.dtype = torch.float32
    rows: Any = None
    fails_from: float = float("inf")
    short_by: int = 0
    ids: bool = False
    asked: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", self.record)
        if self.ids:
            object.__setattr__(self, "token_ids", lambda *ends: torch.arange(*ends) % 3)

    def record(self, start: int, stop: int) -> Tensor:
        self.asked.append((start, stop))
        if stop > self.fails_from:
            raise RuntimeError("the disk is gone")
        rows = torch.arange(start, stop - self.short_by)
        return rows.view(-1, 1).expand(-1, self.d_in).to(self.dtype)


def of(*parts: Part) -> StoredActivations:
    return StoredActivations("x", parts)


def test_reads_across_parts_only_what_is_asked_for() -> None:
    first, second, third = Recorder(n_samples=5), Recorder(n_samples=0), Recorder(n_samples=7)
    stored = of(first, second, third)
    assert (stored.n_samples, stored.d_in, stored.dtype) == (12, 2, torch.float32)
    assert first.asked == []
    assert stored.read(3, 8)[:, 0].tolist() == [3, 4, 0, 1, 2]
    assert (first.asked, second.asked, third.asked) == ([(3, 5)], [], [(0, 3)])
    assert stored.read(5, 6)[:, 0].tolist() == [0]
    assert stored.read(12, 12).shape == (0, 2)
    with pytest.raises(ValueError, match=r"12 samples.* 11 to 13"):
        stored.read(11, 13)


def test_what_is_read_is_a_copy_in_a_type_that_holds_all() -> None:
    x = X.bfloat16()
    stored = StoredActivations.of(x, name="mine")
    assert repr(stored) == "StoredActivations('mine': 10 samples, d_in 2, bfloat16)"
    rows = stored.read(0, 10)
    assert rows.dtype == torch.bfloat16
    rows.zero_()
    assert torch.equal(x, X.bfloat16())
    with pytest.raises(FrozenInstanceError):
        stored.name = "yours"  # pyright: ignore[reportAttributeAccessIssue]
    both = of(tensor_part("a", x), tensor_part("b", X.half()))
    assert torch.equal(both.read(0, 20), torch.cat([X, X]))
    assert both.read(0, 1).dtype == both.read(0, 0).dtype == both.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: of(), "x holds no samples"),
        (lambda: StoredActivations.of(X[:0]), "activations holds no samples"),
        (
            lambda: of(tensor_part("a", X), tensor_part("c", torch.ones(3, 5))),
            "c .* 5.* a .* 2",
        ),
        (lambda: StoredActivations.of(X.flatten()), r"\[20\]"),
        (lambda: StoredActivations.of(torch.ones(3, 0)), r"\[3, 0\]"),
        (lambda: StoredActivations.of(X.long(), name="mine"), "mine: .* int64"),
    ],
)
def test_what_are_no_activations_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_part_that_cannot_be_read_is_named() -> None:
    stored = of(Recorder(n_samples=5), Recorder("bad", 5, fails_from=2))
    assert len(stored.read(0, 7)) == 7
    # Also in a part of a part.
    for source in (stored, stored.hold_out(1)[0]):
        with pytest.raises(OSError, match=r"^bad .* 0 to [34] \(the disk is gone"):
            source.read(0, 8)
    with pytest.raises(OSError, match=r"recorder .* 0 to 4 .*\[3, 2\]"):
        of(Recorder(short_by=1)).read(0, 4)


@pytest.mark.parametrize("n_samples", [None, 10, 11])
def test_everything_in_order(n_samples: int | None) -> None:
    stored = StoredActivations.of(X.bfloat16())
    batches = list(stored.batches(4, n_samples))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert all(batch.dtype == torch.float32 for batch in batches)
    assert torch.equal(torch.cat(batches), X)
    (batch,) = stored.batches(64)
    assert torch.equal(batch, X)
    stored = StoredActivations.of(torch.randn(100, 3))
    for _ in range(2):
        batches = list(stored)
        assert [len(batch) for batch in batches] == [6] * 16 + [4]
        assert torch.equal(torch.cat(batches), stored.read(0, 100))


def test_fewer_samples_are_whole_batches_spread_evenly() -> None:
    part = Recorder(n_samples=100)
    stored = of(part)
    assert [len(batch) for batch in stored.batches(10, n_samples=49)] == [10] * 4
    # Each in the middle of a quarter: 25 samples, 15 of them to spare.
    assert part.asked == [(7, 17), (32, 42), (57, 67), (82, 92)]
    (only,) = stored.batches(10, n_samples=10)
    assert only[:, 0].tolist() == list(range(45, 55))
    part.asked.clear()
    list(stored.batches(10, n_samples=99))
    assert all(a[1] <= b[0] for a, b in zip(part.asked, part.asked[1:], strict=False))
    assert len(part.asked) == 9
    part.asked.clear()
    next(stored.batches(10))
    assert part.asked == [(0, 10)]  # nothing is read ahead
    with pytest.raises(ValueError, match=r"batch_size .* 0"):
        stored.batches(0)
    with pytest.raises(ValueError, match=r"n_samples = 3 .* 4"):
        stored.batches(4, n_samples=3)


def test_samples_are_left_out_by_their_tokens() -> None:
    stored = of(Recorder(n_samples=4, ids=True), Recorder(n_samples=7, ids=True))
    batches = list(stored.batches(3, keep=without_tokens([0, 2])))
    # Samples 0 to 3 and then 0 to 6; a batch of which nothing is kept is left out.
    assert [batch[:, 0].tolist() for batch in batches] == [[1], [1], [4]]
    # Samples 0 and 3, and then 2 and 5, the last two of token 2.
    (rows,) = stored.hold_out(4)[1].batches(4, keep=without_tokens([0]))
    assert rows[:, 0].tolist() == [2, 5]
    with pytest.raises(ValueError, match="no sample of x"):
        list(stored.batches(3, keep=without_tokens(range(3))))
    mixed = of(Recorder(n_samples=4, ids=True), Recorder(n_samples=7))
    assert mixed.read_token_ids(0, 4) is not None
    with pytest.raises(ValueError, match="no token_ids"):
        list(mixed.batches(3, keep=without_tokens([0])))


def test_samples_are_left_out_by_what_they_are() -> None:
    rows = X.clone()
    rows[4] = 1e4

    def keep(rows: Tensor, token_ids: Tensor | None) -> Tensor:
        assert token_ids is None
        assert rows.dtype == torch.float32
        return rows.norm(dim=1) < 1000

    batches = list(StoredActivations.of(rows.half()).batches(4, keep=keep))
    assert [len(batch) for batch in batches] == [4, 3, 2]
    assert torch.equal(torch.cat(batches), torch.cat([X[:4], X[5:]]))


@pytest.mark.parametrize(("n", "n_held_out"), [(1000, 160), (1000, 500), (1001, 37), (40, 5)])
def test_every_sample_is_on_one_side(n: int, n_held_out: int) -> None:
    stored = StoredActivations.of(torch.arange(float(n))[:, None].repeat(1, 3), "acts")
    a, b = (side.read(0, side.n_samples)[:, 0] for side in stored.hold_out(n_held_out))
    assert (len(a), len(b)) == (n - n_held_out, n_held_out)
    assert torch.equal(torch.cat([a, b]).sort().values, torch.arange(float(n)))
    assert torch.equal(a, a.sort().values)
    for bad in (0, n // 2 + 1, n):
        with pytest.raises(ValueError, match=rf"samples of acts.* 1 to {n // 2}"):
            stored.hold_out(bad)


def test_held_out_samples_are_blocks_of_neighbours_spread_evenly() -> None:
    _, held_out = StoredActivations.of(torch.arange(1600.0)[:, None]).hold_out(320)
    assert len(held_out.parts) == BLOCKS
    for i, part in enumerate(held_out.parts):
        # 20 in the middle of each share of 100.
        assert part.read(0, 20)[:, 0].tolist() == list(range(100 * i + 40, 100 * i + 60))


def test_what_looks_like_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ours, run = '{"format": "sparse_but_wrong activations"', '{"format_version": 2, "spec": {}}'
    manifests = {"run": run, "cache": ours + "}", "cut": ours + ', "mo', "list": "[\xff]"}
    for name in ("empty", "files", *manifests):
        Path(name).mkdir()
    for name, content in manifests.items():
        Path(name, "manifest.json").write_bytes(content.encode("latin-1"))
    Path("run/checkpoint.safetensors").touch()
    np.save("files/x.npy", X.numpy())
    for name in ("missing.npy", "missing.safetensors", "files", "cache", "cut"):
        assert is_activations(name), name
    # The last is longer than any file's name may be.
    for name in ("missing", "mine.yaml", "user/name", "empty", "run", "list", "x" * 5_000):
        assert not is_activations(name), name
    assert is_hub_name("user/name-1.2_x")
    for name in ("name", "run/mistyped", "/user/name", "a/b/c", "../x", "user/x.npy", "user/"):
        assert not is_hub_name(name), name
