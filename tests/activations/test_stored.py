"""Activations in memory and in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparse_but_wrong.activations.source import ResumableSource
from sparse_but_wrong.activations.stored import StoredActivations, read_activations

X = torch.arange(20.0).view(10, 2)


def test_every_pass_has_every_sample_in_another_order() -> None:
    source = StoredActivations(X, batch_size=5, seed=0)
    first, second = (torch.cat([next(source), next(source)]) for _ in range(2))
    for seen in (first, second):
        assert torch.equal(seen[seen[:, 0].argsort()], X)
    assert not torch.equal(first, second)
    assert not torch.equal(first, X)
    again = StoredActivations(X, batch_size=5, seed=0)
    assert torch.equal(first, torch.cat([next(again), next(again)]))
    other = StoredActivations(X, batch_size=5, seed=1)
    assert not torch.equal(first, torch.cat([next(other), next(other)]))


def test_batches_are_full_and_float32() -> None:
    source = StoredActivations(X.half(), batch_size=4, seed=0)
    batches = [next(source) for _ in range(5)]
    assert all(batch.shape == (4, 2) and batch.dtype == torch.float32 for batch in batches)


def test_goes_on_from_a_state() -> None:
    source = StoredActivations(X, batch_size=3, seed=0)
    assert isinstance(source, ResumableSource)
    for _ in range(5):
        next(source)
    state = source.state()
    expected = [next(source) for _ in range(4)]
    later = StoredActivations(X, batch_size=3, seed=0)
    later.load_state(state)
    for batch in expected:
        assert torch.equal(next(later), batch)


def test_files(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    save_file({"activations": X}, tmp_path / "x.safetensors")
    for name in ("x.npy", "x.safetensors"):
        assert torch.equal(read_activations(tmp_path / name), X)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.npy"):
        read_activations(tmp_path / "none.npy")
    (tmp_path / "x.txt").write_text("1")
    with pytest.raises(ValueError, match=r"neither a \.npy nor a \.safetensors"):
        read_activations(tmp_path / "x.txt")
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="holds no array of numbers"):
        read_activations(tmp_path / "pickle.npy")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="is damaged"):
        read_activations(tmp_path / "cut.safetensors")
    save_file({"a": X, "b": X.clone()}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"holds 2 tensors \(a, b\)"):
        read_activations(tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match="too few for batches of 11"):
        StoredActivations(X, batch_size=11, seed=0)
    with pytest.raises(ValueError, match=r"these have \[20\]"):
        StoredActivations(X.flatten(), batch_size=2, seed=0)
