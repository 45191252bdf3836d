"""Run a language model over text once, and keep its activations on disk.

Axes: Q sequences in a batch, C tokens in a sequence, D d_in.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from sparse_but_wrong.activations.cache_folder import (
    Cache,
    checked,
    read_cache,
    remove_empty,
    write_shard,
)
from sparse_but_wrong.activations.language_model import LanguageModel
from sparse_but_wrong.activations.manifest import MANIFEST, Shard, shard_name
from sparse_but_wrong.activations.sequences import IDLE, PIECE_SIZE, Sequences
from sparse_but_wrong.activations.texts import TOKEN_COLUMNS, Text
from sparse_but_wrong.atomic import full_disk_named, is_free, locked, remove_leftovers
from sparse_but_wrong.sae_lens_compat import get_special_token_ids
from sparse_but_wrong.untrusted import one_line

Dtype = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class CacheOptions:
    """What is kept, and how. Raises ValueError for values that make no sense."""

    tokens: int = 1_000_000
    """Activations to keep at least; the batch that reaches it is kept whole."""

    context_size: int = 128
    """Tokens in a sequence. Documents are strung together and cut to sequences."""

    batch_size: int = 32
    """Sequences that run at once."""

    dtype: Dtype = "bfloat16"
    """Of what is stored."""

    samples_per_shard: int = 65_536
    """About; a shard holds whole batches."""

    prepend_bos: bool = True
    """Whether every sequence of a text starts with BOS, where the tokenizer has one."""

    exclude_special_tokens: bool = True
    """Whether to leave out BOS, EOS, PAD and SEP: models park attention there, with activations
    so large that they distort every measure."""

    skip_positions: int = 2
    """How many at the start of every sequence to leave out: attention is parked there without BOS
    too, and now and then on the token after it."""

    def __post_init__(self) -> None:
        for name in ("tokens", "context_size", "batch_size", "samples_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}.")
        if not 0 <= self.skip_positions < self.context_size:
            raise ValueError(
                f"skip_positions must be 0 or more and below context_size ({self.context_size}), "
                f"but is {self.skip_positions}."
            )
        if self.dtype not in get_args(Dtype):
            raise ValueError(f"dtype must be bfloat16 or float32, but is {self.dtype!r}.")

    @property
    def sequences_per_shard(self) -> int:
        """Whole batches, so that a shard that is made anew is made of the same batches."""
        per_batch = self.batch_size * (self.context_size - self.skip_positions)
        return self.batch_size * math.ceil(self.samples_per_shard / per_batch)

    def n_bytes(self, d_in: int, n_samples: int | None = None) -> int:
        """About how much room the samples take on disk; `tokens` of them if left out."""
        per_sample = d_in * _torch_dtype(self.dtype).itemsize + torch.int32.itemsize
        return (self.tokens if n_samples is None else n_samples) * per_sample


@dataclass(frozen=True)
class CacheResult:
    """What was done."""

    cache: Cache
    n_tokens_run: int
    """Tokens that went through the model this time."""

    seconds: float
    n_remade: int
    """Shards that were damaged or missing and are there again."""

    n_skipped: int
    """Texts without content, null or empty, that were passed over this time."""


def cache_activations(
    model: LanguageModel,
    text: Text,
    folder: Path,
    options: CacheOptions | None = None,
    *,
    resume: bool = False,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> CacheResult:
    """Write a model's activations over a text as shards, in the order of the text.

    A shard is a safetensors file with "activations" [samples, d_in] and "token_ids" [samples]; the
    manifest lists those that are whole, and is written anew after each. What happens to stop this
    leaves the shards that are done, and `resume` goes on behind them; a cache that was resumed is
    the same, byte for byte, as one that was not, on the same machine.

    Args:
        folder: must be new or empty, unless a cache is resumed.
        resume: go on with the cache in the folder. Its settings must be the same, but `tokens` may
            be larger: then it is extended. Shards that are missing or damaged are made anew.
        provenance: of this process, for the manifest.
        progress: whether to show a bar.
    Raises:
        FileExistsError: the folder holds something, and `resume` is not asked for.
        FileNotFoundError: no cache to resume.
        OSError: too little room on the disk, before or while it is written to, or the text cannot
            be read on.
        ValueError: other settings than the cache was made with, sequences longer than the model
            takes, a text with no full sequence or with ids the model does not know, activations
            that are not finite, or another process at work in the folder.
    """
    options = options or CacheOptions()
    started = time.monotonic()
    if model.n_ctx is not None and options.context_size > model.n_ctx:
        raise ValueError(
            f"{model.name} takes {model.n_ctx} tokens at once, but context_size is "
            f"{options.context_size}; lower it."
        )
    begins_with_bos = options.prepend_bos and model.tokenizer.bos_token_id is not None
    if options.context_size == 1 and begins_with_bos and text.column not in TOKEN_COLUMNS:
        raise ValueError(
            "context_size 1 has room for BOS alone, with which every sequence starts; choose 2 or "
            "more, or start none with it (--no-bos)."
        )
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
        try:
            if resume:
                cache = _taken_up(folder, settings, options, made_by)
            else:
                cache = Cache(
                    folder, settings, options.tokens, False, (), made_by, piece_size=PIECE_SIZE
                )
            found = [checked(folder, shard, model.d_in) for shard in cache.shards]
            n_whole = sum(shard.n_samples for shard in found if shard is not None)
            n_missing = cache.n_samples - n_whole
            if not cache.text_ended:
                n_missing += max(0, options.tokens - cache.n_samples)
            _check_room(folder, options.n_bytes(model.d_in, n_missing))
            remove_leftovers(folder)
            damaged = [old for old, new in zip(cache.shards, found, strict=True) if new is None]
            shards = (new or old for old, new in zip(cache.shards, found, strict=True))
            cache = replace(cache, shards=tuple(shards))
            cache.write()
            reader = _Reader(model, text, options, cache.piece_size)
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
                raise ValueError(
                    f"no activations came of {text.name}: it gives no full sequence of "
                    f"{options.context_size} tokens in which anything is kept; give more text or a "
                    "smaller context_size."
                )
        except ValueError:
            # To be started again with something else, for which an empty cache would be in the way.
            if not resume:
                remove_empty(folder, with_folder=is_new)
            raise
    return CacheResult(
        cache,
        reader.n_tokens_run,
        time.monotonic() - started,
        len(damaged),
        reader.sequences.n_skipped,
    )


def check_folder(folder: Path, *, resume: bool) -> None:
    """Find out whether a cache can be made in a folder, or gone on with, before that takes long.

    Raises:
        FileExistsError: the folder holds something, and `resume` is not asked for.
        FileNotFoundError: no cache to resume.
        OSError: the folder cannot be written to, or not be made.
    """
    if resume and not (folder / MANIFEST).is_file():
        raise FileNotFoundError(
            f"{folder} holds no cache to go on with; leave out --resume to start one."
        )
    if not resume and not is_free(folder):
        raise FileExistsError(
            f"{folder} is not empty, and nothing is overwritten; choose another folder, or "
            "--resume to go on with a cache."
        )
    there = _nearest(folder)
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is no folder; choose another one than {folder}.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{there} cannot be written to; choose another folder.")


def _taken_up(
    folder: Path, settings: dict[str, Any], options: CacheOptions, made_by: dict[str, Any]
) -> Cache:
    """The cache in a folder, to go on with."""
    cache = read_cache(folder, settings)
    if options.tokens < cache.tokens:
        raise ValueError(
            f"the cache in {folder} was made with tokens {cache.tokens}, not {options.tokens}; "
            "it can be extended, but not cut."
        )
    for shard in cache.shards:
        if shard.n_sequences > options.sequences_per_shard:
            raise ValueError(
                f"{folder / MANIFEST} is damaged ({shard.file} is of {shard.n_sequences} "
                f"sequences, and shards have {options.sequences_per_shard} at most); make the "
                "cache anew."
            )
    return replace(cache, tokens=options.tokens, resumed=(*cache.resumed, made_by))


class _Reader:
    """Activations of the sequences of a text, one batch after the other, forwards only."""

    def __init__(
        self, model: LanguageModel, text: Text, options: CacheOptions, piece_size: int | None
    ) -> None:
        self.model, self.text, self.options = model, text, options
        self.at = 0
        self.n_tokens_run = 0
        self._idle = 0
        excluded = get_special_token_ids(model.tokenizer) if options.exclude_special_tokens else []
        self._excluded = torch.tensor(sorted(excluded), dtype=torch.long)
        self.sequences = Sequences(
            model,
            text,
            options.context_size,
            prepend_bos=options.prepend_bos,
            piece_size=piece_size,
        )

    def skip_to(self, sequence: int) -> None:
        """Go on to a sequence without running the model.

        Raises:
            ValueError: the text ends before.
        """
        while self.at < sequence:
            if self._next() is None:
                raise ValueError(
                    f"{self.text.name} ends after {self.at} sequences, but the cache has more "
                    f"({sequence}); it is another text, and the cache has to be made anew."
                )

    def batch(self, most: int, file: str) -> tuple[Tensor, Tensor] | None:
        """What is kept of the next sequences, at most so many; nothing at the end of the text.

        Args:
            file: which it is for, in messages.
        Returns:
            activations [samples, D] of the dtype that is stored, token ids [samples].
        Raises:
            ValueError: activations that are not finite, or a text of which nothing is kept for
                so long that nothing more is to be expected.
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
        dtype = _torch_dtype(self.options.dtype)
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
            n_kept = keep.sum(dim=1).tolist()
            for i, rows in enumerate(of_all.split(n_kept)):
                kept[of_length[i]], token_ids[of_length[i]] = rows, tokens[i, keep[i]]
        samples = torch.cat(kept)
        self._check_finite(samples, file, len(sequences))
        self._idle = 0 if len(samples) else self._idle + len(sequences)
        if self._idle >= IDLE:
            raise ValueError(
                f"{self.text.name}: of the last {self._idle:,} sequences, up to number "
                f"{self.at - 1}, nothing is kept, because they hold nothing but special tokens or "
                "positions that are skipped; give another text or a larger context_size."
            )
        return samples, torch.cat(token_ids).to(torch.int32)

    def _check_finite(self, samples: Tensor, file: str, n_sequences: int) -> None:
        if not samples.isfinite().all():
            raise ValueError(
                f"{file}: the activations at {self.model.hook} are not all finite in the sequences "
                f"{self.at - n_sequences} to {self.at - 1}; {_REMEDY[self.model.dtype]}"
            )

    def _next(self) -> Tensor | None:
        try:
            sequence = next(self.sequences, None)
        except (ValueError, OSError):
            raise
        except Exception as error:
            # What streams a data set over a network has errors of its own.
            raise OSError(
                f"{self.text.name} cannot be read after {self.at} sequences "
                f"({type(error).__name__}: {one_line(error)}); go on with --resume."
            ) from error
        if sequence is None:
            return None
        self._check(sequence)
        self.at += 1
        return sequence

    def _check(self, sequence: Tensor) -> None:
        n_vocab = self.model.n_vocab
        if (
            n_vocab is not None
            and len(sequence)
            and not 0 <= int(sequence.min()) <= int(sequence.max()) < n_vocab
        ):
            raise ValueError(
                f"sequence {self.at} of {self.text.name} has token ids outside of the {n_vocab} of "
                f"{self.model.name}; it was made for another tokenizer."
            )


