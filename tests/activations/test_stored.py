"""Activations in memory and in files, read piece by piece."""

from __future__ import annotations

import json
import os
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sparse_but_wrong.activations.part import Part, TensorPart
from sparse_but_wrong.activations.stored import (
    StoredActivations,
    is_activations,
    is_hub_name,
    open_activations,
)

X = torch.arange(20.0).view(10, 2)


@dataclass(frozen=True)
class Recorder:
    """A part that notes what it is asked for, and fails from a sample on."""

    n_samples: int
    name: str = "recorder"
    d_in: int = 2
    dtype: torch.dtype = torch.float32
    fails_from: float = float("inf")
    asked: list[tuple[int, int]] = field(default_factory=list)

    def read(self, start: int, stop: int) -> Tensor:
        self.asked.append((start, stop))
        if stop > self.fails_from:
            raise RuntimeError("the disk is gone")
        return torch.arange(start, stop).view(-1, 1).expand(-1, self.d_in).to(self.dtype)


def test_reads_across_parts_only_what_is_asked_for() -> None:
    first, second, third = Recorder(5), Recorder(0), Recorder(7)
    stored = StoredActivations("both", (first, second, third))
    assert isinstance(first, Part)
    assert (stored.n_samples, stored.d_in, stored.dtype) == (12, 2, torch.float32)
    assert first.asked == []
    assert stored.read(3, 8)[:, 0].tolist() == [3, 4, 0, 1, 2]
    assert first.asked == [(3, 5)]
    assert second.asked == []
    assert third.asked == [(0, 3)]
    assert stored.read(5, 6)[:, 0].tolist() == [0]
    assert first.asked == [(3, 5)]
    assert stored.read(12, 12).shape == (0, 2)
    with pytest.raises(ValueError, match="has 12 samples; there are none from 11 to 13"):
        stored.read(11, 13)


def test_what_is_read_is_a_copy_in_the_stored_type() -> None:
    x = X.bfloat16()
    stored = StoredActivations.of(x, name="mine")
    assert stored.name == "mine"
    assert "tensor" not in repr(stored)
    assert stored.dtype == torch.bfloat16
    rows = stored.read(0, 10)
    rows.zero_()
    assert torch.equal(x, X.bfloat16())
    with pytest.raises(FrozenInstanceError):
        stored.name = "yours"  # pyright: ignore[reportAttributeAccessIssue]


def test_parts_of_several_types_are_read_as_one_that_holds_all() -> None:
    parts = (TensorPart("a", X.bfloat16()), TensorPart("b", X.half()))
    stored = StoredActivations("ab", parts)
    assert stored.dtype == torch.float32
    assert torch.equal(stored.read(0, 20), torch.cat([X, X]))
    assert stored.read(0, 1).dtype == stored.read(0, 0).dtype == torch.float32


def test_no_samples_and_unlike_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="none holds no samples"):
        StoredActivations("none", ())
    with pytest.raises(ValueError, match="activations holds no samples"):
        StoredActivations.of(X[:0])
    parts = (TensorPart("a", X), TensorPart("b", X), TensorPart("c", torch.ones(3, 5)))
    with pytest.raises(ValueError, match="c has d_in 5, but a has 2"):
        StoredActivations("abc", parts)


def test_tensors_that_are_no_activations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"these have \[20\]"):
        StoredActivations.of(X.flatten())
    with pytest.raises(ValueError, match=r"these have \[3, 0\]"):
        StoredActivations.of(torch.ones(3, 0))
    with pytest.raises(ValueError, match=r"mine: .* not as int64; convert"):
        StoredActivations.of(X.long(), name="mine")


