"""A folder of files of activations, with or without the manifest of a cache."""

from __future__ import annotations

from pathlib import Path

from sparse_but_wrong.activations.manifest import MANIFEST, Shard, read_manifest
from sparse_but_wrong.activations.npy_part import open_npy
from sparse_but_wrong.activations.part import Part
from sparse_but_wrong.activations.safetensors_part import open_safetensors
from sparse_but_wrong.untrusted import sha256

SUFFIXES = (".npy", ".safetensors")
_CHECKSUMS_UP_TO = 2 * 2**30
"""Bytes of a cache of which checksums are compared when it is opened, at more than 1 GB per second.
Larger ones would make everybody wait who reads only a little; for them, `--resume` compares."""

_ANEW = "`sbw cache-activations` with --resume makes it anew"


def open_file(path: Path) -> Part:
    """The activations in a .npy or .safetensors file.

    Raises:
        OSError: it cannot be opened.
        ValueError: another kind of file, a damaged one, or one that holds no activations.
    """
    # A pipe would be waited for without end.
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file.")
    if path.suffix == ".npy":
        return open_npy(path)
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    raise ValueError(f"{path} is neither a .npy nor a .safetensors file.")


def open_shards(folder: Path) -> tuple[list[Part], float | None]:
    """The files of activations in a folder, in order, and their mean norm where it is known.

    With the manifest of a cache these are the files that it lists, also where the cache is not
    complete: what is listed is whole, which size and header show, and in caches of up to 2 GiB the
    checksum. Without one they are all .npy and .safetensors files, by
    name; hidden files are left out.

    Raises:
        FileNotFoundError: no such files, or one that the manifest lists is missing.
        ValueError: a file or the manifest is damaged, or does not hold what it should.
    """
    if (folder / MANIFEST).is_file():
        return _open_listed(folder)
    files = shard_files(folder)
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no activations: no .npy and no .safetensors files, no {MANIFEST} of a "
            "cache and no data set (dataset_info.json and state.json)."
        )
    parts = []
    for file in files:
        try:
            parts.append(open_file(file))
        except ValueError as error:
            rest = f" Moved away, it leaves {len(files) - 1} others that can be used."
            raise ValueError(f"{error}{rest if len(files) > 1 else ''}") from error
    return parts, None


def shard_files(folder: Path) -> list[Path]:
    """All .npy and .safetensors files in a folder, by name; hidden files are left out."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def _open_listed(folder: Path) -> tuple[list[Part], float | None]:
    manifest = read_manifest(
        folder / MANIFEST,
        "make the cache anew, or move that file away to read all shards beside it",
    )
    if not manifest.shards:
        raise ValueError(
            f"the cache in {folder} holds no activations yet; go on with `sbw cache-activations` "
            "and --resume."
        )
    with_checksum = sum(shard.bytes for shard in manifest.shards) <= _CHECKSUMS_UP_TO
    parts = [_open_shard(folder, shard, manifest.d_in, with_checksum) for shard in manifest.shards]
    return parts, manifest.mean_norm


def _open_shard(folder: Path, shard: Shard, d_in: int, with_checksum: bool) -> Part:
    path = folder / shard.file
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, but {MANIFEST} lists it; put it back, or {_ANEW}."
        )
    n_bytes = path.stat().st_size
    if n_bytes != shard.bytes:
        raise ValueError(
            f"{path} is damaged ({n_bytes} bytes; {MANIFEST} lists {shard.bytes}); {_ANEW}."
        )
    try:
        part = open_file(path)
    except ValueError as error:
        raise ValueError(f"{error} {_ANEW}.") from error
    if (part.n_samples, part.d_in) != (shard.n_samples, d_in):
        raise ValueError(
            f"{path} is damaged (shape [{part.n_samples}, {part.d_in}]; {MANIFEST} lists "
            f"[{shard.n_samples}, {d_in}]); {_ANEW}."
        )
    if with_checksum and shard.sha256 not in (None, sha256(path)):
        raise ValueError(
            f"{path} is damaged (its SHA-256 is not the one that {MANIFEST} lists); {_ANEW}."
        )
    return part
