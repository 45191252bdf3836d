"""`sbw cache-activations`: a language model's activations over text, kept on disk."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any, cast

import click
import datasets
import torch
import transformers

from sparse_but_wrong.activations.cache import (
    CacheOptions,
    CacheResult,
    Dtype,
    cache_activations,
    check_folder,
    human_bytes,
)
from sparse_but_wrong.activations.language_model import (
    ModelClass,
    ModelDtype,
    open_language_model,
)
from sparse_but_wrong.activations.paths import user_path
from sparse_but_wrong.activations.texts import Text, open_text_dataset, read_text
from sparse_but_wrong.runs.provenance import provenance

_LARGE = 10
"""Norms of ordinary tokens lie within a few times their mean; one sample that is ten times as large
has the weight of a hundred in every squared error."""


def cache(
    *,
    model: str,
    hook: str,
    text: tuple[Path, ...],
    dataset: str | None,
    dataset_config: str | None,
    out: Path,
    tokens: int,
    context_size: int,
    batch_size: int,
    dtype: str,
    model_class: str | None,
    model_dtype: str,
    device: str,
    threads: int | None,
    keep_special_tokens: bool,
    skip_positions: int,
    no_bos: bool,
    resume: bool,
) -> None:
    """Run a language model over text and write its activations to a folder.

    Raises:
        ValueError, OSError: bad input; the message is meant for the user.
        KeyboardInterrupt: on Ctrl-C, after a line that says how to go on.
    """
    options = CacheOptions(
        tokens=tokens,
        context_size=context_size,
        batch_size=batch_size,
        dtype=cast(Dtype, dtype),
        prepend_bos=not no_bos,
        exclude_special_tokens=not keep_special_tokens,
        skip_positions=skip_positions,
    )
    out = user_path(out)
    # Before the model is loaded, which can take minutes.
    check_folder(out, resume=resume)
    if threads is not None:
        torch.set_num_threads(threads)
    with _quiet_libraries():
        read = _text(text, dataset, dataset_config)
        with _bars_on_terminals_only():
            opened = open_language_model(
                model,
                hook,
                model_class=cast("ModelClass | None", model_class),
                dtype=cast(ModelDtype, model_dtype),
                device=device,
            )
        click.echo(
            f"{model} at {hook}, d_in {opened.d_in}: {tokens:,} samples as {dtype}, "
            f"{human_bytes(options.n_bytes(opened.d_in))} → {out}"
        )
        try:
            result = cache_activations(
                opened,
                read,
                out,
                options,
                resume=resume,
                provenance=provenance(),
                progress=sys.stderr.isatty(),
            )
        except KeyboardInterrupt:
            click.echo(
                "\nStopped. The shards that are done are kept; go on with the same command and "
                "--resume.",
                err=True,
            )
            raise
    _print(result)


def _text(paths: tuple[Path, ...], dataset: str | None, config: str | None) -> Text:
    if bool(paths) == (dataset is not None):
        raise ValueError("say what to read, with either --text or --dataset.")
    if dataset is not None:
        return open_text_dataset(dataset, config)
    if config is not None:
        raise ValueError("--dataset-config belongs to --dataset; leave it out.")
    return read_text(paths)


def _print(result: CacheResult) -> None:
    cache = result.cache
    if cache.text_ended and cache.n_samples < cache.tokens:
        click.echo(
            f"The text ended before {cache.tokens:,} samples were kept; give more text for more."
        )
    if result.n_skipped:
        click.echo(f"Texts without content, null or empty, that were skipped: {result.n_skipped:,}")
    if result.n_remade:
        click.echo(f"Shards made anew: {result.n_remade}")
    if result.n_tokens_run == 0:
        click.echo("Nothing was left to do.")
    else:
        click.echo(
            f"{result.n_tokens_run:,} tokens run in {result.seconds:.0f} s, "
            f"{result.n_tokens_run / result.seconds:,.0f} per second"
        )
    if cache.mean_norm and cache.max_norm and cache.max_norm > _LARGE * cache.mean_norm:
        times = cache.max_norm / cache.mean_norm
        click.echo(
            f"The largest norm is {cache.max_norm:.4g}, {times:.0f} times the mean: the model "
            "parks attention on some token that was kept, and in squared errors that sample "
            f"weighs as much as {times**2:,.0f} others. A larger --skip-positions leaves out those "
            "near the start of a sequence."
        )
    click.echo(
        f"{cache.n_samples:,} samples, d_in {cache.settings['d_in']}, mean norm "
        f"{cache.mean_norm:.4g}, {human_bytes(cache.n_bytes)}: {cache.folder}"
    )


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Keep bars out of logs: that of a .gguf file cannot be turned off by itself."""
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        yield


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Leave out what the libraries say while all goes well; what goes wrong is raised."""
    # Each sets the level of its own logger when it is imported, so they are set one by one.
    names = ("transformers", "datasets", "sae_lens", "huggingface_hub", "httpx")
    # TransformerLens logs to the root.
    loggers = [logging.getLogger(name) for name in names] + [logging.getLogger()]
    levels = [logger.level for logger in loggers]
    logging_bars: Any = transformers.utils.logging
    shown = logging_bars.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    logging_bars.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown[0]:
            logging_bars.enable_progress_bar()
        if not shown[1]:
            datasets.enable_progress_bars()