def test_a_part_that_cannot_be_read_is_named() -> None:
    stored = StoredActivations("both", (Recorder(5), Recorder(5, name="bad", fails_from=2)))
    assert len(stored.read(0, 7)) == 7
    with pytest.raises(OSError, match=r"bad cannot be read from sample 0 to 3 \(the disk is gone"):
        stored.read(0, 8)

    class Short(Recorder):
        def read(self, start: int, stop: int) -> Tensor:
            return super().read(start, stop - 1)

    with pytest.raises(OSError, match=r"gives \[3, 2\] numbers for the samples from 0 to 4"):
        StoredActivations("s", (Short(5),)).read(0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_npy(tmp_path: Path, dtype: torch.dtype) -> None:
    np.save(tmp_path / "x.npy", X.to(dtype).numpy())
    stored = open_activations(tmp_path / "x.npy")
    assert stored.name == str(tmp_path / "x.npy")
    assert stored.mean_norm is None
    assert stored.dtype == dtype
    assert torch.equal(stored.read(2, 9), X[2:9].to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_safetensors(tmp_path: Path, dtype: torch.dtype) -> None:
    ids = torch.arange(10, dtype=torch.int32)
    save_file({"anything": X.to(dtype), "ids": ids}, tmp_path / "one.safetensors")
    save_file({"activations": X.to(dtype), "a": X + 1}, tmp_path / "two.safetensors")
    for name in ("one.safetensors", "two.safetensors"):
        stored = open_activations(str(tmp_path / name))
        assert (stored.n_samples, stored.d_in, stored.dtype) == (10, 2, dtype)
        assert torch.equal(stored.read(2, 9), X[2:9].to(dtype))


def test_token_ids_in_files(tmp_path: Path) -> None:
    ids = torch.arange(10, 20)
    save_file({"activations": X, "token_ids": ids.int()}, tmp_path / "a.safetensors")
    save_file({"activations": X, "token_ids": ids}, tmp_path / "b.safetensors")
    both = open_activations(tmp_path).read_token_ids(8, 13)
    assert both is not None
    assert both.tolist() == [18, 19, 10, 11, 12]
    # One per row or none.
    save_file({"activations": X, "token_ids": ids[:9]}, tmp_path / "c.safetensors")
    assert open_activations(tmp_path / "c.safetensors").read_token_ids(0, 9) is None
    save_file({"activations": X, "token_ids": X[:, 0].clone()}, tmp_path / "d.safetensors")
    assert open_activations(tmp_path / "d.safetensors").read_token_ids(0, 9) is None


@pytest.mark.parametrize("name", ["large.npy", "large.safetensors"])
def test_the_rest_of_a_file_is_not_read(tmp_path: Path, name: str) -> None:
    n_samples, d_in = 2**28, 32  # 32 GiB of nothing: a sparse file, larger than most memories
    data = {"dtype": "F32", "shape": [n_samples, d_in], "data_offsets": [0, 4 * n_samples * d_in]}
    text = json.dumps({"activations": data}).encode()
    with (tmp_path / name).open("wb") as file:
        if name.endswith(".npy"):
            npy = {"descr": "<f4", "fortran_order": False, "shape": (n_samples, d_in)}
            np.lib.format.write_array_header_1_0(file, npy)
        else:
            file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + 4 * n_samples * d_in)
        file.seek(-4, 2)
        file.write(np.float32(7).tobytes())
    stored = open_activations(tmp_path / name)
    assert stored.n_samples == n_samples
    last = stored.read(n_samples - 3, n_samples)
    assert last.sum() == last[2, -1] == 7


def test_a_file_that_has_become_shorter_is_named(tmp_path: Path) -> None:
    save_file({"activations": X}, tmp_path / "x.safetensors")
    stored = open_activations(tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:-4])
    assert torch.equal(stored.read(0, 9), X[:9])
    with pytest.raises(OSError, match=r"x\.safetensors cannot be read .*it ends 4 bytes early"):
        stored.read(8, 10)
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(OSError, match="No such file"):
        stored.read(0, 1)


