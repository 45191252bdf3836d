"""`cache_activations`: a language model's activations over text, kept in a folder."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from tqdm import tqdm

from sparse_but_wrong import atomic
from sparse_but_wrong.activations import texts
from sparse_but_wrong.activations.language_model import (
    LanguageModel,
    ModelClass,
    ModelDtype,
    open_language_model,
)
from sparse_but_wrong.activations.manifest import (
    DTYPES,
    MANIFEST,
    Cache,
    Shard,
    is_intact,
    remove_empty,
    shard_name,
)
from sparse_but_wrong.activations.stored import StoredActivations, open_activations
from sparse_but_wrong.sae_lens_compat import get_special_token_ids
from sparse_but_wrong.untrusted import user_path

LARGE = 10
"""Norms of ordinary tokens lie within a few times their mean; one sample that is ten times as large
has the weight of a hundred in every squared error."""


def cache_activations(
    model: str | Path | LanguageModel,
    hook: str | None = None,
    *,
    out: str | Path,
    text: str | Path | Sequence[str | Path] | texts.Text = (),
    dataset: str | Path | None = None,
    dataset_config: str | None = None,
    model_class: ModelClass | None = None,
    model_dtype: ModelDtype = "float32",
    device: str = "cpu",
    resume: bool = False,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = False,
    log: Callable[[str], None] | None = None,
    n_tokens: int = 1_000_000,
    context_size: int = 128,
    batch_size: int = 32,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    samples_per_shard: int = 65_536,
    prepend_bos: bool = True,
    exclude_special_tokens: bool = True,
    skip_positions: int = 2,
) -> StoredActivations:
    """Run a language model over text and keep its activations at one hook point in a folder.

    They lie in shards, .safetensors files with "activations" [samples, d_in] and "token_ids"
    [samples], in the order of the text. The manifest lists those that are whole, and is rewritten
    after each. Whatever stops this leaves the finished shards, and `resume` continues behind them;
    on the same machine, a resumed cache equals an uninterrupted one byte for byte.

    Args:
        model: id on the Hugging Face Hub, a folder with a model, or a .gguf file; or a model that
            `open_language_model` has opened, with its hook.
        hook, model_class, model_dtype, device: as `open_language_model`.
        out: folder; must be new or empty, or a cache to resume.
        text: .txt, .jsonl or .parquet files, or folders of them (see `read_text`).
        dataset, dataset_config: instead of text, a Hugging Face dataset (see `open_text_dataset`).
        resume: continue the cache in `out`, rewrite its damaged shards, and extend it if `n_tokens`
            is larger; its other settings must be the same.
        provenance: facts about this process for the manifest.
        progress: show a bar.
        log: called with lines that say what is done.
        n_tokens: activations to keep; the batch that reaches this number is kept whole.
        context_size: tokens in a sequence. Documents are joined and cut into sequences.
        batch_size: sequences that run at once.
        dtype: of what is stored.
        samples_per_shard: about; a shard holds whole batches.
        prepend_bos: start every sequence of a text with BOS, where the tokenizer has one.
        exclude_special_tokens: leave out BOS, EOS, PAD and SEP: models park attention there, with
            activations so large that they distort every metric.
        skip_positions: positions at the start of every sequence to leave out, because attention is
            parked there too.
    Returns:
        the opened activations, ready for `evaluate` and `find_l0`.
    Raises:
        OSError: the folder is not free, or holds no cache to resume; too little room on the disk,
            before or while it is written to; the text cannot be read to its end; and as
            `open_language_model`, `read_text` and `open_text_dataset`.
        ValueError: as these; options that make no sense, other settings than the cache was made
            with, sequences longer than the model takes, a text with no full sequence or with ids
            that the model does not know, activations that are not finite, or another process at
            work in the folder.
    """
    counts = {"n_tokens": n_tokens, "context_size": context_size, "batch_size": batch_size}
    for name, value in {**counts, "samples_per_shard": samples_per_shard}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but is {value}.")
    if not 0 <= skip_positions < context_size:
        limit = f"0 or more and below context_size ({context_size})"
        raise ValueError(f"skip_positions must be {limit}, but is {skip_positions}.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be {' or '.join(DTYPES)}, but is {dtype!r}.")
    folder = user_path(out)
    # Before the model is loaded, which can take minutes.
    _check_folder(folder, resume)
    if not isinstance(text, texts.Text):
        paths = [text] if isinstance(text, str | Path) else text
        if bool(paths) == (dataset is not None) or (paths and dataset_config is not None):
            raise ValueError(
                "give either text (--text) or a dataset (--dataset), and a dataset_config only "
                "with a dataset."
            )
        text = (
            texts.open_text_dataset(str(dataset), dataset_config)
            if dataset is not None
            else texts.read_text([Path(path) for path in paths])
        )
    if not isinstance(model, LanguageModel):
        if hook is None:
            raise ValueError(f"name the hook point of {model} to keep the activations of.")
        model = open_language_model(
            str(model), hook, model_class=model_class, dtype=model_dtype, device=device
        )
    excluded = get_special_token_ids(model.tokenizer) if exclude_special_tokens else []
    cache = Cache(
        model=model.name,
        model_class=model.model_class,
        model_dtype=model.dtype,
        hook=model.hook,
        d_in=model.d_in,
        dtype=dtype,
        text=text.description,
        context_size=context_size,
        prepend_bos=prepend_bos,
        excluded_token_ids=tuple(sorted(excluded)),
        skip_positions=skip_positions,
        batch_size=batch_size,
        samples_per_shard=samples_per_shard,
        tokens=n_tokens,
        piece_size=texts.PIECE_SIZE,
        text_ended=False,
        shards=(),
        provenance=dict(provenance or {}),
        resumed=(),
    )
    say = log or (lambda _: None)
    wanted = f"{cache.tokens:,} samples as {cache.dtype}"
    size = human_bytes(cache.n_bytes(cache.tokens))
    say(f"{model.name} at {model.hook}, d_in {model.d_in}: {wanted}, {size} → {folder}")
    if not resume:
        _check_room(folder, cache.n_bytes(cache.tokens))
    started, is_new = time.monotonic(), not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.locked(folder):
        _check_folder(folder, resume)  # somebody may have been at work there until now
        try:
            cache = cache.continued(folder) if resume else cache
            writer = _Writer(folder, cache, model, text)
            n_remade = writer.write(progress)
        except ValueError:
            # To be started again with something else, for which an empty cache would be in the way.
            if not resume:
                remove_empty(folder, with_folder=is_new)
            raise
    for line in _in_words(writer, n_remade, time.monotonic() - started):
        say(line)
    return open_activations(folder)


def _check_folder(folder: Path, resume: bool) -> None:
    if not resume:
        atomic.check_free(folder, "choose another folder, or --resume to continue a cache")
    elif not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} holds no cache to resume; leave out --resume.")
    atomic.check_writable(folder)


class _Writer:
    """Runs a model over a text, forwards only, and writes what is kept as shards of a cache."""

    def __init__(self, folder: Path, cache: Cache, model: LanguageModel, text: texts.Text) -> None:
        self.folder, self.cache, self.model, self.text = folder, cache, model, text
        self.n_tokens_run, self._idle = 0, 0
        self._excluded = torch.tensor(cache.excluded_token_ids, dtype=torch.long)
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
        _check_room(folder, cache.n_bytes(n_wanted - n_whole))
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
                self._write_shard(len(self.cache.shards), cache.sequences_per_shard, missing, bar)
        if not self.cache.shards:
            says = f"no full sequence of {cache.context_size} tokens with anything to keep"
            raise ValueError(
                f"{self.text.name} gives {says}; give more text or lower context_size."
            )
        return len(damaged)

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
    ) -> tuple[Float[Tensor, "samples d_in"], Int32[Tensor, " samples"]] | None:
        """What is kept of the next sequences, and the ids of its tokens; None behind the text."""
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
            keep = ~torch.isin(tokens, self._excluded)
            keep[:, : self.cache.skip_positions] = False
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
        return samples, torch.cat(token_ids).to(torch.int32)


def save_shard(file: Path, activations: Tensor, token_ids: Tensor) -> tuple[int, str]:
    """Write a shard, whole or not at all, and return its size in bytes and its SHA-256."""
    from safetensors.torch import save

    content = save({"activations": activations, "token_ids": token_ids})
    atomic.write_bytes(file, content)
    return len(content), sha256(content).hexdigest()


def _check_room(folder: Path, n_bytes: int) -> None:
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


def _in_words(writer: _Writer, n_remade: int, seconds: float) -> Iterator[str]:
    cache = writer.cache
    if cache.text_ended and cache.n_samples < cache.tokens:
        yield f"The text ended before {cache.tokens:,} samples; give more text for more."
    if writer.sequences.n_skipped:
        yield f"Skipped texts without content, null or empty: {writer.sequences.n_skipped:,}"
    if n_remade:
        yield f"Damaged or missing shards made again: {n_remade}"
    if writer.n_tokens_run:
        speed = f"{writer.n_tokens_run / seconds:,.0f} per second"
        yield f"{writer.n_tokens_run:,} tokens run in {seconds:.0f} s, {speed}"
    else:
        yield "Nothing was left to do."
    mean, largest = cache.mean_norm or 0.0, cache.max_norm or 0.0
    if largest > LARGE * mean:
        times = largest / mean
        yield (
            f"The largest norm is {largest:.4g}, {times:.0f} times the mean: the model parks "
            "attention on some token that was kept, and in squared errors that sample weighs as "
            f"much as {times**2:,.0f} others. A larger --skip-positions leaves out those near the "
            "start of a sequence."
        )
    n_bytes = human_bytes(sum(shard.bytes for shard in cache.shards))
    yield (
        f"{cache.n_samples:,} samples, d_in {cache.d_in}, mean norm {mean:.4g}, {n_bytes}: "
        f"{writer.folder}"
    )
