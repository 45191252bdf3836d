"""`cache_activations`: a language model's activations over text, kept in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_but_wrong.activations.language_model import (
    LanguageModel,
    ModelClass,
    ModelDtype,
    open_language_model,
)
from sparse_but_wrong.activations.stored import StoredActivations, open_activations
from sparse_but_wrong.activations.texts import Text, open_text_dataset, read_text
from sparse_but_wrong.activations.writing import (
    CacheOptions,
    CacheResult,
    check_folder,
    human_bytes,
    write_cache,
)
from sparse_but_wrong.untrusted import user_path

LARGE = 10
"""Norms of ordinary tokens lie within a few times their mean; one sample that is ten times as large
has the weight of a hundred in every squared error."""


def cache_activations(
    model: str | Path | LanguageModel,
    hook: str | None = None,
    *,
    out: str | Path,
    text: str | Path | Sequence[str | Path] | Text = (),
    dataset: str | Path | None = None,
    dataset_config: str | None = None,
    model_class: ModelClass | None = None,
    model_dtype: ModelDtype = "float32",
    device: str = "cpu",
    resume: bool = False,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = False,
    log: Callable[[str], None] | None = None,
    **options: Any,
) -> StoredActivations:
    """Run a language model over text and keep its activations at one hook point in a folder.

    Args:
        model: id on the Hugging Face Hub, a folder with a model, or a .gguf file; or a model that
            `open_language_model` has opened, with its hook.
        hook: a module ("model.layers.14") or a TransformerLens name ("blocks.8.hook_resid_post").
        out: folder; must be new or empty, or a cache to resume.
        text: .txt, .jsonl or .parquet files, or folders of them (see `read_text`).
        dataset: instead of text, a Hugging Face dataset (see `open_text_dataset`).
        dataset_config: for a dataset that has several.
        model_class: what runs the model; follows from the hook's name by default.
        model_dtype: type of the model's weights.
        device: where the model runs.
        resume: continue the cache in `out`, rewrite its damaged shards, and extend it if `n_tokens`
            is larger; its other settings must be the same.
        provenance: facts about this process for the manifest.
        progress: show a bar.
        log: called with lines that say what is done.
        **options: the fields of `CacheOptions`: n_tokens, context_size, batch_size, dtype,
            samples_per_shard, prepend_bos, exclude_special_tokens and skip_positions.
    Returns:
        the opened activations, ready for `evaluate` and `find_l0`.
    Raises:
        TypeError: an unknown option.
        ValueError, OSError: as `open_language_model`, `read_text`, `open_text_dataset` and
            `write_cache`.
    """
    out, chosen = user_path(out), CacheOptions(**options)
    # Before the model is loaded, which can take minutes.
    check_folder(out, resume=resume)
    if isinstance(text, str | Path):
        text = [text]
    if not isinstance(text, Text):
        if bool(text) == (dataset is not None):
            raise ValueError("give what to read: either text (--text) or a dataset (--dataset).")
        if dataset is not None:
            text = open_text_dataset(str(dataset), dataset_config)
        elif dataset_config is not None:
            raise ValueError("a dataset_config belongs to a dataset (--dataset); leave it out.")
        else:
            text = read_text([Path(path) for path in text])
    if not isinstance(model, LanguageModel):
        if hook is None:
            raise ValueError(f"name the hook point of {model} to keep the activations of.")
        model = open_language_model(
            str(model), hook, model_class=model_class, dtype=model_dtype, device=device
        )
    if log is not None:
        size = human_bytes(chosen.n_bytes(model.d_in))
        log(
            f"{model.name} at {model.hook}, d_in {model.d_in}: {chosen.n_tokens:,} samples as "
            f"{chosen.dtype}, {size} → {out}"
        )
    result = write_cache(
        model, text, out, chosen, resume=resume, provenance=provenance, progress=progress
    )
    if log is not None:
        for line in _in_words(result):
            log(line)
    return open_activations(out)


def _in_words(result: CacheResult) -> Iterator[str]:
    cache = result.cache
    if cache.text_ended and cache.n_samples < cache.tokens:
        yield f"The text ended before {cache.tokens:,} samples; give more text for more."
    if result.n_skipped:
        yield f"Skipped texts without content, null or empty: {result.n_skipped:,}"
    if result.n_remade:
        yield f"Damaged or missing shards made again: {result.n_remade}"
    if result.n_tokens_run:
        speed = f"{result.n_tokens_run / result.seconds:,.0f} per second"
        yield f"{result.n_tokens_run:,} tokens run in {result.seconds:.0f} s, {speed}"
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
    width = f"d_in {cache.settings['d_in']}, mean norm {mean:.4g}, {n_bytes}"
    yield f"{cache.n_samples:,} samples, {width}: {cache.folder}"
