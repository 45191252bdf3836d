"""Write a language model's activations over text as shards, resumable at any time.

Axes: Q sequences in a batch, C tokens in a sequence, D d_in.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from sparse_but_wrong.activations.language_model import LanguageModel
from sparse_but_wrong.activations.manifest import (
    MANIFEST,
    Cache,
    Shard,
    intact,
    read_cache,
    shard_name,
)
from sparse_but_wrong.activations.texts import IDLE, PIECE_SIZE, TOKEN_COLUMNS, Sequences, Text
from sparse_but_wrong.atomic import (
    check_free,
    check_writable,
    full_disk_named,
    locked,
    nearest,
    remove_leftovers,
    write_bytes,
)
from sparse_but_wrong.sae_lens_compat import get_special_token_ids
from sparse_but_wrong.untrusted import damaged, one_line

Dtype = Literal["bfloat16", "float32"]
_TORCH: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_COUNTS = ("n_tokens", "context_size", "batch_size", "samples_per_shard")


@dataclass(frozen=True)
class CacheOptions:
    """What is kept, and how. Raises ValueError for values that make no sense."""

    n_tokens: int = 1_000_000
    """Activations to keep; the batch that reaches this number is kept whole."""

    context_size: int = 128
    """Tokens in a sequence. Documents are joined and cut into sequences."""

    batch_size: int = 32
    """Sequences that run at once."""

    dtype: Dtype = "bfloat16"
    """Type of what is stored."""

    samples_per_shard: int = 65_536
    """About; a shard holds whole batches."""

    prepend_bos: bool = True
    """Start every sequence of a text with BOS, where the tokenizer has one."""

    exclude_special_tokens: bool = True
    """Leave out BOS, EOS, PAD and SEP: models park attention there, with activations so large that
    they distort every metric."""

    skip_positions: int = 2
    """Positions at the start of every sequence to leave out: attention is parked there too."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}.")
        if not 0 <= self.skip_positions < self.context_size:
            limit = f"0 or more and below context_size ({self.context_size})"
            raise ValueError(f"skip_positions must be {limit}, but is {self.skip_positions}.")
        if self.dtype not in _TORCH:
            raise ValueError(f"dtype must be {' or '.join(_TORCH)}, but is {self.dtype!r}.")

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as PyTorch has it."""
        return _TORCH[self.dtype]

    @property
    def sequences_per_shard(self) -> int:
        """Whole batches, so that a shard that is made again is made of the same batches."""
        per_batch = self.batch_size * (self.context_size - self.skip_positions)
        return self.batch_size * math.ceil(self.samples_per_shard / per_batch)

    def n_bytes(self, d_in: int, n_samples: int | None = None) -> int:
        """About how much room the samples take on disk; `n_tokens` of them by default."""
        n_samples = self.n_tokens if n_samples is None else n_samples
        return n_samples * (d_in * self.torch_dtype.itemsize + torch.int32.itemsize)


@dataclass(frozen=True)
class CacheResult:
    """What was done this time."""

    cache: Cache
    n_tokens_run: int
    seconds: float
    n_remade: int
    """Shards that were damaged or missing and are there again."""

    n_skipped: int
    """Texts without content, null or empty."""


def write_cache(
    model: LanguageModel,
    text: Text,
    folder: Path,
    options: CacheOptions,
    *,
    resume: bool = False,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> CacheResult:
    """Write a model's activations over a text as shards, in the order of the text.

    A shard is a safetensors file with "activations" [samples, d_in] and "token_ids" [samples]. The
    manifest lists those that are whole, and is rewritten after each. Whatever stops this leaves the
    finished shards, and `resume` continues behind them; on the same machine, a resumed cache equals
    an uninterrupted one byte for byte. Arguments as in `cache_activations`.

    Raises:
        OSError: the folder is not free, or holds no cache to resume; too little room on the disk,
            before or while it is written to; or the text cannot be read to its end.
        ValueError: other settings than the cache was made with, sequences longer than the model
            takes, a text with no full sequence or with ids that the model does not know,
            activations that are not finite, or another process at work in the folder.
    """
    started = time.monotonic()
    if model.n_ctx is not None and options.context_size > model.n_ctx:
        raise ValueError(f"{model.name} takes {model.n_ctx} tokens at once; lower context_size.")
    begins_with_bos = options.prepend_bos and model.tokenizer.bos_token_id is not None
    if options.context_size == 1 and begins_with_bos and text.column not in TOKEN_COLUMNS:
        raise ValueError("context_size 1 has room for BOS alone; choose 2 or more, or --no-bos.")
    excluded = sorted(get_special_token_ids(model.tokenizer))
    settings = {
        "model": model.name,
        "model_class": model.model_class,
        "model_dtype": model.dtype,
        "hook": model.hook,
        "d_in": model.d_in,
        "dtype": options.dtype,
        "text": text.description,
        "context_size": options.context_size,
        "prepend_bos": options.prepend_bos,
        "excluded_token_ids": excluded if options.exclude_special_tokens else [],
        "skip_positions": options.skip_positions,
        "batch_size": options.batch_size,
        "samples_per_shard": options.samples_per_shard,
    }
    made_by = dict(provenance or {})
    check_folder(folder, resume=resume)
    if not resume:
        _check_room(folder, options.n_bytes(model.d_in))
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        # Somebody may have been at work there until now.
        check_folder(folder, resume=resume)
        cache = Cache(folder, settings, options.n_tokens, False, (), made_by, (), PIECE_SIZE)
        try:
            if resume:
                cache = _resumed(folder, settings, options, made_by)
            found = [intact(folder, shard, model.d_in) for shard in cache.shards]
            n_whole = sum(shard.n_samples for shard in found if shard is not None)
            n_missing = cache.n_samples - n_whole
            if not cache.text_ended:
                n_missing += max(0, options.n_tokens - cache.n_samples)
            _check_room(folder, options.n_bytes(model.d_in, n_missing))
            remove_leftovers(folder)
            damaged = [old for old, new in zip(cache.shards, found, strict=True) if new is None]
            shards = (new or old for old, new in zip(cache.shards, found, strict=True))
            cache = replace(cache, shards=tuple(shards))
            cache.write()
            reader = _Reader(model, text, options, cache.piece_size, excluded)
            with tqdm(
                total=n_whole + n_missing,
                initial=n_whole,
                unit="token",
                unit_scale=True,
                disable=not progress,
            ) as bar:
                for shard in damaged:
                    cache = _remake(cache, shard, reader, bar)
                cache = _extend(cache, reader, bar)
            if not cache.shards:
                says = f"no full sequence of {options.context_size} tokens with anything to keep"
                raise ValueError(f"{text.name} gives {says}; give more text or lower context_size.")
        except ValueError:
            # To be started again with something else, for which an empty cache would be in the way.
            if not resume:
                cache.remove_empty(with_folder=is_new)
            raise
    seconds, sequences = time.monotonic() - started, reader.sequences
    return CacheResult(cache, reader.n_tokens_run, seconds, len(damaged), sequences.n_skipped)


def check_folder(folder: Path, *, resume: bool) -> None:
    """Check that a cache can be made in a folder, or resumed, before that takes long."""
    if not resume:
        check_free(folder, "choose another folder, or --resume to continue a cache")
    elif not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} holds no cache to resume; leave out --resume.")
    check_writable(folder)


def _resumed(
    folder: Path, settings: dict[str, Any], options: CacheOptions, made_by: dict[str, Any]
) -> Cache:
    cache = read_cache(folder, settings)
    if options.n_tokens < cache.tokens:
        says = f"made with n_tokens {cache.tokens}, not {options.n_tokens}"
        raise ValueError(f"the cache in {folder} was {says}; it can be extended, but not cut.")
    for shard in cache.shards:
        if shard.n_sequences > options.sequences_per_shard:
            says = f"{shard.file} is of {shard.n_sequences} sequences, more than a shard has"
            raise damaged(folder / MANIFEST, says, "make the cache again")
    return replace(cache, tokens=options.n_tokens, resumed=(*cache.resumed, made_by))


class _Reader:
    """Activations of the sequences of a text, one batch after the other, forwards only."""

    def __init__(
        self,
        model: LanguageModel,
        text: Text,
        options: CacheOptions,
        piece_size: int | None,
        special_tokens: Sequence[int],
    ) -> None:
        self.model, self.text, self.options = model, text, options
        self.at, self.n_tokens_run, self._idle = 0, 0, 0
        excluded = special_tokens if options.exclude_special_tokens else []
        self._excluded = torch.tensor(excluded, dtype=torch.long)
        self.sequences = Sequences(
            model,
            text,
            options.context_size,
            prepend_bos=options.prepend_bos,
            piece_size=piece_size,
        )

    def skip_to(self, sequence: int) -> None:
        """Go to a sequence without running the model; ValueError if the text ends before."""
        while self.at < sequence:
            if self._next() is None:
                raise ValueError(
                    f"{self.text.name} ends after {self.at} sequences, but the cache has "
                    f"{sequence}; use its own text, or make the cache again."
                )

    def batch(self, most: int, file: str) -> tuple[Tensor, Tensor] | None:
        """What is kept of at most so many next sequences, or None at the end of the text.

        Returns:
            activations [samples, D] of the dtype that is stored, token ids [samples].
        """
        sequences = []
        while len(sequences) < most and (sequence := self._next()) is not None:
            sequences.append(sequence)
        if not sequences:
            return None
        places: dict[int, list[int]] = {}
        for place, sequence in enumerate(sequences):
            places.setdefault(len(sequence), []).append(place)
        # By length: padding would give other positions in some models, and other attention in more.
        dtype = self.options.torch_dtype
        kept = [torch.empty(0, self.model.d_in, dtype=dtype)] * len(sequences)
        token_ids = [torch.empty(0, dtype=torch.long)] * len(sequences)
        for of_length in places.values():
            tokens = torch.stack([sequences[place] for place in of_length])
            keep = ~torch.isin(tokens, self._excluded)
            keep[:, : self.options.skip_positions] = False
            if not keep.any():
                continue
            activations = self.model.activations(tokens)
            self.n_tokens_run += tokens.numel()
            of_all = activations[keep.to(activations.device)].to(dtype).cpu()
            for i, rows in enumerate(of_all.split(keep.sum(dim=1).tolist())):
                kept[of_length[i]], token_ids[of_length[i]] = rows, tokens[i, keep[i]]
        samples = torch.cat(kept)
        if not samples.isfinite().all():
            raise ValueError(
                f"{file}: the activations at {self.model.hook} are not all finite in the sequences "
                f"{self.at - len(sequences)} to {self.at - 1}; {_REMEDY[self.model.dtype]}"
            )
        self._idle = 0 if len(samples) else self._idle + len(sequences)
        if self._idle >= IDLE:
            raise ValueError(
                f"{self.text.name}: nothing is kept of the last {self._idle:,} sequences, which "
                "are special tokens or skipped positions; use another text or larger context_size."
            )
        return samples, torch.cat(token_ids).to(torch.int32)

    def _next(self) -> Tensor | None:
        try:
            sequence = next(self.sequences, None)
        except (ValueError, OSError):
            raise
        except Exception as error:  # what streams a dataset over a network has errors of its own
            raise OSError(
                f"{self.text.name} cannot be read after {self.at} sequences "
                f"({type(error).__name__}: {one_line(error)}); continue with --resume."
            ) from error
        if sequence is None:
            return None
        n_vocab = self.model.n_vocab or math.inf
        if len(sequence) and not 0 <= int(sequence.min()) <= int(sequence.max()) < n_vocab:
            raise ValueError(
                f"sequence {self.at} of {self.text.name} has token ids outside of the {n_vocab} of "
                f"{self.model.name}: it is for another tokenizer."
            )
        self.at += 1
        return sequence


_REMEDY = {
    "float16": "float16 overflows; run the model with --model-dtype float32, or bfloat16.",
    "bfloat16": "run the model with --model-dtype float32 to see whether that helps.",
    "float32": "the model's weights may be damaged.",
}


def _extend(cache: Cache, reader: _Reader, bar: tqdm[Any]) -> Cache:
    """Add shard after shard until there is enough or the text ends."""
    reader.skip_to(cache.n_sequences)
    while not cache.complete:
        file, most = shard_name(len(cache.shards)), reader.options.sequences_per_shard
        wanted, at = cache.tokens - cache.n_samples, reader.at
        shard = _write_shard(cache, reader, file, most, wanted, bar)
        if shard is not None:
            cache = replace(cache, shards=(*cache.shards, shard))
        n_kept = 0 if shard is None else shard.n_samples
        cache = replace(cache, text_ended=reader.at - at < most and n_kept < wanted)
        with _room(cache):
            cache.write()
    return cache


def _remake(cache: Cache, old: Shard, reader: _Reader, bar: tqdm[Any]) -> Cache:
    """Make a listed shard again, of the sequences it was made of."""
    reader.skip_to(old.first_sequence)
    new = _write_shard(cache, reader, old.file, old.n_sequences, None, bar, old)
    shards = tuple(new or old if shard == old else shard for shard in cache.shards)
    cache = replace(cache, shards=shards)
    with _room(cache):
        cache.write()
    return cache


def _write_shard(
    cache: Cache,
    reader: _Reader,
    file: str,
    n_sequences: int,
    wanted: int | None,
    bar: tqdm[Any],
    old: Shard | None = None,
) -> Shard | None:
    """Run the next sequences, or fewer where that gives the samples wanted, and write what is kept.

    Where they have been run before, this must give the `old` shard again.
    """
    first, n_kept, total, largest = reader.at, 0, 0.0, 0.0
    n_tokens_before = reader.n_tokens_run
    activations, token_ids = [], []
    while reader.at < first + n_sequences and (wanted is None or n_kept < wanted):
        most = min(reader.options.batch_size, first + n_sequences - reader.at)
        batch = reader.batch(most, file)
        if batch is None:
            break
        kept, ids = batch
        activations.append(kept)
        token_ids.append(ids)
        n_kept += len(kept)
        norms = torch.linalg.vector_norm(kept.double(), dim=1)
        total += float(norms.sum())
        largest = max([largest, *norms.tolist()])
        bar.update(len(kept))
    n_done = reader.at - first
    if old is not None and (old.n_sequences, old.n_samples) != (n_done, n_kept):
        raise ValueError(
            f"{file} had {old.n_samples} samples of {old.n_sequences} sequences, but its part of "
            f"{reader.text.name} gives {n_kept} of {n_done}; use its own text, or make it again."
        )
    if not n_kept:
        return None
    with _room(cache):
        n_bytes, checksum = save_shard(
            cache.folder / file, torch.cat(activations), torch.cat(token_ids)
        )
    return Shard(
        file=file,
        n_samples=n_kept,
        first_sequence=first,
        n_sequences=n_done,
        bytes=n_bytes,
        mean_norm=total / n_kept,
        max_norm=largest,
        n_tokens=reader.n_tokens_run - n_tokens_before,
        sha256=checksum,
    )


def save_shard(file: Path, activations: Tensor, token_ids: Tensor) -> tuple[int, str]:
    """Write a shard, whole or not at all, and return its size in bytes and its SHA-256."""
    from safetensors.torch import save

    content = save({"activations": activations, "token_ids": token_ids})
    write_bytes(file, content)
    return len(content), sha256(content).hexdigest()


def _room(cache: Cache) -> AbstractContextManager[None]:
    there = f"samples: {cache.n_samples:,} of {cache.tokens:,}"
    advice = f"What is there is whole ({there}). Make room and continue with --resume."
    return full_disk_named(cache.folder, advice)


def _check_room(folder: Path, n_bytes: int) -> None:
    there = nearest(folder)
    free = shutil.disk_usage(there).free
    if n_bytes > free:
        raise OSError(
            f"the cache needs {human_bytes(n_bytes)} more, but {there} has only "
            f"{human_bytes(free)} free; keep fewer tokens or choose another disk."
        )


def human_bytes(n: int) -> str:
    """A size as people read it: 1,500,000 is "1.5 MB"."""
    size, units = float(n), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"
