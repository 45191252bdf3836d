"""`sbw cache-activations`: a language model's activations over text, kept on disk."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import click

from sparse_but_wrong.cli.options import (
    AT_LEAST_0,
    AT_LEAST_1,
    NAME_OR_PATH,
    PATH,
    device,
    on_cluster,
    ray,
    threads,
)
from sparse_but_wrong.runs.provenance import provenance

_MODEL = "Hugging Face id, folder with a model, or .gguf file."
_HOOK = (
    "Hook point: a module such as model.layers.14, or a TransformerLens name such as "
    "blocks.8.hook_resid_post."
)
_TEXT = "A .txt, .jsonl or .parquet file, or a folder of them. Can be given several times."
_DATASET = "Text from a Hugging Face dataset, or from a folder with a saved one."
_OUT = "New or empty folder, or a cache to --resume."
_CLASS = "Class that runs the model. [default: follows from the hook's name]"
_SKIP = "Positions at the start of every sequence to leave out."


_SOURCE = (
    *("model", "hook", "model_class", "model_dtype", "device"),
    *("text", "dataset", "dataset_config"),
)
"""The parameters that say what is read."""


def _count(name: str, default: int, text: str) -> Any:
    parameter = "n_tokens" if name == "tokens" else name.replace("-", "_")
    return click.option(f"--{name}", parameter, type=AT_LEAST_1, default=default, help=text)


def _choice(name: str, choices: str, default: str | None, text: str) -> Any:
    return click.option(f"--{name}", type=click.Choice(choices.split()), default=default, help=text)


@click.command("cache-activations")
@click.option("--model", type=NAME_OR_PATH, required=True, help=_MODEL)
@click.option("--hook", required=True, help=_HOOK)
@click.option("--text", type=PATH, multiple=True, help=_TEXT)
@click.option("--dataset", type=NAME_OR_PATH, help=_DATASET)
@click.option("--dataset-config", help="Configuration of a dataset that has several.")
@click.option("--out", type=PATH, required=True, help=_OUT)
@_count("tokens", 1_000_000, "Activations to keep.")
@_count("context-size", 128, "Tokens per sequence.")
@_count("batch-size", 32, "Sequences per forward pass.")
@_choice("dtype", "bfloat16 float32", "bfloat16", "Stored dtype.")
@_choice("model-class", "AutoModelForCausalLM HookedTransformer", None, _CLASS)
@_choice("model-dtype", "float32 bfloat16 float16", "float32", "dtype of the model's weights.")
@device("the model runs")
@threads
@click.option("--keep-special-tokens", is_flag=True, help="Keep BOS, EOS, PAD and SEP too.")
@click.option("--skip-positions", type=AT_LEAST_0, default=2, help=_SKIP)
@click.option("--no-bos", is_flag=True, help="Do not start sequences with BOS.")
@click.option("--resume", is_flag=True, help="Continue a cache: complete, fix or extend it.")
@ray
def cache(keep_special_tokens: bool, no_bos: bool, ray: str | None, **parameters: Any) -> None:
    """Run a language model over text and keep its activations at one hook point on disk.

    Special tokens such as BOS and the first tokens of each sequence are left out, because they
    distort every metric. A dataset of token ids may have an attention_mask column, which marks
    padding. Ctrl-C keeps what is done; --resume continues.
    """
    from sparse_but_wrong.activations.cache import cache_activations

    try:
        with on_cluster(ray) as cluster, quiet_libraries():
            write_parts = None
            if cluster is not None:
                from sparse_but_wrong.cluster.cache import write_parts_on

                source = {name: parameters[name] for name in _SOURCE}
                write_parts = partial(write_parts_on, cluster, source, sys.stderr.isatty())
            # The other options are its parameters, under the same names.
            cache_activations(
                **parameters,
                exclude_special_tokens=not keep_special_tokens,
                prepend_bos=not no_bos,
                provenance=provenance(),
                progress=sys.stderr.isatty(),
                log=click.echo,
                write_parts=write_parts,
            )
    except KeyboardInterrupt:
        click.echo(
            "\nStopped. The finished shards are kept; continue with the same command and --resume.",
            err=True,
        )
        raise


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide what the libraries say while all goes well; what goes wrong is raised."""
    import datasets
    import transformers

    bars: Any = transformers.utils.logging
    with ExitStack() as after:
        # For every library: some set the level of their own logger, others log to the root.
        after.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.WARNING)
        if bars.is_progress_bar_enabled():
            bars.disable_progress_bar()
            after.callback(bars.enable_progress_bar)
        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            after.callback(datasets.enable_progress_bars)
        yield