_OVERFLOW = "run the model with --model-dtype float32"
_REMEDY = {
    "float16": f"float16 overflows; {_OVERFLOW}, or bfloat16.",
    "bfloat16": f"{_OVERFLOW} to see whether that mends it.",
    "float32": "the model's weights may be damaged.",
}


@dataclass(frozen=True)
class _Piece:
    """What becomes a shard."""

    activations: Tensor
    """Shape [samples, D], of the dtype that is stored."""

    token_ids: Tensor
    """Shape [samples]."""

    first_sequence: int
    n_sequences: int
    n_tokens: int
    mean_norm: float
    max_norm: float


def _extend(cache: Cache, reader: _Reader, bar: tqdm[Any]) -> Cache:
    """Add shard after shard until there is enough or the text ends."""
    reader.skip_to(cache.n_sequences)
    while not cache.complete:
        file = shard_name(len(cache.shards))
        most = reader.options.sequences_per_shard
        wanted = cache.tokens - cache.n_samples
        piece = _run(reader, file, most, wanted, bar)
        n_kept = len(piece.token_ids)
        if n_kept > 0:
            cache = replace(cache, shards=(*cache.shards, _write(cache, file, piece)))
        ended = piece.n_sequences < most and n_kept < wanted
        cache = replace(cache, text_ended=ended)
        with _room(cache):
            cache.write()
    return cache


