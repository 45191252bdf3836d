"""`sbw cache-activations`: a language model's activations over text, kept on disk."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    "n_tokens",
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
def cache(threads: int | None, keep_special_tokens: bool, no_bos: bool, **parameters: Any) -> None:
    """Run a language model over text and keep its activations at one hook point on disk.

    Special tokens such as BOS and the first tokens of each sequence are left out, because they
    distort every metric. A dataset of token ids may have an attention_mask column, which marks
    padding. Ctrl-C keeps what is done; --resume continues.
    """
    from sparse_but_wrong.activations.cache import cache_activations
    from sparse_but_wrong.runs.provenance import provenance

    use_threads(threads)
    try:
        with _quiet_libraries():
            # The other options are its parameters, under the same names.
            cache_activations(
                **parameters,
                exclude_special_tokens=not keep_special_tokens,
                prepend_bos=not no_bos,
                provenance=provenance(),
                progress=sys.stderr.isatty(),
                log=click.echo,
            )
    except KeyboardInterrupt:
        click.echo(
            "\nStopped. The finished shards are kept; continue with the same command and --resume.",
            err=True,
        )
        raise


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Hide what the libraries say while all goes well; what goes wrong is raised."""
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
