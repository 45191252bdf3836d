"""`cache_activations`: a language model's activations over text, kept in a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from sparse_but_wrong import atomic
from sparse_but_wrong.activations import texts
from sparse_but_wrong.activations.language_model import (
    LanguageModel,
    ModelClass,
    ModelDtype,
    open_language_model,
)
from sparse_but_wrong.activations.manifest import DTYPES, MANIFEST, Cache, read_cache, remove_empty
from sparse_but_wrong.activations.shards import Writer, check_room, human_bytes
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
    write_parts: Callable[[Path, Cache], None] | None = None,
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

    They lie in shards, .safetensors files with "activations" [samples, d_in], "token_ids" [samples]
    and "sequence_lengths" [sequences] (samples of each), in the order of the text. The manifest
    lists those that are whole, and is rewritten after each. Whatever stops this leaves the finished
    shards, and `resume` continues behind them; on the same machine, a resumed cache equals an
    uninterrupted one byte for byte.

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
        write_parts: called with the folder and what is in it before the rest is written; what it
            has others write in the parts of `split_into_parts`, with `write_part`, is taken in.
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
    text = _open_text(text, dataset, dataset_config)
    model = _open_model(model, hook, model_class, model_dtype, device)
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
        check_room(folder, cache.n_bytes(cache.tokens))
    started, is_new = time.monotonic(), not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.locked(folder):
        _check_folder(folder, resume)  # somebody may have been at work there until now
        try:
            cache = cache.continued(folder) if resume else cache
            if write_parts is not None:
                cache.write(folder)
                write_parts(folder, cache)
            writer = Writer(folder, cache, model, text)
            n_remade = writer.write(progress)
        except ValueError:
            # To be started again with something else, for which an empty cache would be in the way.
            if not resume:
                remove_empty(folder, with_folder=is_new)
            raise
    for line in _in_words(writer, n_remade, time.monotonic() - started):
        say(line)
    return open_activations(folder)


def write_part(
    folder: Path,
    firsts: Sequence[int],
    cache: Cache,
    *,
    model: str,
    hook: str,
    text: Sequence[str | Path],
    dataset: str | None,
    dataset_config: str | None,
    model_class: ModelClass | None,
    model_dtype: ModelDtype,
    device: str,
) -> None:
    """Write a part of a cache in advance, or continue it.

    Args:
        folder: of the part, as `split_into_parts` gives it.
        firsts: the sequences that its shards begin with.
        cache: the cache that it is a part of.
        model, hook, text, dataset, dataset_config, model_class, model_dtype, device: those that
            `cache_activations` got; they are opened here. So are its errors.
    """
    opened = _open_text(text, dataset, dataset_config)
    runs = _open_model(model, hook, model_class, model_dtype, device)
    is_begun = (folder / MANIFEST).is_file()
    part = read_cache(folder) if is_begun else replace(cache, shards=(), text_ended=False)
    Writer(folder, part, runs, opened).write_part(firsts)


def _open_text(
    text: str | Path | Sequence[str | Path] | texts.Text,
    dataset: str | Path | None,
    dataset_config: str | None,
) -> texts.Text:
    if isinstance(text, texts.Text):
        return text
    paths = [text] if isinstance(text, str | Path) else text
    if bool(paths) == (dataset is not None) or (paths and dataset_config is not None):
        raise ValueError(
            "give either text (--text) or a dataset (--dataset), and a dataset_config only "
            "with a dataset."
        )
    if dataset is not None:
        return texts.open_text_dataset(str(dataset), dataset_config)
    return texts.read_text([Path(path) for path in paths])


def _open_model(
    model: str | Path | LanguageModel,
    hook: str | None,
    model_class: ModelClass | None,
    model_dtype: ModelDtype,
    device: str,
) -> LanguageModel:
    if isinstance(model, LanguageModel):
        return model
    if hook is None:
        raise ValueError(f"name the hook point of {model} to keep the activations of.")
    return open_language_model(
        str(model), hook, model_class=model_class, dtype=model_dtype, device=device
    )


def _check_folder(folder: Path, resume: bool) -> None:
    if not resume:
        atomic.check_free(folder, "choose another folder, or --resume to continue a cache")
    elif not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} holds no cache to resume; leave out --resume.")
    atomic.check_writable(folder)


def _in_words(writer: Writer, n_remade: int, seconds: float) -> Iterator[str]:
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