def _remake(cache: Cache, shard: Shard, reader: _Reader, bar: tqdm[Any]) -> Cache:
    """Make a listed shard anew, of the sequences it was made of."""
    reader.skip_to(shard.first_sequence)
    piece = _run(reader, shard.file, shard.n_sequences, None, bar)
    if (piece.n_sequences, len(piece.token_ids)) != (shard.n_sequences, shard.n_samples):
        raise ValueError(
            f"{shard.file} had {shard.n_samples} samples of {shard.n_sequences} sequences, and its "
            f"part of {reader.text.name} now gives {len(piece.token_ids)} of {piece.n_sequences}; "
            "it is another text, and the cache has to be made anew."
        )
    again = _write(cache, shard.file, piece)
    cache = replace(cache, shards=tuple(again if s == shard else s for s in cache.shards))
    with _room(cache):
        cache.write()
    return cache


def _run(
    reader: _Reader, file: str, n_sequences: int, wanted: int | None, bar: tqdm[Any]
) -> _Piece:
    """The next so many sequences, or fewer where that gives the samples wanted or the text ends."""
    first, n_kept, total, largest = reader.at, 0, 0.0, 0.0
    n_tokens_before = reader.n_tokens_run
    activations = [torch.empty(0, reader.model.d_in, dtype=_torch_dtype(reader.options.dtype))]
    token_ids = [torch.empty(0, dtype=torch.int32)]
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
    mean_norm = total / n_kept if n_kept else 0.0
    return _Piece(
        torch.cat(activations),
        torch.cat(token_ids),
        first,
        reader.at - first,
        reader.n_tokens_run - n_tokens_before,
        mean_norm,
        largest,
    )


