"""The shards of a cache of activations: a model run over the sequences of a text, and written down.

One process writes them in the order of the text. Others can write some in advance, each in a folder
of its own below `PARTS`: where a shard begins is known before, though not how many samples it has.
These take their places in the cache when it is their turn, as if they had been written there.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from tqdm import tqdm

from sparse_but_wrong import atomic
from sparse_but_wrong.activations import texts
from sparse_but_wrong.activations.language_model import LanguageModel
from sparse_but_wrong.activations.manifest import (
    DTYPES,
    MANIFEST,
    Cache,
    Shard,
    is_intact,
    read_cache,
    shard_name,
)
from sparse_but_wrong.activations.parts import LENGTHS, TENSOR, TOKEN_IDS

PARTS = ".parts"
"""The folder within a cache that others write in; it is gone once the cache is complete."""


def shards_of_parts(folder: Path) -> dict[int, tuple[Path, Shard]]:
    """What others have written in advance for the cache in a folder, by first sequence."""
    return {
        shard.first_sequence: (manifest.parent / shard.file, shard)
        for manifest in sorted((folder / PARTS).glob(f"*/{MANIFEST}"))
        for shard in read_cache(manifest.parent).shards
        if (manifest.parent / shard.file).is_file()
    }


def split_into_parts(folder: Path, cache: Cache, n: int) -> dict[Path, list[int]]:
    """Where others could write in advance: folders of their own, and first sequences of shards.

    Only shards that are whole whatever the text holds: as long as every token that may be kept is,
    it does not reach `cache.tokens` in them.

    Args:
        n: how many parts to make, where there are as many shards.
    """
    per_shard = cache.sequences_per_shard
    at_most = per_shard * (cache.context_size - cache.skip_positions)
    n_whole = max(0, cache.tokens - cache.n_samples - 1) // at_most
    done = shards_of_parts(folder)
    starts = (cache.n_sequences + per_shard * i for i in range(n_whole))
    missing = [first for first in starts if first not in done]
    n_there, n = len(list((folder / PARTS).glob("*"))), min(n, len(missing))
    parts = [missing[len(missing) * i // n : len(missing) * (i + 1) // n] for i in range(n)]
    return {folder / PARTS / f"{n_there + i:05d}": firsts for i, firsts in enumerate(parts)}


class Writer:
    """Runs a model over a text, forwards only, and writes what is kept as shards of a cache."""

    def __init__(self, folder: Path, cache: Cache, model: LanguageModel, text: texts.Text) -> None:
        self.folder, self.cache, self.model, self.text = folder, cache, model, text
        self.n_tokens_run, self._idle = 0, 0
        self.sequences = texts.Sequences(
            model,
            text,
            cache.context_size,
            prepend_bos=cache.prepend_bos,
            piece_size=cache.piece_size,
        )

    def write(self, progress: bool) -> int:
        """Make damaged shards again and add those that are missing; returns how many of the first.

        ValueError for a text of which nothing is kept, and OSError for too little room on the disk.
        """
        cache, folder = self.cache, self.folder
        damaged = [
            (i, shard)
            for i, shard in enumerate(cache.shards)
            if not is_intact(folder, shard, cache.d_in)
        ]
        n_wanted = cache.n_samples if cache.complete else cache.tokens
        n_whole = cache.n_samples - sum(shard.n_samples for _, shard in damaged)
        waiting = shards_of_parts(folder)
        n_there = n_whole + sum(shard.n_samples for _, shard in waiting.values())
        check_room(folder, cache.n_bytes(n_wanted - n_there))
        atomic.remove_leftovers(folder)
        cache.write(folder)
        with tqdm(
            total=n_wanted, initial=n_whole, unit="token", unit_scale=True, disable=not progress
        ) as bar:
            for i, shard in damaged:
                self.sequences.skip_to(shard.first_sequence)
                self._write_shard(i, shard.n_sequences, math.inf, bar)
            self.sequences.skip_to(cache.n_sequences)
            while not self.cache.complete:
                missing = cache.tokens - self.cache.n_samples
                # Behind the last shard, or a part of the text of which nothing was kept.
                first = max(self.cache.n_sequences, self.sequences.n_given)
                file, shard = waiting.get(first, (folder, None))
                if shard is not None and self._is_next(shard, missing):
                    self._take(file, shard, bar)
                    continue
                self.sequences.skip_to(first)
                self._write_shard(len(self.cache.shards), cache.sequences_per_shard, missing, bar)
        shutil.rmtree(folder / PARTS, ignore_errors=True)
        if not self.cache.shards:
            says = f"no full sequence of {cache.context_size} tokens with anything to keep"
            raise ValueError(
                f"{self.text.name} gives {says}; give more text or lower context_size."
            )
        return len(damaged)

    def write_part(self, firsts: Sequence[int]) -> None:
        """Write the shards that begin at some sequences, ascending, as far as the text goes.

        Continues a part that was begun.
        """
        with tqdm(disable=True) as bar:
            for first in firsts:
                if first < self.cache.n_sequences:
                    continue
                for _ in islice(self.sequences, first - self.sequences.n_given):
                    pass
                if self.sequences.n_given < first:  # where the text ends, nothing is missing
                    return
                n_sequences = self.cache.sequences_per_shard
                self._write_shard(len(self.cache.shards), n_sequences, math.inf, bar)

    def _is_next(self, shard: Shard, missing: int) -> bool:
        """Whether a shard from a part is what would be written here: whole, and not the last."""
        return shard.n_sequences == self.cache.sequences_per_shard and shard.n_samples < missing

    def _take(self, file: Path, shard: Shard, bar: tqdm[Any]) -> None:
        """Give a shard from a part its place."""
        name = shard_name(len(self.cache.shards))
        file.replace(self.folder / name)
        self.cache = replace(self.cache, shards=(*self.cache.shards, replace(shard, file=name)))
        self.cache.write(self.folder)
        self.n_tokens_run += shard.n_tokens
        bar.update(shard.n_samples)

    def _write_shard(
        self, index: int, n_sequences: int, wanted: float | int, bar: tqdm[Any]
    ) -> None:
        """Run the next sequences, or fewer where that gives the samples wanted, and write a shard.

        Where the cache lists one there, this must give it again.
        """
        cache, file, first = self.cache, shard_name(index), self.sequences.n_given
        n_tokens_before, n_done, n_kept = self.n_tokens_run, 0, 0
        batches, norms = [], []
        while n_done < n_sequences and n_kept < wanted:
            batch = self._batch(min(cache.batch_size, n_sequences - n_done))
            if batch is None:
                break
            batches.append(batch)
            norms.append(torch.linalg.vector_norm(batch[0].double(), dim=1))
            n_done, n_kept = self.sequences.n_given - first, n_kept + len(batch[0])
            bar.update(len(batch[0]))
        old = cache.shards[index] if index < len(cache.shards) else None
        if old is not None and (old.n_sequences, old.n_samples) != (n_done, n_kept):
            raise ValueError(
                f"{file} had {old.n_samples} samples of {old.n_sequences} sequences, but its part "
                f"of {self.text.name} gives {n_kept} of {n_done}; use its own text, or make it "
                "again."
            )
        there = f"samples: {cache.n_samples:,} of {cache.tokens:,}"
        advice = f"What is there is whole ({there}). Make room and continue with --resume."
        shards = list(cache.shards)
        with atomic.full_disk_named(self.folder, advice):
            if n_kept:
                tensors = [torch.cat(pieces) for pieces in zip(*batches, strict=True)]
                n_bytes, checksum = save_shard(self.folder / file, *tensors)
                shards[index : index + 1] = [
                    Shard(
                        file=file,
                        n_samples=n_kept,
                        first_sequence=first,
                        n_sequences=n_done,
                        bytes=n_bytes,
                        mean_norm=sum(float(of_batch.sum()) for of_batch in norms) / n_kept,
                        max_norm=float(torch.cat(norms).max()),
                        n_tokens=self.n_tokens_run - n_tokens_before,
                        sha256=checksum,
                    )
                ]
            ended = cache.text_ended or (n_done < n_sequences and n_kept < wanted)
            self.cache = replace(cache, shards=tuple(shards), text_ended=ended)
            self.cache.write(self.folder)

    def _batch(
        self, most: int
    ) -> (
        tuple[Float[Tensor, "samples d_in"], Int32[Tensor, " samples"], Int32[Tensor, " sequences"]]
        | None
    ):
        """What is kept of the next sequences, the ids of its tokens, and how much of each sequence.

        None behind the text.
        """
        sequences = list(islice(self.sequences, most))
        if not sequences:
            return None
        dtype = DTYPES[self.cache.dtype]
        kept = [torch.empty(0, self.model.d_in, dtype=dtype)] * len(sequences)
        token_ids = [torch.empty(0, dtype=torch.long)] * len(sequences)
        # By length: padding would give other positions in some models, and other attention in more.
        for length in {len(sequence) for sequence in sequences}:
            places = [i for i, sequence in enumerate(sequences) if len(sequence) == length]
            tokens = torch.stack([sequences[i] for i in places])
            keep = self.cache.keeps(tokens)
            if not keep.any():
                continue
            activations = self.model.activations(tokens)
            self.n_tokens_run += tokens.numel()
            rows = activations[keep.to(activations.device)].to(dtype).cpu()
            of_sequences = rows.split(keep.sum(dim=1).tolist())
            for i, of_sequence, kept_there in zip(places, of_sequences, keep, strict=True):
                kept[i], token_ids[i] = of_sequence, sequences[i][kept_there]
        samples, at = torch.cat(kept), self.sequences.n_given
        if not samples.isfinite().all():
            is_full = self.model.dtype == "float32"
            remedy = "its weights may be damaged" if is_full else "try --model-dtype float32"
            raise ValueError(
                f"the activations of {self.model.name} at {self.model.hook} are not all finite in "
                f"the sequences {at - len(sequences)} to {at - 1}; {remedy}."
            )
        self._idle = 0 if len(samples) else self._idle + len(sequences)
        if self._idle >= texts.IDLE:
            raise ValueError(
                f"{self.text.name}: nothing is kept of the last {self._idle:,} sequences, which "
                "are special tokens or skipped positions; use another text or larger context_size."
            )
        lengths = torch.tensor([len(of_sequence) for of_sequence in kept], dtype=torch.int32)
        return samples, torch.cat(token_ids).to(torch.int32), lengths


def save_shard(
    file: Path, activations: Tensor, token_ids: Tensor, lengths: Tensor
) -> tuple[int, str]:
    """Write a shard, whole or not at all, and return its size in bytes and its SHA-256."""
    from safetensors.torch import save

    content = save({TENSOR: activations, TOKEN_IDS: token_ids, LENGTHS: lengths})
    atomic.write_bytes(file, content)
    return len(content), sha256(content).hexdigest()


def check_room(folder: Path, n_bytes: int) -> None:
    """Raise an OSError if so many bytes do not fit on the disk of a folder."""
    there = atomic.nearest(folder)
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
