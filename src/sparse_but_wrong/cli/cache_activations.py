"""`sbw cache-activations`: a language model's activations over text, kept on disk."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from sparse_but_wrong.cli.options import (
    AT_LEAST_0,
    AT_LEAST_1,
    NAME_OR_PATH,
    PATH,
    device,
    threads,
    use_threads,
)

if TYPE_CHECKING:
    from sparse_but_wrong.activations.cache import CacheResult, Dtype
    from sparse_but_wrong.activations.language_model import ModelClass, ModelDtype
    from sparse_but_wrong.activations.texts import Text

_LARGE = 10
"""Norms of ordinary tokens lie within a few times their mean; one sample that is ten times as large
has the weight of a hundred in every squared error."""


@click.command("cache-activations")
@click.option(
    "--model",
    type=NAME_OR_PATH,
    required=True,
    help="Hugging Face id, folder with a model, or .gguf file.",
)
@click.option(
    "--hook",
    required=True,
    help="Hook point: a module such as model.layers.14, or a TransformerLens name such as "
    "blocks.8.hook_resid_post.",
)
@click.option(
    "--text",
    type=PATH,
    multiple=True,
    help="A .txt, .jsonl or .parquet file, or a folder of them. Can be given several times.",
)
@click.option(
    "--dataset",
    type=NAME_OR_PATH,
    help="Text from a Hugging Face dataset, or from a folder with a saved one.",
)
@click.option("--dataset-config", help="Configuration of a dataset that has several.")
@click.option(
    "--out",
    type=PATH,
    required=True,
    help="New or empty folder, or a cache to --resume.",
)
@click.option(
    "--tokens",
    type=AT_LEAST_1,
    default=1_000_000,
    show_default=True,
    help="Activations to keep.",
)
@click.option(
    "--context-size",
    type=AT_LEAST_1,
    default=128,
    show_default=True,
    help="Tokens per sequence.",
)
@click.option(
    "--batch-size",
    type=AT_LEAST_1,
    default=32,
    show_default=True,
    help="Sequences per forward pass.",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Stored dtype.",
)
@click.option(
    "--model-class",
    type=click.Choice(["AutoModelForCausalLM", "HookedTransformer"]),
    help="Class that runs the model. [default: follows from the hook's name]",
)
@click.option(
    "--model-dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="dtype of the model's weights.",
)
@device("the model runs")
@threads
@click.option("--keep-special-tokens", is_flag=True, help="Keep BOS, EOS, PAD and SEP too.")
@click.option(
    "--skip-positions",
    type=AT_LEAST_0,
    default=2,
    show_default=True,
    help="Positions at the start of every sequence to leave out.",
)
@click.option("--no-bos", is_flag=True, help="Do not start sequences with BOS.")
@click.option("--resume", is_flag=True, help="Continue a cache: complete, fix or extend it.")
def cache(
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
    """Run a language model over text and keep its activations at one hook point on disk.

    Special tokens such as BOS and the first tokens of each sequence are left out, because they
    distort every metric. A dataset of token ids may have an attention_mask column, which marks
    padding. Ctrl-C keeps what is done; --resume continues.
    """
    from sparse_but_wrong.activations.cache import (
        CacheOptions,
        cache_activations,
        check_folder,
        human_bytes,
    )
    from sparse_but_wrong.activations.language_model import open_language_model
    from sparse_but_wrong.activations.paths import user_path
    from sparse_but_wrong.runs.provenance import provenance

    options = CacheOptions(
        tokens=tokens,
        context_size=context_size,
        batch_size=batch_size,
        dtype=cast("Dtype", dtype),
        prepend_bos=not no_bos,
        exclude_special_tokens=not keep_special_tokens,
        skip_positions=skip_positions,
    )
    out = user_path(out)
    # Before the model is loaded, which can take minutes.
    check_folder(out, resume=resume)
    use_threads(threads)
    with _quiet_libraries():
        read = _text(text, dataset, dataset_config)
        with _bars_on_terminals_only():
            opened = open_language_model(
                model,
                hook,
                model_class=cast("ModelClass | None", model_class),
                dtype=cast("ModelDtype", model_dtype),
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
    from sparse_but_wrong.activations.texts import open_text_dataset, read_text

    if bool(paths) == (dataset is not None):
        raise ValueError("say what to read, with either --text or --dataset.")
    if dataset is not None:
        return open_text_dataset(dataset, config)
    if config is not None:
        raise ValueError("--dataset-config belongs to --dataset; leave it out.")
    return read_text(paths)


def _print(result: CacheResult) -> None:
    from sparse_but_wrong.activations.cache import human_bytes

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
    import datasets
    import transformers

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
