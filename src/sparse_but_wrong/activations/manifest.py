"""A cache of activations on disk: its manifest, and the shards that it lists."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Int64
from pydantic import ConfigDict, Field
from torch import Tensor

from sparse_but_wrong.activations.parts import Part, open_file
from sparse_but_wrong.atomic import LOCK, write_bytes
from sparse_but_wrong.untrusted import checked, one_line, read_json, sha256

MANIFEST = "manifest.json"
FORMAT, FORMAT_VERSION = "sparse_but_wrong activations", 2
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

_CHECKSUMS_UP_TO = 2 * 2**30
"""Bytes of caches whose checksums are compared when they are opened, at more than 1 GB per second;
those of larger ones when they are resumed."""

_FINITE = ConfigDict(allow_inf_nan=False)

# The largest number of which every JSON parser knows all digits; no count or norm comes near.
_Whole = Annotated[int, Field(ge=0, le=2**53)]
_Count = Annotated[int, Field(ge=1, le=2**53)]
_Norm = Annotated[float, Field(ge=0, le=2**53)]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """An entry of the manifest: a .safetensors file of activations and the ids of their tokens.

    It has the sequences of the text from the first, from 0, for which `n_tokens` were run, and the
    L2 norms of its samples as they are stored.
    """

    __pydantic_config__ = _FINITE

    file: str
    n_samples: _Count
    first_sequence: _Whole
    n_sequences: _Count
    bytes: _Count
    mean_norm: _Norm
    max_norm: _Norm
    n_tokens: _Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What a cache is made of, and what is in it so far. Fields as in the manifest."""

    __pydantic_config__ = _FINITE

    model: str
    model_class: str
    model_dtype: str
    hook: str
    d_in: _Count
    dtype: Literal["bfloat16", "float32"]
    text: dict[str, Any]
    context_size: _Count
    prepend_bos: bool
    excluded_token_ids: tuple[_Whole, ...]
    skip_positions: _Whole
    batch_size: _Count
    samples_per_shard: _Count
    # What may change when it is resumed begins here.
    tokens: _Count
    """Samples to keep."""

    piece_size: _Count
    """Characters after which a long document is cut before it is tokenized."""

    text_ended: bool
    """Whether all of the text is in it."""

    shards: tuple[Shard, ...]
    provenance: dict[str, Any]
    resumed: tuple[dict[str, Any], ...]
    """The provenance of every later process that worked on it."""

    def __post_init__(self) -> None:
        done = 0
        for i, shard in enumerate(self.shards):
            if not (
                shard.file == shard_name(i)  # which also leads nowhere else
                and shard.n_samples * self.d_in <= shard.bytes
                and shard.first_sequence >= done
                and self.skip_positions < self.context_size
                and shard.n_sequences <= self.sequences_per_shard
            ):
                raise ValueError(f"shards.{i} cannot be part of it: {shard!r:.200}")
            done = shard.first_sequence + shard.n_sequences

    @property
    def n_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.n_samples for shard in self.shards)

    @property
    def n_sequences(self) -> int:
        """Sequences of the text that are done."""
        return self.shards[-1].first_sequence + self.shards[-1].n_sequences if self.shards else 0

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
    def sae_metadata(self) -> dict[str, Any]:
        """What sae_lens' runner writes into an SAE of such activations, by the names it uses.

        Without it, nothing can run the SAE on its model: not sae_lens' `ActivationsStore.from_sae`,
        nor SAEDashboard. Files of text have no `dataset_path`.
        """
        facts = {
            "model_name": self.model,
            "model_class_name": self.model_class,
            "hook_name": self.hook,
            "context_size": self.context_size,
            "seqpos_slice": (self.skip_positions, None),
            "prepend_bos": self.prepend_bos,
            "exclude_special_tokens": bool(self.excluded_token_ids),
            "dataset_path": self.text.get("id"),
        }
        return {name: value for name, value in facts.items() if value is not None}

    @property
    def complete(self) -> bool:
        """Whether there is nothing to do any more."""
        return self.text_ended or self.n_samples >= self.tokens

    @property
    def sequences_per_shard(self) -> int:
        """Whole batches, so that a shard that is made again is made of the same batches."""
        per_batch = self.batch_size * (self.context_size - self.skip_positions)
        return self.batch_size * math.ceil(self.samples_per_shard / per_batch)

    def keeps(
        self, tokens: Int64[Tensor, "sequences context"]
    ) -> Bool[Tensor, "sequences context"]:
        """Of which tokens of sequences it holds the activations."""
        kept = ~torch.isin(tokens, torch.tensor(self.excluded_token_ids, dtype=torch.long))
        kept[:, : self.skip_positions] = False
        return kept

    def n_bytes(self, n_samples: int) -> int:
        """About how much room so many samples take on disk, with the ids of their tokens."""
        return n_samples * (self.d_in * DTYPES[self.dtype].itemsize + torch.int32.itemsize)

    def write(self, folder: Path) -> None:
        """Write the manifest."""
        derived = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "n_samples": self.n_samples,
            "mean_norm": self.mean_norm,
            "max_norm": self.max_norm,
            "n_tokens_run": sum(shard.n_tokens for shard in self.shards),
            "complete": self.complete,
        }
        text = json.dumps({**derived, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"
        write_bytes(folder / MANIFEST, text.encode())

    def continued(self, folder: Path) -> Cache:
        """The cache in a folder, to be resumed as this one, which has no shards yet.

        ValueError for a damaged one, another setting, or more samples than are to be kept.
        """
        found = read_cache(folder)
        names = [field.name for field in fields(Cache)]
        for name in names[: names.index("tokens")]:
            before, now = getattr(found, name), getattr(self, name)
            if before != now:
                before, now = (json.dumps(v, ensure_ascii=False)[:200] for v in (before, now))
                raise ValueError(
                    f"the cache in {folder} was made with {name} {before}, not {now}; use its "
                    "settings, or another folder."
                )
        if self.tokens < found.tokens:
            says = f"made with n_tokens {found.tokens}, not {self.tokens}"
            raise ValueError(f"the cache in {folder} was {says}; it can be extended, but not cut.")
        return replace(found, tokens=self.tokens, resumed=(*found.resumed, self.provenance))


def shard_name(index: int) -> str:
    """The name of the shard at a place in the order."""
    return f"shard-{index:05d}.safetensors"


def read_cache(folder: Path) -> Cache:
    """The manifest in a folder; ValueError if it is damaged, or of something else."""
    file = folder / MANIFEST
    remedy = "make the cache again, or move that file away to read all shards beside it"
    content = read_json(file, remedy)
    kind = content.get("format"), content.get("format_version")
    if kind != (FORMAT, FORMAT_VERSION):
        known = f"{FORMAT!r}, version {FORMAT_VERSION}"
        raise ValueError(f"{file} is not of the format {known}, but of {kind!r:.100}; {remedy}.")
    return checked(Cache, content, file, remedy)


def open_shards(folder: Path, cache: Cache) -> tuple[Part, ...]:
    """The shards of a cache so far; ValueError if there is none yet, or one is damaged, or OSError.

    The header shows that a shard is whole, and in caches of up to 2 GiB the checksum.
    """
    if not cache.shards:
        raise ValueError(
            f"the cache in {folder} holds no activations yet; continue it with --resume."
        )
    is_small = sum(shard.bytes for shard in cache.shards) <= _CHECKSUMS_UP_TO
    return tuple(_open_shard(folder, shard, cache.d_in, is_small) for shard in cache.shards)


def _open_shard(folder: Path, shard: Shard, d_in: int, with_checksum: bool) -> Part:
    path = folder / shard.file
    try:
        part = open_file(path)
        shape, wanted = [part.n_samples, part.d_in], [shard.n_samples, d_in]
        if shape != wanted:
            raise ValueError(f"{path} has shape {shape}, but {MANIFEST} lists {wanted}")
        if with_checksum and shard.sha256 != sha256(path):
            raise ValueError(f"{path} has another SHA-256 than {MANIFEST} lists")
    except (OSError, ValueError) as error:
        what = one_line(error).rstrip(".")
        says = f"{what}; `sbw cache-activations --resume` makes it again."
        raise type(error)(says) from error
    return part


def is_intact(folder: Path, shard: Shard, d_in: int) -> bool:
    """Whether a shard is there as it is listed."""
    try:
        return _open_shard(folder, shard, d_in, with_checksum=True).token_ids is not None
    except (OSError, ValueError):
        return False


def remove_empty(folder: Path, *, with_folder: bool) -> None:
    """Remove a cache without shards, and its folder if asked to; any other is left as it is."""
    with suppress(OSError):
        if all(file.name in (MANIFEST, LOCK) for file in folder.iterdir()):
            for name in (MANIFEST, LOCK):
                (folder / name).unlink(missing_ok=True)
            if with_folder:
                folder.rmdir()
