"""Folders of files of activations, and caches with a manifest."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparse_but_wrong.activations import shards
from sparse_but_wrong.activations.stored import open_activations

X = torch.arange(24.0).view(12, 2)
N_SAMPLES = (5, 3, 4)


def write_cache(folder: Path, **changes: Any) -> dict[str, Any]:
    """A cache of three shards, and its manifest with some keys changed."""
    folder.mkdir(exist_ok=True)
    shards = []
    for i, x in enumerate(X.bfloat16().split(list(N_SAMPLES))):
        # Names in the wrong order: the manifest says which comes first.
        file = folder / f"shard-{9 - i:05d}.safetensors"
        ids = torch.zeros(len(x), dtype=torch.int32)
        save_file({"activations": x.clone(), "token_ids": ids}, file)
        shards.append({"file": file.name, "n_samples": len(x), "bytes": file.stat().st_size})
    manifest = {
        "format": "sparse_but_wrong activations",
        "format_version": 1,
        "d_in": 2,
        "n_samples": 12,
        "mean_norm": 7.5,
        "complete": True,
        "shards": shards,
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def test_files_are_taken_by_name(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", X[4:9].numpy())
    save_file({"activations": X[:4]}, tmp_path / "a.safetensors")
    save_file({"x": X[9:].bfloat16()}, tmp_path / "c.safetensors")
    (tmp_path / ".b.npy").write_bytes(b"unfinished")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "d.npy").mkdir()
    stored = open_activations(tmp_path)
    assert [Path(part.name).name for part in stored.parts] == [
        "a.safetensors",
        "b.npy",
        "c.safetensors",
    ]
    assert torch.equal(stored.read(0, 12), X)
    assert stored.mean_norm is None


def test_folders_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no activations: no \.npy"):
        open_activations(tmp_path)
    np.save(tmp_path / "a.npy", X[:0].numpy())
    with pytest.raises(ValueError, match="holds no samples"):
        open_activations(tmp_path)
    np.save(tmp_path / "b.npy", X.numpy())
    np.save(tmp_path / "c.npy", torch.ones(3, 7).numpy())
    with pytest.raises(ValueError, match=r"c\.npy has d_in 7, but .*a\.npy has 2"):
        open_activations(tmp_path)
    (tmp_path / "c.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"c\.npy holds no array .* leaves 2 others"):
        open_activations(tmp_path)
    (tmp_path / "c.npy").unlink()
    (tmp_path / "aa.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match=r"aa\.safetensors is damaged .* leaves 2 others"):
        open_activations(tmp_path)
    (tmp_path / "aa.safetensors").unlink()
    assert open_activations(tmp_path).n_samples == 12


@pytest.mark.parametrize("complete", [True, False])
def test_a_cache_is_what_its_manifest_lists(tmp_path: Path, complete: bool) -> None:
    write_cache(tmp_path, complete=complete, model="tiny")
    # Not listed: perhaps of a cache that is being written.
    save_file({"activations": X}, tmp_path / "shard-00099.safetensors")
    stored = open_activations(tmp_path)
    assert stored.mean_norm == 7.5
    assert stored.dtype == torch.bfloat16
    assert [part.n_samples for part in stored.parts] == list(N_SAMPLES)
    assert torch.equal(stored.read(0, 12), X.bfloat16())


def test_a_cache_without_a_mean_norm(tmp_path: Path) -> None:
    write_cache(tmp_path, mean_norm=None)
    assert open_activations(tmp_path).mean_norm is None


def test_shards_that_are_not_what_the_manifest_lists_are_refused(tmp_path: Path) -> None:
    shards = write_cache(tmp_path)["shards"]
    second = tmp_path / shards[1]["file"]
    whole = second.read_bytes()

    def refuse(message: str, kind: type[Exception] = ValueError) -> None:
        with pytest.raises(kind, match=message) as refused:
            open_activations(tmp_path)
        assert second.name in str(refused.value)
        assert "`sbw cache-activations` with --resume makes it anew" in str(refused.value)

    second.write_bytes(whole[:-2])
    refuse(rf"is damaged \({len(whole) - 2} bytes; manifest.json lists {len(whole)}\)")
    second.write_bytes(b"\xff" * len(whole))
    refuse("is damaged")
    second.unlink()
    refuse("is missing, but manifest.json lists it", FileNotFoundError)
    second.write_bytes(whole)
    open_activations(tmp_path)
    shards[1]["n_samples"] = 4
    write_cache(tmp_path, shards=shards)
    refuse(r"shape \[3, 2\]; manifest.json lists \[4, 2\]")
    shards[1]["n_samples"] = 3
    write_cache(tmp_path, shards=shards, d_in=3)
    with pytest.raises(ValueError, match=r"shape \[5, 2\]; manifest.json lists \[5, 3\]"):
        open_activations(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": []}, "holds no activations yet"),
        ({"format_version": 3}, "has the format version 3, but .* reads 1 and 2"),
        ({"format": "something else"}, "is not the manifest of a cache of activations"),
        ({"shards": [{"file": "x.safetensors"}]}, r"is damaged .*'n_samples'"),
        ({"shards": 3}, "is damaged .*shards is 3"),
        ({"shards": ["x"]}, r"is damaged .*shards\[0\] is 'x'"),
        ({"mean_norm": "much"}, "is damaged .*mean_norm is 'much'"),
        ({"d_in": 2.5}, r"is damaged .*d_in is 2\.5"),
        (
            {"shards": [{"file": "x.npy", "n_samples": -1, "bytes": 1}]},
            "is damaged .*n_samples is -1",
        ),
        (
            {"shards": [{"file": "x.npy", "n_samples": 9, "bytes": 1}]},
            "is damaged .*1 bytes for 9 samples",
        ),
        (
            {"shards": [{"file": "x.npy", "n_samples": 1, "bytes": 4}] * 2},
            "is damaged .*listed twice",
        ),
        (
            {"shards": [{"file": "../x.npy", "n_samples": 1, "bytes": 1}]},
            r"'\.\./x\.npy' is not the plain name",
        ),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_cache(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        open_activations(tmp_path)


def test_checksums_are_compared_where_that_takes_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = write_cache(tmp_path)["shards"]
    for entry in entries:
        entry["sha256"] = sha256((tmp_path / entry["file"]).read_bytes()).hexdigest()
    write_cache(tmp_path, shards=entries)
    assert torch.equal(open_activations(tmp_path).read(0, 12), X.bfloat16())
    second = tmp_path / entries[1]["file"]
    content = bytearray(second.read_bytes())
    content[-1] ^= 1
    second.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{second.name} is damaged .*SHA-256.* --resume"):
        open_activations(tmp_path)
    monkeypatch.setattr(shards, "_CHECKSUMS_UP_TO", sum(e["bytes"] for e in entries) - 1)
    assert open_activations(tmp_path).n_samples == 12


def test_a_manifest_that_is_cut_off(tmp_path: Path) -> None:
    write_cache(tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text[:-9])
    with pytest.raises(ValueError, match=r"manifest\.json is damaged .* move that file away"):
        open_activations(tmp_path)
