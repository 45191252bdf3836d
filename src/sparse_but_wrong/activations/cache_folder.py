"""The folder of a cache of activations: its manifest, and which of its shards are whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int32
from torch import Tensor

from sparse_but_wrong.activations.shards import FORMAT, FORMAT_VERSION, MANIFEST
from sparse_but_wrong.atomic import LOCK, write_bytes
from sparse_but_wrong.untrusted import read_json


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


@dataclass(frozen=True)
class Cache:
    """A cache of activations, at some time."""

    folder: Path
    settings: dict[str, Any]
    """What must not change while it is made, under the names of the manifest."""

    tokens: int
    """How many samples are to be kept."""

    text_ended: bool
    """Whether all of the text is in it."""

    shards: tuple[Shard, ...]
    provenance: dict[str, Any]
    resumed: tuple[dict[str, Any], ...] = ()
    """The provenance of every later process that worked on it."""

    @property
    def n_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.n_samples for shard in self.shards)

    @property
    def n_sequences(self) -> int:
        """Sequences of the text that are done."""
        return max((shard.first_sequence + shard.n_sequences for shard in self.shards), default=0)

    @property
    def n_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def mean_norm(self) -> float | None:
        """Mean of the samples' L2 norms; none where there are none."""
        if not self.shards:
            return None
        total = math.fsum(shard.n_samples * shard.mean_norm for shard in self.shards)
        return total / self.n_samples

    @property
    def max_norm(self) -> float | None:
        """Largest L2 norm of a sample; none where there are none."""
        return max((shard.max_norm for shard in self.shards), default=None)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
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
            "n_tokens_run": self.n_sequences * self.settings["context_size"],
            "text_ended": self.text_ended,
            "complete": self.complete,
            "shards": [asdict(shard) for shard in self.shards],
            "provenance": self.provenance,
            "resumed": list(self.resumed),
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        write_bytes(self.folder / MANIFEST, text.encode())


def read_cache(folder: Path, settings: Mapping[str, Any]) -> Cache:
    """The cache in a folder, which must have been made with these settings.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its manifest is damaged, of another version, or a setting differs.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no cache to go on with; leave out --resume to start one."
        )
    manifest = read_json(file, "make the cache anew")
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{file} is not the manifest of a cache of activations.")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{file} has the format version {manifest.get('format_version')}, but this version of "
            f"sparse_but_wrong writes {FORMAT_VERSION}; go on with the version that wrote it."
        )
    for name, value in settings.items():
        if manifest.get(name) != value:
            raise ValueError(
                f"the cache in {folder} was made with {name} {_short(manifest.get(name))}, not "
                f"{_short(value)}; give what it was made with, or make one in another folder."
            )
    try:
        return Cache(
            folder,
            dict(settings),
            int(manifest["tokens"]),
            bool(manifest["text_ended"]),
            tuple(Shard(**shard) for shard in manifest["shards"]),
            manifest["provenance"],
            tuple(manifest["resumed"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}); make the cache anew."
        ) from error


def remove_empty(folder: Path, *, with_folder: bool) -> None:
    """Remove a cache without shards; one that has any is left as it is. Raises nothing.

    Args:
        with_folder: whether to remove the folder too.
    """
    with suppress(OSError):
        if any(file.name not in (MANIFEST, LOCK) for file in folder.iterdir()):
            return
        for name in (MANIFEST, LOCK):
            (folder / name).unlink(missing_ok=True)
        if with_folder:
            folder.rmdir()


def write_shard(
    file: Path, activations: Float[Tensor, "samples d_in"], token_ids: Int32[Tensor, " samples"]
) -> int:
    """Write a shard, whole or not at all, and return its size in bytes.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    content = save({"activations": activations, "token_ids": token_ids})
    write_bytes(file, content)
    return len(content)


def is_whole(folder: Path, shard: Shard, d_in: int) -> bool:
    """Whether a shard is there as the manifest lists it, as far as its size and header tell."""
    from safetensors import SafetensorError, safe_open

    file = folder / shard.file
    try:
        if file.stat().st_size != shard.bytes:
            return False
        with safe_open(file, framework="pt") as opened:
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return False
    return shapes == {"activations": [shard.n_samples, d_in], "token_ids": [shard.n_samples]}


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]} …"