def _write(cache: Cache, file: str, piece: _Piece) -> Shard:
    with _room(cache):
        n_bytes, checksum = write_shard(cache.folder / file, piece.activations, piece.token_ids)
    return Shard(
        file,
        len(piece.token_ids),
        piece.first_sequence,
        piece.n_sequences,
        n_bytes,
        piece.mean_norm,
        piece.max_norm,
        piece.n_tokens,
        checksum,
    )


def _room(cache: Cache) -> AbstractContextManager[None]:
    return full_disk_named(
        cache.folder,
        f"What is there is whole (samples: {cache.n_samples:,} of {cache.tokens:,}). Make room and "
        "go on with --resume.",
    )


def _check_room(folder: Path, n_bytes: int) -> None:
    there = _nearest(folder)
    free = shutil.disk_usage(there).free
    if n_bytes > free:
        raise OSError(
            f"the cache needs {human_bytes(n_bytes)} more, but {there} has only "
            f"{human_bytes(free)} free; keep fewer tokens, store them as bfloat16, or choose "
            "another disk."
        )


def _nearest(folder: Path) -> Path:
    """What is there of a path: itself, or of its parents the nearest."""
    places = (folder, *folder.absolute().parents)
    return next(place for place in places if place.is_symlink() or place.exists())


def human_bytes(n: int) -> str:
    """A size as people read it: 1,500,000 is "1.5 MB". Raises nothing."""
    size, units = float(n), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def _torch_dtype(dtype: Dtype) -> torch.dtype:
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
