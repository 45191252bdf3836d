"""Activations in files: .npy, .safetensors, folders of them, and caches with a manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparse_but_wrong.activations import manifest
from sparse_but_wrong.activations.stored import open_activations

X = torch.arange(20.0).view(10, 2)
FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_was_saved_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    x = X.to(dtype)
    save_file({"anything": x, "ids": torch.arange(10)}, tmp_path / "one.safetensors")
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


def test_token_ids(tmp_path: Path) -> None:
    ids = torch.arange(10, 20)
    save_file({"activations": X, "token_ids": ids.int()}, tmp_path / "a.safetensors")
    save_file({"activations": X, "token_ids": ids}, tmp_path / "b.safetensors")
    both = open_activations(tmp_path).read_token_ids(8, 13)
    assert both is not None
    assert both.tolist() == [18, 19, 10, 11, 12]
    # One whole number per row or none.
    for odd in (ids[:9], X[:, 0].clone()):
        save_file({"activations": X, "token_ids": odd}, tmp_path / "c.safetensors")
        assert open_activations(tmp_path / "c.safetensors").read_token_ids(0, 9) is None


@pytest.mark.parametrize("name", ["large.npy", "large.safetensors"])
def test_the_rest_of_a_file_is_not_read(tmp_path: Path, name: str) -> None:
    n_samples, d_in = 2**28, 32  # 32 GiB of nothing: a sparse file, larger than most memories
    data = {"dtype": "F32", "shape": [n_samples, d_in], "data_offsets": [0, 4 * n_samples * d_in]}
    text = json.dumps({"activations": data}).encode()
    with (tmp_path / name).open("wb") as file:
        if name.endswith(".npy"):
            header = {"descr": "<f4", "fortran_order": False, "shape": (n_samples, d_in)}
            np.lib.format.write_array_header_1_0(file, header)
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


def npy(shape: str = "(10, 2)", descr: str = "'<f4'", n_bytes: int = 80, version: int = 1) -> bytes:
    return raw_npy(
        f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}", n_bytes, version
    )


def raw_npy(header: str, n_bytes: int = 0, version: int = 1) -> bytes:
    text = header.encode("latin-1").ljust(-(-(len(header) + 11) // 64) * 64 - 11) + b"\n"
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + bytes(n_bytes)


@pytest.mark.parametrize(
    "content",
    [
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
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff",
        b"PK\x03\x04" + bytes(60),
        b"\x80\x04\x95" + bytes(30),
        bytes(200),
    ],
)
def test_npy_headers_that_are_no_such(tmp_path: Path, content: bytes) -> None:
    """numpy has a kind of error for every kind of damage."""
    file = tmp_path / "x.npy"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npy") as refused:
        open_activations(file)
    assert len(str(refused.value)) < 800
    for version in (1, 2):
        file.write_bytes(npy(version=version))
        assert open_activations(file).n_samples == 10


def safetensors(header: object, data: int = 0, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)


def tensor(
    shape: object = (10, 2), n_bytes: int = 80, dtype: object = "F32", start: int = 0
) -> object:
    return {"activations": {"dtype": dtype, "shape": shape, "data_offsets": [start, n_bytes]}}


@pytest.mark.parametrize(
    "content",
    [
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
        b"",
    ],
)
def test_safetensors_headers_that_are_no_such(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.safetensors") as refused:
        open_activations(tmp_path / "x.safetensors")
    assert len(str(refused.value)) < 800


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
        ("x.npy", pickled, r"x\.npy is damaged or|x\.npy is damaged"),
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


def test_what_is_not_there_and_what_has_no_columns(tmp_path: Path) -> None:
    for name in ("none.npy", "none"):
        with pytest.raises(FileNotFoundError, match=f"no file.*{name}"):
            open_activations(tmp_path / name)
    np.save(tmp_path / "x.npy", X.numpy())
    for path in (tmp_path, tmp_path / "x.npy"):
        with pytest.raises(ValueError, match=r"no dataset .*column='x'"):
            open_activations(path, column="x")


def test_files_are_taken_by_name(tmp_path: Path) -> None:
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
    assert stored.mean_norm is None


def test_folders_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no activations: no \.npy"):
        open_activations(tmp_path)
    np.save(tmp_path / "b.npy", X.numpy())
    np.save(tmp_path / "c.npy", torch.ones(3, 7).numpy())
    with pytest.raises(ValueError, match=r"c\.npy .* 7.* b\.npy .* 2|c\.npy has d_in 7"):
        open_activations(tmp_path)
    (tmp_path / "c.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"c\.npy .* 1 other"):
        open_activations(tmp_path)


N_SAMPLES = (5, 3, 2)


def write_cache(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """A cache of three shards whose manifest has some keys changed; returns what it lists."""
    shards = []
    for i, x in enumerate(X.bfloat16().split(list(N_SAMPLES))):
        # Names in the wrong order: the manifest says which comes first.
        file = folder / f"shard-{9 - i:05d}.safetensors"
        ids = torch.zeros(len(x), dtype=torch.int32)
        save_file({"activations": x.clone(), "token_ids": ids}, file)
        shards.append({"file": file.name, "n_samples": len(x), "bytes": file.stat().st_size})
    content = {
        "format": "sparse_but_wrong activations",
        "format_version": 1,
        "d_in": 2,
        "mean_norm": 7.5,
        "shards": shards,
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(content))
    return shards


@pytest.mark.parametrize("complete", [True, False])
def test_a_cache_is_what_its_manifest_lists(tmp_path: Path, complete: bool) -> None:
    mean_norm = 7.5 if complete else None
    write_cache(tmp_path, complete=complete, model="tiny", mean_norm=mean_norm)
    # Not listed: perhaps of a cache that is being written.
    save_file({"activations": X}, tmp_path / "shard-00099.safetensors")
    stored = open_activations(tmp_path)
    assert stored.mean_norm == mean_norm
    assert [part.n_samples for part in stored.parts] == list(N_SAMPLES)
    assert stored.dtype == torch.bfloat16
    assert torch.equal(stored.read(0, 10), X.bfloat16())


def test_shards_that_are_not_what_the_manifest_lists_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_cache(tmp_path)
    second = tmp_path / shards[1]["file"]
    whole = second.read_bytes()

    def refuse(message: str, kind: type[Exception] = ValueError) -> None:
        with pytest.raises(kind, match=message) as refused:
            open_activations(tmp_path)
        assert second.name in str(refused.value)
        assert "`sbw cache-activations --resume`" in str(refused.value)

    second.write_bytes(whole[:-2])
    refuse(rf"{len(whole) - 2} bytes; .* {len(whole)}")
    second.write_bytes(b"\xff" * len(whole))
    refuse("is damaged")
    second.unlink()
    refuse("is missing", FileNotFoundError)
    second.write_bytes(whole)
    shards[1]["n_samples"] = 4
    write_cache(tmp_path, shards=shards)
    refuse(r"\[3, 2\].* \[4, 2\]")
    shards[1]["n_samples"] = 3
    for entry in shards:
        entry["sha256"] = sha256((tmp_path / entry["file"]).read_bytes()).hexdigest()
    write_cache(tmp_path, shards=shards)
    assert open_activations(tmp_path).n_samples == 10
    second.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refuse("SHA-256")
    # Only where that takes no time.
    monkeypatch.setattr(manifest, "_CHECKSUMS_UP_TO", sum(e["bytes"] for e in shards) - 1)
    assert open_activations(tmp_path).n_samples == 10


ENTRY = {"file": "x.npy", "n_samples": 1, "bytes": 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": []}, "no activations yet"),
        ({"format_version": 3}, "version 3, but .* 1 and 2"),
        ({"format": "something else"}, "not the manifest of a cache"),
        ({"shards": [{"file": "x.safetensors"}]}, "is damaged .*n_samples"),
        ({"shards": 3}, "is damaged .*shards is 3"),
        ({"shards": ["x"]}, r"is damaged .*shards\.0 is 'x'"),
        ({"mean_norm": "much"}, "is damaged .*mean_norm is 'much'"),
        ({"d_in": 2.5}, r"is damaged .*d_in is 2\.5"),
        ({"shards": [ENTRY | {"n_samples": -1}]}, "is damaged .*n_samples is -1"),
        ({"shards": [ENTRY | {"n_samples": 9}]}, "is damaged .*4 bytes for 9"),
        ({"shards": [ENTRY] * 2}, "is damaged .*listed twice"),
        ({"shards": [ENTRY | {"file": "../x.npy"}]}, r"'\.\./x\.npy'.* plain name"),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_cache(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        open_activations(tmp_path)
    file = tmp_path / "manifest.json"
    file.write_text(file.read_text()[:-9])
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .* move that file away"):
        open_activations(tmp_path)
