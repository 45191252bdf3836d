"""The manifest of a cache of activations: what it says, checked, for whoever reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_but_wrong.untrusted import one_line, plain_name, read_json

MANIFEST = "manifest.json"
FORMAT = "sparse_but_wrong activations"
FORMAT_VERSION = 2
"""What is written. Format 1, which has no checksums, is read too."""

_LARGEST = 2**53
"""The largest number of which every JSON parser knows all digits; no count or norm comes near."""

_READABLE = (1, FORMAT_VERSION)
_FROM_OTHERS: dict[str, Any] = {
    "first_sequence": 0,
    "n_sequences": 0,
    "mean_norm": 0.0,
    "max_norm": 0.0,
}


@dataclass(frozen=True)
class Shard:
    """What the manifest says of a shard."""

    file: str
    n_samples: int
    first_sequence: int
    """Of the text; sequences are counted from 0."""

    n_sequences: int
    bytes: int
    mean_norm: float
    """Mean of the samples' L2 norms, as they are stored."""

    max_norm: float
    n_tokens: int | None = None
    """Tokens that were run for it; not in format 1."""

    sha256: str | None = None
    """Of the file, in hexadecimal; not in format 1."""


@dataclass(frozen=True)
class Manifest:
    """What the manifest says."""

    d_in: int
    mean_norm: float | None
    shards: tuple[Shard, ...]
    content: dict[str, Any]
    """All of it, of which only what is above and the version are checked."""


def shard_name(index: int) -> str:
    """The name of the shard at a place in the order."""
    return f"shard-{index:05d}.safetensors"


def read_manifest(file: Path, remedy: str, *, to_resume: bool = False) -> Manifest:
    """The manifest in a file. Nothing in it names a place outside its folder.

    Args:
        remedy: what to do about a damaged manifest, for the message.
        to_resume: whether it has to have all that a cache is resumed by, and under the names that
            are given; otherwise what is needed to read the activations will do.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of another version, or of something else.
    """
    content = read_json(file, remedy)
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{file} is not the manifest of a cache of activations, so that {file.parent} is "
            "something else; name the folder of a cache, or the files of activations."
        )
    version = content.get("format_version")
    if type(version) is not int or version not in _READABLE:
        raise ValueError(
            f"{file} has the format version {version!r}, but this version of sparse_but_wrong "
            f"reads {' and '.join(map(str, _READABLE))}; use the version that wrote it."
        )
    try:
        return _checked(content, {} if to_resume else _FROM_OTHERS, strict_names=to_resume)
    except KeyError as error:
        raise ValueError(f"{file} is damaged ({error} is missing); {remedy}.") from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({one_line(error)}); {remedy}.") from error


def _checked(content: dict[str, Any], defaults: dict[str, Any], strict_names: bool) -> Manifest:
    d_in, mean_norm = whole(content, "d_in", 1), content.get("mean_norm")
    entries = content["shards"]
    if not isinstance(entries, list):
        raise ValueError(f"shards is {entries!r}")
    shards, done = [], 0
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"shards[{i}] is {entry!r}")
        shard = _shard({**defaults, **entry}, least=int(strict_names))
        if strict_names and shard.file != shard_name(i):
            raise ValueError(f"shards[{i}] is called {shard.file!r} instead of {shard_name(i)!r}")
        if shard.n_samples * d_in > shard.bytes:
            raise ValueError(f"{shard.file} has {shard.bytes} bytes for {shard.n_samples} samples")
        if shard.first_sequence < done:
            raise ValueError(f"{shard.file} begins with a sequence that is in another shard")
        done = shard.first_sequence + shard.n_sequences
        shards.append(shard)
    if len({shard.file for shard in shards}) < len(shards):
        raise ValueError("a shard is listed twice")
    return Manifest(
        d_in,
        None if mean_norm is None else _norm(content, "mean_norm"),
        tuple(shards),
        content,
    )


def _shard(entry: dict[str, Any], least: int) -> Shard:
    checksum = entry.get("sha256")
    if checksum is not None and not _is_checksum(checksum):
        raise ValueError(f"sha256 is {checksum!r}")
    return Shard(
        plain_name(entry["file"]),
        whole(entry, "n_samples", 1),
        whole(entry, "first_sequence", 0),
        whole(entry, "n_sequences", least),
        whole(entry, "bytes", 1),
        _norm(entry, "mean_norm"),
        _norm(entry, "max_norm"),
        None if entry.get("n_tokens") is None else whole(entry, "n_tokens", 1),
        checksum,
    )


def whole(entry: dict[str, Any], name: str, least: int) -> int:
    """A whole number of JSON that is at least so large.

    Raises:
        KeyError: it is missing.
        ValueError: something else.
    """
    value = entry[name]
    # JSON's true is a bool, which Python counts among the ints.
    if type(value) is not int or not least <= value <= _LARGEST:
        raise ValueError(f"{name} is {value!r}")
    return value


def _norm(entry: dict[str, Any], name: str) -> float:
    value = entry[name]
    if type(value) not in (int, float) or not 0 <= value <= _LARGEST:
        raise ValueError(f"{name} is {value!r}")
    return float(value)


def _is_checksum(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
