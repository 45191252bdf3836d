"""A cache of activations on disk: its manifest, which shards are whole, and reading both.

Nothing in a manifest names a place outside its folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from sparse_but_wrong.activations.parts import FilePart, open_file
from sparse_but_wrong.atomic import LOCK, write_bytes
from sparse_but_wrong.untrusted import damaged, plain_name, read_json, sha256

MANIFEST = "manifest.json"
FORMAT = "sparse_but_wrong activations"
FORMAT_VERSION = 2
"""Format 1, which has no checksums, is read too."""

_READABLE = (1, FORMAT_VERSION)
_CHECKSUMS_UP_TO = 2 * 2**30
"""Bytes of caches whose checksums are compared when they are opened, at more than 1 GB per second;
those of larger ones when they are resumed."""

_AGAIN = "`sbw cache-activations --resume` makes it again"

# The largest number of which every JSON parser knows all digits; no count or norm comes near.
Whole = Annotated[int, Field(ge=0, le=2**53)]
Count = Annotated[int, Field(ge=1, le=2**53)]
Norm = Annotated[float, Field(ge=0, le=2**53)]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """An entry of the manifest. Who only reads needs the name, the samples and the size."""

    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False)

    file: Annotated[str, AfterValidator(plain_name)]
    n_samples: Count
    first_sequence: Whole = 0
    """Its number in the text, from 0."""

    n_sequences: Whole = 0
    bytes: Count
    mean_norm: Norm = 0.0
    """Mean of the samples' L2 norms, as they are stored."""

    max_norm: Norm = 0.0
    n_tokens: Count | None = None
    """Tokens that were run for it; missing in format 1."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Missing in format 1."""


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False)

    d_in: Count
    mean_norm: Norm | None = None
    shards: tuple[Shard, ...]
    # Who only reads does without these.
    tokens: Count = 1
    text_ended: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)
    resumed: tuple[dict[str, Any], ...] = ()
    piece_size: Count | None = None

    def check(self) -> None:
        """Raise ValueError for shards that contradict each other."""
        done = 0
        for shard in self.shards:
            if shard.n_samples * self.d_in > shard.bytes:
                raise ValueError(f"{shard.file} has {shard.bytes} bytes for {shard.n_samples}")
            if shard.first_sequence < done:
                raise ValueError(f"{shard.file} begins with a sequence that is in another shard")
            done = shard.first_sequence + shard.n_sequences
        if len({shard.file for shard in self.shards}) < len(self.shards):
            raise ValueError("a shard is listed twice")


_TO_RESUME = {"tokens", "text_ended", "provenance", "resumed"}
_OF_SHARDS_TO_RESUME = {f.name for f in fields(Shard)} - {"n_tokens", "sha256"}


@dataclass(frozen=True)
class Cache:
    """A cache of activations, at some time."""

    folder: Path
    settings: dict[str, Any]
    """What must not change while it is made, under the names of the manifest."""

    tokens: int
    """Samples to keep."""

    text_ended: bool
    """Whether all of the text is in it."""

    shards: tuple[Shard, ...]
    provenance: dict[str, Any]
    resumed: tuple[dict[str, Any], ...] = ()
    """The provenance of every later process that worked on it."""

    piece_size: int | None = None
    """Characters after which a long document is cut before it is tokenized; None in caches of
    format 1, which tokenized documents whole, and kept only the start of long rows of ids."""

    @property
    def n_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.n_samples for shard in self.shards)

    @property
    def n_sequences(self) -> int:
        """Sequences of the text that are done."""
        return max((shard.first_sequence + shard.n_sequences for shard in self.shards), default=0)

    @property
    def n_tokens(self) -> int:
        """Tokens that were run for all shards."""
        # In format 1, sequences were all of one length.
        length = self.settings["context_size"]
        return sum(
            shard.n_sequences * length if shard.n_tokens is None else shard.n_tokens
            for shard in self.shards
        )

    @property
    def mean_norm(self) -> float | None:
        """Mean of the samples' L2 norms, if there are any."""
        total = math.fsum(shard.n_samples * shard.mean_norm for shard in self.shards)
        return total / self.n_samples if self.shards else None

    @property
    def max_norm(self) -> float | None:
        """Largest L2 norm of a sample, if there are any."""
        return max((shard.max_norm for shard in self.shards), default=None)

    @property
    def complete(self) -> bool:
        """Whether there is nothing to do any more."""
        return self.text_ended or self.n_samples >= self.tokens

    def write(self) -> None:
        """Write the manifest."""
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **self.settings,
            "tokens": self.tokens,
            "n_samples": self.n_samples,
            "mean_norm": self.mean_norm,
            "max_norm": self.max_norm,
            "n_tokens_run": self.n_tokens,
            "piece_size": self.piece_size,
            "text_ended": self.text_ended,
            "complete": self.complete,
            "shards": [asdict(shard) for shard in self.shards],
            "provenance": self.provenance,
            "resumed": list(self.resumed),
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        write_bytes(self.folder / MANIFEST, text.encode())

    def remove_empty(self, *, with_folder: bool) -> None:
        """Remove a cache without shards, and its folder if asked to; any other is left as it is."""
        with suppress(OSError):
            if any(file.name not in (MANIFEST, LOCK) for file in self.folder.iterdir()):
                return
            for name in (MANIFEST, LOCK):
                (self.folder / name).unlink(missing_ok=True)
            if with_folder:
                self.folder.rmdir()


