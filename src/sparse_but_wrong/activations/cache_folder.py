"""The folder of a cache of activations: its manifest, and which of its shards are whole."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int32
from torch import Tensor

from sparse_but_wrong.activations.manifest import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    Shard,
    read_manifest,
    whole,
)
from sparse_but_wrong.atomic import LOCK, write_bytes
from sparse_but_wrong.untrusted import one_line, sha256

_ANEW = "make the cache anew"


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

    piece_size: int | None = None
    """Characters after which a long document is cut before it is tokenized; none in caches of
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
        # Sequences were all of one length where it is not said.
        length = self.settings["context_size"]
        return sum(
            shard.n_sequences * length if shard.n_tokens is None else shard.n_tokens
            for shard in self.shards
        )

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


def read_cache(folder: Path, settings: Mapping[str, Any]) -> Cache:
    """The cache in a folder, which must have been made with these settings.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its manifest is damaged, of another version, or a setting differs.
    """
    file = folder / MANIFEST
    manifest = read_manifest(file, _ANEW, to_resume=True)
    content = manifest.content
    for name, value in settings.items():
        if content.get(name) != value:
            raise ValueError(
                f"the cache in {folder} was made with {name} {_short(content.get(name))}, not "
                f"{_short(value)}; give what it was made with, or make one in another folder."
            )
    try:
        provenance, resumed = content["provenance"], content["resumed"]
        text_ended, piece_size = content["text_ended"], content.get("piece_size")
        for name, value, kind in (
            ("provenance", provenance, dict),
            ("resumed", resumed, list),
            ("text_ended", text_ended, bool),
        ):
            if not isinstance(value, kind):
                raise ValueError(f"{name} is {value!r}")
        return Cache(
            folder,
            dict(settings),
            whole(content, "tokens", 1),
            text_ended,
            manifest.shards,
            provenance,
            tuple(resumed),
            None if piece_size is None else whole(content, "piece_size", 1),
        )
    except KeyError as error:
        raise ValueError(f"{file} is damaged ({error} is missing); {_ANEW}.") from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({one_line(error)}); {_ANEW}.") from error


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
) -> tuple[int, str]:
    """Write a shard, whole or not at all, and return its size in bytes and its SHA-256.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    content = save({"activations": activations, "token_ids": token_ids})
    write_bytes(file, content)
    return len(content), hashlib.sha256(content).hexdigest()


def checked(folder: Path, shard: Shard, d_in: int) -> Shard | None:
    """A shard that is there as the manifest lists it, with its checksum; none if it is not.

    Where the manifest has no checksum yet, only size and header can tell.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / shard.file
    try:
        if file.stat().st_size != shard.bytes:
            return None
        checksum = sha256(file)
        if shard.sha256 is not None:
            return shard if checksum == shard.sha256 else None
        with safe_open(file, framework="pt") as opened:
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    is_whole = shapes == {"activations": [shard.n_samples, d_in], "token_ids": [shard.n_samples]}
    return replace(shard, sha256=checksum) if is_whole else None


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]} …"
