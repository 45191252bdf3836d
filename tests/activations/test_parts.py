"""Activations in files, folders of them, and Hugging Face datasets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Array2D, Array3D, Dataset, DatasetDict, Features, LargeList, List, Value
from safetensors.torch import save_file

from sparse_but_wrong.activations.stored import (
    StoredActivations,
    is_activations,
    open_activations,
    without_tokens,
)

X = torch.arange(20.0).view(10, 2)
CONTEXTS = torch.arange(7.0 * 5 * 3).view(7, 5, 3)
FLAT = CONTEXTS.flatten(0, 1)
HOOK = "blocks.0.hook_resid_pre"
FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_was_saved_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    x = X.to(dtype)
    save_file({"anything": x, "ids": torch.arange(10)}, tmp_path / "one.safetensors", {"a": "b"})
    save_file({"activations": x, "a": X + 1}, tmp_path / "two.safetensors")
    names = ["one.safetensors", "two.safetensors"]
    if dtype != torch.bfloat16:
        np.save(tmp_path / "x.npy", x.numpy())
        names.append("x.npy")
    for name in names:
        stored = open_activations(str(tmp_path / name))
        assert stored.name == str(tmp_path / name)
        assert (stored.n_samples, stored.d_in, stored.dtype) == (10, 2, dtype)
        assert stored.mean_norm is None
        assert torch.equal(stored.read(2, 9), x[2:9])


def token_ids(stored: StoredActivations, start: int, stop: int) -> list[int]:
    found = stored.read_token_ids(start, stop)
    assert found is not None
    return found.tolist()


def test_token_ids(tmp_path: Path) -> None:
    ids = torch.arange(10, 20)
    save_file({"activations": X, "token_ids": ids.int()}, tmp_path / "a.safetensors")
    save_file({"activations": X, "token_ids": ids}, tmp_path / "b.safetensors")
    assert token_ids(open_activations(tmp_path), 8, 13) == [18, 19, 10, 11, 12]
    # One whole number per row or none.
    for odd in (ids[:9], X[:, 0].clone()):
        save_file({"activations": X, "token_ids": odd}, tmp_path / "c.safetensors")
        assert open_activations(tmp_path / "c.safetensors").read_token_ids(0, 9) is None


def npy(shape: str = "(10, 2)", descr: str = "'<f4'", n_bytes: int = 80, version: int = 1) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"
    return raw_npy(header, n_bytes, version)


def raw_npy(header: str, n_bytes: int = 0, version: int = 1) -> bytes:
    text = header.encode("latin-1").ljust(-(-(len(header) + 11) // 64) * 64 - 11) + b"\n"
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + bytes(n_bytes)


def safetensors(header: object, data: int = 0, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)


def tensor(
    shape: object = (10, 2), n_bytes: int = 80, dtype: object = "F32", start: int = 0
) -> object:
    return {"activations": {"dtype": dtype, "shape": shape, "data_offsets": [start, n_bytes]}}


@pytest.mark.parametrize("name", ["large.npy", "large.safetensors"])
def test_the_rest_of_a_file_is_not_read(tmp_path: Path, name: str) -> None:
    n_samples, n_bytes = 2**28, 2**35  # 32 GiB of nothing: a sparse file, larger than most memories
    shape = (n_samples, 32)
    header = (
        safetensors(tensor(shape, n_bytes)) if "tensors" in name else npy(str(shape), "'<f4'", 0)
    )
    with (tmp_path / name).open("wb") as file:
        file.write(header)
        file.truncate(file.tell() + n_bytes)
        file.seek(-4, 2)
        file.write(np.float32(7).tobytes())
    stored = open_activations(tmp_path / name)
    assert stored.n_samples == n_samples
    last = stored.read(n_samples - 3, n_samples)
    assert last.sum() == last[2, -1] == 7


def test_a_file_that_has_become_shorter_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"activations": X}, file)
    stored = open_activations(file)
    file.write_bytes(file.read_bytes()[:-4])
    assert torch.equal(stored.read(0, 9), X[:9])
    with pytest.raises(OSError, match=r"x\.safetensors .* 4 bytes early"):
        stored.read(8, 10)
    file.unlink()
    with pytest.raises(OSError, match="No such file"):
        stored.read(0, 1)


BAD_NPY = [
    *map(raw_npy, ("(", "(" * 9000, "-" * 9000 + "1", "[" * 90 + "]" * 90, "{'descr': '<f4'")),
    *map(raw_npy, ("\\", "0x", "'\\d'", "\x00", "{1: 2}", "\xff\xfe")),
    raw_npy("\xff\xfe", version=3),
    raw_npy(" " * 100_000 + "{}", version=2),
    npy(version=9),
    npy(n_bytes=79),
    *map(npy, ("(-10, 2)", "(-10, -2)", "(10.0, 2)", "10", "(1,) * 9", "(20,)")),
    *map(npy, (f"({2**62}, 4)", f"({2**64}, 2)", f"({10**30}, 2)")),
    *(npy(descr=kind) for kind in ("'|O'", "'nothing'", "[('a', '<f4')]", "3", "'<i4'")),
    *(npy(descr=kind) for kind in ("('<f4', (10**9,))", "'<f4,' * 9", "'<f99999999999'")),
    b"\x93NUMPY",
    b"\x93NUMPY\x01\x00\xff",
    b"PK\x03\x04" + bytes(60),
    b"\x80\x04\x95" + bytes(30),
    bytes(200),
]
BAD_SAFETENSORS = [
    *map(safetensors, (b"", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{}", [], 3)),
    *map(safetensors, ({"activations": 3}, {"__metadata__": {"a": 3}}, {})),
    safetensors(tensor(), 80, length=2**63),
    safetensors(tensor(), 80, length=0),
    safetensors(tensor(), 79),
    safetensors(tensor(), 81),
    *(safetensors(tensor(s), 80) for s in ([-10, 2], [-10, -2], [10.0, 2], "10", [20])),
    *(safetensors(tensor([n, 2]), 80) for n in (2**62, 2**64, 10**30)),
    *(safetensors(tensor(start=start), 80) for start in (-80, 8)),
    *(safetensors(tensor(dtype=dtype), 80) for dtype in ("F3", 3, "I32")),
    safetensors(tensor([10, 2], 20, dtype="F8_E5M2"), 20),
    safetensors(tensor([10, 2], 160, dtype="C64"), 160),
    safetensors(tensor([], 4), 4),
    b"\x01",
]


@pytest.mark.parametrize(
    ("name", "contents"), [("x.npy", BAD_NPY), ("x.safetensors", BAD_SAFETENSORS)]
)
def test_headers_that_are_no_such(tmp_path: Path, name: str, contents: list[bytes]) -> None:
    """numpy has a kind of error for every kind of damage."""
    for content in (*contents, b""):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name) as refused:
            open_activations(tmp_path / name)
        assert len(str(refused.value)) < 800
    for content in (npy(), npy(version=2)) if name == "x.npy" else [safetensors(tensor(), 80)]:
        (tmp_path / name).write_bytes(content)
        assert open_activations(tmp_path / name).n_samples == 10


def pickled(file: Path) -> None:
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def several(file: Path) -> None:
    with file.open("wb") as opened:
        np.savez(opened, a=X.numpy(), b=X.numpy())


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("x.txt", lambda file: file.write_text("1"), r"neither a \.npy nor a \.safetensors"),
        ("pipe.npy", os.mkfifo, "no regular file"),
        ("x.npy", pickled, r"x\.npy is damaged"),
        ("x.npy", several, "np.save"),
        ("x.npy", lambda file: np.save(file, np.asfortranarray(X.numpy())), "row by row.*float32"),
        ("x.npy", lambda file: np.save(file, X.numpy().astype(">f4")), "byte order"),
        ("x.npy", lambda file: np.save(file, X[:0].numpy()), r"x\.npy holds no samples"),
        ("x.safetensors", lambda f: save_file({"a": X, "b": X + 1}, f), "2 of them: a F32.* b F32"),
        ("x.safetensors", lambda f: save_file({"bias": X[0]}, f), r"0 of them: bias F32 \[2\]"),
        ("x.safetensors", lambda f: save_file({"activations": X.int()}, f), "activations.* I32"),
    ],
)
def test_files_that_cannot_be_read_are_refused(
    tmp_path: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        open_activations(tmp_path / name)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no activations: no \.npy"):
        open_activations(tmp_path)
    np.save(tmp_path / "b.npy", X[4:9].numpy())
    save_file({"activations": X[:4]}, tmp_path / "a.safetensors")
    save_file({"x": X[9:].bfloat16()}, tmp_path / "c.safetensors")
    (tmp_path / ".b.npy").write_bytes(b"unfinished")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "d.npy").mkdir()
    stored = open_activations(tmp_path)
    names = [Path(part.name).name for part in stored.parts]
    assert names == ["a.safetensors", "b.npy", "c.safetensors"]
    assert torch.equal(stored.read(0, 10), X)
    for path in (tmp_path, tmp_path / "b.npy"):
        with pytest.raises(ValueError, match=r"no dataset .*column='x'"):
            open_activations(path, column="x")
    for name in ("none.npy", "none"):
        with pytest.raises(FileNotFoundError, match=f"no file.*{name}"):
            open_activations(tmp_path / name)
    np.save(tmp_path / "e.npy", torch.ones(3, 7).numpy())
    with pytest.raises(ValueError, match=r"e\.npy has d_in 7, .*a\.safetensors has 2"):
        open_activations(tmp_path)
    (tmp_path / "e.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"e\.npy .* 3 other"):
        open_activations(tmp_path)


def as_sae_lens_writes(x: torch.Tensor, dtype: str = "float32", ids: str = "int32") -> Dataset:
    token_ids = List(Value(ids), length=5)
    features = Features({HOOK: Array2D(shape=(5, 3), dtype=dtype), "token_ids": token_ids})
    numbers = torch.arange(len(x) * 5).view(len(x), 5) % 4
    return Dataset.from_dict({HOOK: x, "token_ids": numbers.tolist()}, features=features)


def saved(folder: Path, feature: Any, rows: Any) -> Path:
    Dataset.from_dict({"x": rows}, features=Features({"x": feature})).save_to_disk(folder)
    return folder


@pytest.mark.parametrize(
    ("dtype", "ids"), [("float16", "int32"), ("float32", "int64"), ("float64", "int32")]
)
def test_contexts_as_sae_lens_writes_them(tmp_path: Path, dtype: str, ids: str) -> None:
    # Several Arrow tables one after the other, as several shards give.
    x = CONTEXTS.to(getattr(torch, dtype))
    halves = [as_sae_lens_writes(half, dtype, ids) for half in x.split(4)]
    data = datasets.concatenate_datasets(halves)
    data.save_to_disk(tmp_path / "data", num_shards=2)
    assert is_activations(tmp_path / "data")
    flat, numbers = x.flatten(0, 1), torch.cat([torch.arange(20), torch.arange(15)]) % 4
    for stored in (open_activations(tmp_path / "data"), open_activations(tmp_path / "data", HOOK)):
        assert (stored.n_samples, stored.d_in, stored.dtype) == (35, 3, x.dtype)
        for start, stop in ((0, 35), (0, 1), (3, 8), (4, 5), (5, 10), (18, 33), (34, 35)):
            assert torch.equal(stored.read(start, stop), flat[start:stop])
            assert token_ids(stored, start, stop) == numbers[start:stop].tolist()
    kept = torch.cat(list(stored.batches(9, keep=without_tokens([0, 3]))))
    assert torch.equal(kept, flat[(numbers == 1) | (numbers == 2)].float())
    # In the order in which the dataset was shuffled.
    data.select([6, 0, 3]).remove_columns("token_ids").save_to_disk(tmp_path / "shuffled")
    stored = open_activations(tmp_path / "shuffled")
    assert torch.equal(stored.read(0, 15), x[[6, 0, 3]].flatten(0, 1))
    assert stored.read_token_ids(0, 15) is None


def test_a_token_id_beside_each_vector(tmp_path: Path) -> None:
    features = Features({"x": List(Value("float32")), "token_ids": Value("int64")})
    rows = {"x": FLAT.tolist(), "token_ids": [*range(34), None]}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path)
    stored = open_activations(tmp_path)
    assert token_ids(stored, 7, 20) == list(range(7, 20))
    with pytest.raises(OSError, match="token ids are missing"):
        stored.read_token_ids(20, 35)


@pytest.mark.parametrize(
    ("feature", "rows"),
    [
        (List(Value("float32"), length=3), FLAT),
        (List(Value("float32")), FLAT),
        (LargeList(Value("float32")), FLAT),
        (List(List(Value("float32"))), CONTEXTS),
        (Array2D((None, 3), "float32"), CONTEXTS),
    ],
)
def test_other_vectors_and_matrices(tmp_path: Path, feature: Any, rows: torch.Tensor) -> None:
    stored = open_activations(saved(tmp_path, feature, rows.numpy().tolist()))
    assert stored.n_samples == 35
    assert torch.equal(stored.read(2, 33), FLAT[2:33])


def test_uneven_rows_are_refused_when_they_are_read(tmp_path: Path) -> None:
    rows = [[[1.0, 2.0]] * 3, [[1.0, 2.0]] * 3, [[1.0, 2.0]] * 2]
    stored = open_activations(saved(tmp_path / "uneven", List(List(Value("float32"))), rows))
    assert stored.read(0, 6).tolist() == [[1.0, 2.0]] * 6
    for start in (5, 6):
        with pytest.raises(OSError, match=r"uneven, column 'x' .*3 × 2 numbers"):
            stored.read(start, 7)
    vectors = List(Value("float32"))
    holes = open_activations(saved(tmp_path / "holes", vectors, [[1.0, 2.0], [1.0, None]]))
    with pytest.raises(ValueError, match="nan at sample 1, dimension 1"):
        holes.read(0, 2)


def test_datasets_that_are_refused(tmp_path: Path) -> None:
    features = {
        "a": List(Value("float32")),
        "b": List(Value("float16")),
        "ids": List(Value("int64")),
        "cube": Array3D((1, 1, 2), "float32"),
    }
    row = {"a": [[1.0, 2.0]], "b": [[3.0]], "ids": [[4]], "cube": [[[[1.0, 2.0]]]]}
    two, data = Dataset.from_dict(row, features=Features(features)), as_sae_lens_writes(CONTEXTS)
    for name, content in {
        "two": two,
        "ids": two.select_columns(["ids"]),
        "empty": data.select([]),
        "splits": DatasetDict({"test": data, "train": data}),
        "no_train": DatasetDict({"test": data, "validation": data}),
        "cut": data,
    }.items():
        content.save_to_disk(tmp_path / name)
    (file,) = (tmp_path / "cut").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    saved(tmp_path / "first", List(Value("float32")), [None, [1.0]])
    assert open_activations(tmp_path / "two", column="b").read(0, 1).tolist() == [[3.0]]
    assert is_activations(tmp_path / "splits")
    assert torch.equal(open_activations(tmp_path / "splits").read(0, 35), FLAT)
    for name, column, message in (
        ("two", None, r"several columns .* a \("),
        ("two", "c", r"no column 'c' .* a \("),
        ("two", "ids", r"no column 'ids' .* a \("),
        ("two", "cube", r"no column 'cube' .* a \("),
        ("ids", None, r"no column of .* ids \("),
        ("empty", None, "empty is no dataset"),
        ("no_train", None, r"splits \(test, validation\)"),
        ("cut", None, "cut is no dataset"),
        ("first", None, "first row is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            open_activations(tmp_path / name, column)


def test_a_dataset_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    there = {"user/name": as_sae_lens_writes(CONTEXTS), "user/empty": Dataset.from_dict({})}
    asked: list[str] = []

    def load(name: str, config: None, *, split: str, streaming: bool) -> Dataset:
        assert (config, split, streaming) == (None, "train", False)
        asked.append(name)
        return there[name]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert torch.equal(open_activations("user/name").read(4, 6), FLAT[4:6])
    with pytest.raises(OSError, match=r"user/other.*KeyError"):
        open_activations("user/other")
    with pytest.raises(ValueError, match="user/empty is empty"):
        open_activations("user/empty")
    Path("user").mkdir()
    with pytest.raises(FileNotFoundError, match="no file or folder user/name"):
        open_activations("user/name")
    assert asked == ["user/name", "user/other", "user/empty"]