def shard_name(index: int) -> str:
    """The name of the shard at a place in the order."""
    return f"shard-{index:05d}.safetensors"


def read_cache(folder: Path, settings: Mapping[str, Any]) -> Cache:
    """The cache in a folder, to resume it; ValueError if it is damaged, or a setting differs."""
    content, found = _read(folder / MANIFEST, "make the cache again", to_resume=True)
    for name, value in settings.items():
        if content.get(name) != value:
            before, now = (json.dumps(v, ensure_ascii=False) for v in (content.get(name), value))
            raise ValueError(
                f"the cache in {folder} was made with {name} {before[:200]}, not {now[:200]}; use "
                "its settings, or another folder."
            )
    kept = {f.name: getattr(found, f.name) for f in fields(Cache)[2:]}
    return Cache(folder, dict(settings), **kept)


def _read(file: Path, remedy: str, *, to_resume: bool) -> tuple[dict[str, Any], _Manifest]:
    """A manifest, as it is and checked."""
    content = read_json(file, remedy)
    if content.get("format") != FORMAT:
        raise ValueError(f"{file} is not the manifest of a cache of activations.")
    version = content.get("format_version")
    if type(version) is not int or version not in _READABLE:
        known = " and ".join(map(str, _READABLE))
        raise ValueError(f"{file} has format version {version!r}, but this version reads {known}.")
    try:
        # As JSON, where lists stand for tuples and objects for dataclasses.
        found: _Manifest = TypeAdapter(_Manifest).validate_json(json.dumps(content))
        found.check()
        if to_resume:
            _check_complete(content, found)
    except ValidationError as error:
        wrong = error.errors()[0]
        where, value = ".".join(map(str, wrong["loc"])), repr(wrong["input"])[:100]
        raise damaged(file, f"{where} is {value}: {wrong['msg']}", remedy) from error
    except ValueError as error:
        raise damaged(file, error, remedy) from error
    return content, found


def _check_complete(content: dict[str, Any], found: _Manifest) -> None:
    missing = _TO_RESUME - set(content)
    for i, (shard, entry) in enumerate(zip(found.shards, content["shards"], strict=True)):
        missing |= _OF_SHARDS_TO_RESUME - set(entry)
        if shard.file != shard_name(i) or not shard.n_sequences:
            raise ValueError(f"shards.{i} is {shard.file!r} of {shard.n_sequences} sequences")
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))} is missing")


def open_listed(folder: Path) -> tuple[tuple[FilePart, ...], float | None]:
    """The shards that the manifest of a cache lists so far, and their mean norm.

    Size and header show that a shard is whole, and in caches of up to 2 GiB the checksum.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a shard or the manifest is damaged, or there is no shard yet.
    """
    remedy = "make the cache again, or move that file away to read all shards beside it"
    _, found = _read(folder / MANIFEST, remedy, to_resume=False)
    if not found.shards:
        raise ValueError(f"the cache in {folder} holds no activations yet; {_AGAIN}.")
    is_small = sum(shard.bytes for shard in found.shards) <= _CHECKSUMS_UP_TO
    parts = (_open_shard(folder, shard, found.d_in, is_small) for shard in found.shards)
    return tuple(parts), found.mean_norm


def _open_shard(folder: Path, shard: Shard, d_in: int, with_checksum: bool) -> FilePart:
    path = folder / shard.file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, but {MANIFEST} lists it; {_AGAIN}.")
    n_bytes, listed = path.stat().st_size, f"{MANIFEST} lists"
    if n_bytes != shard.bytes:
        raise damaged(path, f"{n_bytes} bytes; {listed} {shard.bytes}", _AGAIN)
    try:
        part = open_file(path)
    except ValueError as error:
        raise ValueError(f"{error} {_AGAIN}.") from error
    shape, wanted = [part.n_samples, part.d_in], [shard.n_samples, d_in]
    if shape != wanted:
        raise damaged(path, f"shape {shape}; {listed} {wanted}", _AGAIN)
    if with_checksum and shard.sha256 not in (None, sha256(path)):
        raise damaged(path, f"its SHA-256 is not the one that {listed}", _AGAIN)
    return part


def intact(folder: Path, shard: Shard, d_in: int) -> Shard | None:
    """A shard that is there as it is listed, with its checksum; None for a missing or damaged one.

    Where the manifest has no checksum yet, only size and header can tell.
    """
    try:
        part = _open_shard(folder, shard, d_in, with_checksum=True)
        checksum = shard.sha256 or sha256(part.path)
    except (OSError, ValueError):
        return None
    return None if part.token_ids is None else replace(shard, sha256=checksum)
