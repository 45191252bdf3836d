"""A folder of files of activations, with or without the manifest of a cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparse_but_wrong.activations.npy_part import open_npy
from sparse_but_wrong.activations.part import Part
from sparse_but_wrong.activations.safetensors_part import open_safetensors
from sparse_but_wrong.untrusted import plain_name, read_json

SUFFIXES = (".npy", ".safetensors")
MANIFEST = "manifest.json"
FORMAT = "sparse_but_wrong activations"
FORMAT_VERSION = 1

_ANEW = "`sbw cache-activations` with --resume makes it anew"


@dataclass(frozen=True)
class _Listed:
    """What the manifest of a cache says of a shard."""

    file: str
    n_samples: int
    d_in: int
    n_bytes: int


def open_file(path: Path) -> Part:
    """The activations in a .npy or .safetensors file.

    Raises:
        OSError: it cannot be opened.
        ValueError: another kind of file, a damaged one, or one that holds no activations.
    """
    if path.suffix == ".npy":
        return open_npy(path)
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    raise ValueError(f"{path} is neither a .npy nor a .safetensors file.")


def open_shards(folder: Path) -> tuple[list[Part], float | None]:
    """The files of activations in a folder, in order, and their mean norm where it is known.

    With the manifest of a cache these are the files that it lists, also where the cache is not
    complete: what is listed is whole. Without one they are all .npy and .safetensors files, by
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
    listed, mean_norm = _read_manifest(folder / MANIFEST)
    if not listed:
        raise ValueError(
            f"the cache in {folder} holds no activations yet; go on with `sbw cache-activations` "
            "and --resume."
        )
    return [_open_shard(folder, shard) for shard in listed], mean_norm


def _open_shard(folder: Path, shard: _Listed) -> Part:
    path = folder / shard.file
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, but {MANIFEST} lists it; put it back, or {_ANEW}."
        )
    n_bytes = path.stat().st_size
    if n_bytes != shard.n_bytes:
        raise ValueError(
            f"{path} is damaged ({n_bytes} bytes; {MANIFEST} lists {shard.n_bytes}); {_ANEW}."
        )
    try:
        part = open_file(path)
    except ValueError as error:
        raise ValueError(f"{error} {_ANEW}.") from error
    if (part.n_samples, part.d_in) != (shard.n_samples, shard.d_in):
        raise ValueError(
            f"{path} is damaged (shape [{part.n_samples}, {part.d_in}]; {MANIFEST} lists "
            f"[{shard.n_samples}, {shard.d_in}]); {_ANEW}."
        )
    return part


def _read_manifest(file: Path) -> tuple[list[_Listed], float | None]:
    manifest = read_json(
        file, "make the cache anew, or move that file away to read all shards beside it"
    )
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{file} is not the manifest of activations, so that {file.parent} is something else; "
            "name the folder of a cache, or the files of activations."
        )
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{file} has the format version {manifest.get('format_version')}, but this version of "
            f"sparse_but_wrong reads {FORMAT_VERSION}; use the version that wrote it."
        )
    try:
        d_in, mean_norm = int(manifest["d_in"]), manifest.get("mean_norm")
        listed = [
            _Listed(plain_name(shard["file"]), int(shard["n_samples"]), d_in, int(shard["bytes"]))
            for shard in manifest["shards"]
        ]
        return listed, None if mean_norm is None else float(mean_norm)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}); make the cache anew."
        ) from error