def npy(header: str | bytes, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    text = text.ljust(-(-(len(text) + 11) // 64) * 64 - 11) + b"\n"
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


SOUND = "{'descr': '<f4', 'fortran_order': False, 'shape': (10, 2)}"


def of_shape(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize(
    "content",
    [
        npy("("),
        npy("(" * 9000),
        npy("-" * 9000 + "1"),
        npy("[" * 90 + "]" * 90),
        npy("{'descr': '<f4'"),
        npy("\\"),
        npy("0x"),
        npy("'\\d'"),
        npy("\x00"),
        npy("{1: 2}"),
        npy(b"\xff\xfe"),
        npy(b"\xff\xfe", version=3),
        npy(" " * 100_000 + SOUND, version=2),
        npy(SOUND, bytes(80), version=9),
        npy(SOUND, bytes(79)),
        npy(of_shape("(-10, 2)"), bytes(80)),
        npy(of_shape("(-10, -2)"), bytes(80)),
        npy(of_shape("(10.0, 2)"), bytes(80)),
        npy(of_shape("10"), bytes(80)),
        npy(of_shape("(True, 2)"), bytes(80)),
        npy(of_shape(f"({2**62}, 4)"), bytes(80)),
        npy(of_shape(f"({2**64}, 2)"), bytes(80)),
        npy(of_shape(f"({10**30}, 2)"), bytes(80)),
        npy(of_shape("(1,) * 9"), bytes(80)),
        npy(of_shape("(10, 2)", "'|O'"), bytes(80)),
        npy(of_shape("(10, 2)", "'nothing'"), bytes(80)),
        npy(of_shape("(10, 2)", "[('a', '<f4')]"), bytes(80)),
        npy(of_shape("(10, 2)", "('<f4', (10**9,))"), bytes(80)),
        npy(of_shape("(10, 2)", "'<f4,' * 9"), bytes(80)),
        npy(of_shape("(10, 2)", "3"), bytes(80)),
        npy(of_shape("(10, 2)", "'<f99999999999'"), bytes(80)),
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff",
        b"PK\x03\x04" + bytes(60),
        b"PK\x05\x06" + bytes(18),
        b"\x80\x04\x95" + bytes(30),
        bytes(200),
    ],
)
def test_npy_headers_that_are_no_such(tmp_path: Path, content: bytes) -> None:
    """numpy.load has a kind of error for every kind of damage, and believes any shape."""
    file = tmp_path / "x.npy"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npy") as refused:
        open_activations(file)
    assert len(str(refused.value)) < 800
    file.write_bytes(npy(SOUND, bytes(80)))
    assert open_activations(file).n_samples == 10
    file.write_bytes(npy(SOUND, bytes(80), version=2))
    assert open_activations(file).n_samples == 10


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(shape: object, stop: object, dtype: object = "F32", start: object = 0) -> object:
    return {"activations": {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}}


@pytest.mark.parametrize(
    "content",
    [
        safetensors(b""),
        safetensors(b"{"),
        safetensors(b"[" * 100_000),
        safetensors(b'{"a":' * 100_000),
        safetensors(b"\xff\xfe{}"),
        safetensors([]),
        safetensors(3),
        safetensors({"activations": 3}),
        safetensors(tensor([10, 2], 80), bytes(80), length=2**63),
        safetensors(tensor([10, 2], 80), bytes(80), length=0),
        safetensors(tensor([10, 2], 80), bytes(79)),
        safetensors(tensor([10, 2], 80), bytes(81)),
        safetensors(tensor([-10, 2], 80), bytes(80)),
        safetensors(tensor([-10, -2], 80), bytes(80)),
        safetensors(tensor([10.0, 2], 80), bytes(80)),
        safetensors(tensor([2**62, 4], 0)),
        safetensors(tensor([2**64, 2], 80), bytes(80)),
        safetensors(tensor([10**30, 2], 80), bytes(80)),
        safetensors(tensor("10", 80), bytes(80)),
        safetensors(tensor([10, 2], 80, start=-80), bytes(80)),
        safetensors(tensor([10, 2], 80, start=8), bytes(80)),
        safetensors(tensor([10, 2], 80, dtype="F3"), bytes(80)),
        safetensors(tensor([10, 2], 80, dtype=3), bytes(80)),
        safetensors(tensor([10, 2], 20, dtype="F8_E5M2"), bytes(20)),
        safetensors(tensor([10, 2], 160, dtype="C64"), bytes(160)),
        safetensors(tensor([20], 80), bytes(80)),
        safetensors(tensor([], 4), bytes(4)),
        safetensors({"__metadata__": {"a": 3}}),
        safetensors({"__metadata__": {"a": "b"}}),
        b"\x01",
        b"",
    ],
)
def test_safetensors_headers_that_are_no_such(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.safetensors") as refused:
        open_activations(tmp_path / "x.safetensors")
    assert len(str(refused.value)) < 800


def test_names_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(ValueError, match=r"pipe\.npy is no regular file"):
        open_activations(tmp_path / "pipe.npy")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    def refuse(name: str, message: str, kind: type[Exception] = ValueError) -> None:
        with pytest.raises(kind, match=message):
            open_activations(tmp_path / name)

    refuse("none.npy", r"there is no file .*none\.npy", FileNotFoundError)
    refuse("none", "there is no file or folder .*none", FileNotFoundError)
    (tmp_path / "x.txt").write_text("1")
    refuse("x.txt", r"neither a \.npy nor a \.safetensors")
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refuse("pickle.npy", "holds no array of numbers")
    (tmp_path / "empty.npy").touch()
    refuse("empty.npy", "holds no array of numbers")
    np.save(tmp_path / "cut.npy", X.numpy())
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-4])
    refuse("cut.npy", r"cut\.npy holds no array of numbers")
    np.save(tmp_path / "whole.npy", X.long().numpy())
    refuse("whole.npy", r"whole\.npy: .* not as int64")
    np.save(tmp_path / "columns.npy", np.asfortranarray(X.numpy()))
    refuse("columns.npy", r"not stored row by row .* np\.ascontiguousarray\(x, dtype=np\.float32\)")
    np.save(tmp_path / "swapped.npy", X.numpy().astype(np.dtype("f4").newbyteorder()))
    refuse("swapped.npy", "not stored row by row in this machine's byte order")
    with (tmp_path / "several.npy").open("wb") as file:
        np.savez(file, a=X.numpy(), b=X.numpy())
    refuse("several.npy", "holds several arrays")
    np.save(tmp_path / "flat.npy", X.flatten().numpy())
    refuse("flat.npy", r"flat\.npy: .* these have \[20\]")
    np.save(tmp_path / "nothing.npy", X[:0].numpy())
    refuse("nothing.npy", r"nothing\.npy holds no samples")
    (tmp_path / "short.safetensors").write_bytes(b"\x10")
    refuse("short.safetensors", "is damaged")
    save_file({"activations": X}, tmp_path / "cut.safetensors")
    cut = (tmp_path / "cut.safetensors").read_bytes()[:-4]
    (tmp_path / "cut.safetensors").write_bytes(cut)
    refuse("cut.safetensors", r"cut\.safetensors is damaged")
    save_file({"a": X, "b": X.clone()}, tmp_path / "two.safetensors")
    refuse("two.safetensors", r"holds 2 tensors \(a, b\) .* call the one to read 'activations'")
    save_file({"ids": X.int(), "bias": X[0]}, tmp_path / "other.safetensors")
    refuse("other.safetensors", r"no tensor of floating.* bias F32 \[2\], ids I32 \[10, 2\]")
    save_file({"activations": X.int(), "b": X}, tmp_path / "whole.safetensors")
    refuse("whole.safetensors", "tensor 'activations': .* not as I32; convert")


def test_a_column_is_for_data_sets(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    for path in (tmp_path, tmp_path / "x.npy"):
        with pytest.raises(ValueError, match="is no data set and has no columns"):
            open_activations(path, column="x")


def test_what_looks_like_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_activations("missing.npy")
    assert is_activations(Path("missing.safetensors"))
    for name in ("missing", "mine.yaml", "user/name"):
        assert not is_activations(name)
    for name in ("empty", "files", "run", "run-in-training", "cache", "cut", "list"):
        Path(name).mkdir()
    assert not is_activations("empty")
    np.save("files/x.npy", X.numpy())
    assert is_activations("files")
    for folder in ("run", "run-in-training"):
        Path(folder, "manifest.json").write_text('{"format_version": 2, "spec": {}}')
    Path("run-in-training/checkpoint.safetensors").touch()
    assert not is_activations("run")
    assert not is_activations("run-in-training")
    Path("cache/manifest.json").write_text('{"format": "sparse_but_wrong activations"}')
    assert is_activations("cache")
    Path("cut/manifest.json").write_text('{"format": "sparse_but_wrong activations", "mo')
    assert is_activations("cut")
    Path("list/manifest.json").write_bytes(b"[\xff]")
    assert not is_activations("list")
    # A name longer than any file may have.
    assert not is_activations("x" * 5_000)


def test_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    assert is_hub_name("user/name-1.2_x")
    for name in ("name", "runs/mistyped", "/user/name", "a/b/c", "../x", "user/x.npy", "user/"):
        assert not is_hub_name(name)
