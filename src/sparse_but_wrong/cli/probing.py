"""The options of `sbw diagnose` for probing, and the activations of tasks that they ask for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparse_but_wrong.cli.options import AT_LEAST_1, PATH, quiet_libraries
from sparse_but_wrong.untrusted import user_path

if TYPE_CHECKING:
    from sparse_but_wrong.activations.stored import StoredActivations
    from sparse_but_wrong.activations.task_cache import TaskActivations

_TASKS = (
    "Also probe SAEs for labels of texts: a folder of tasks, .csv or .csv.zst files with the "
    "columns prompt and target, such as data/cleaned_data of the package sae-probes; or the cache "
    "made of one, which needs no model."
)
_CACHE = (
    "Where activations of the tasks are kept, or are from before. [default: the path of the "
    "activations with -probing behind it]"
)
_LENGTH = "Leave out tasks whose median text has more characters."
_TEXTS = "Texts of a task at most, half of them of either class."


def probing_options(command: Any) -> Any:
    """Give a command `--probing` and what belongs to it."""
    for option in (
        click.option("--probing-texts", type=AT_LEAST_1, default=500, help=_TEXTS),
        click.option("--probing-length", type=AT_LEAST_1, default=150, help=_LENGTH),
        click.option("--probing-cache", type=PATH, help=_CACHE),
        click.option("--probing", type=PATH, help=_TASKS),
    ):
        command = option(command)
    return command


def task_activations(
    probing: Path,
    cache: Path | None,
    max_length: int,
    n_texts: int,
    stored: StoredActivations,
    model: str | None,
    hook: str | None,
    device: str,
) -> TaskActivations:
    """Activations of probing tasks at the place in a model that stored activations are of.

    Args:
        probing, cache, max_length, n_texts: what the options give.
        model, hook: of the stored activations, as far as they are known.
    Raises:
        OSError: as `read_tasks`, `open_language_model` and `cache_task_activations`.
        ValueError: as these; the model or hook is not known, or another than that of the cache.
    """
    from sparse_but_wrong.activations import task_cache
    from sparse_but_wrong.activations.language_model import open_language_model
    from sparse_but_wrong.activations.tasks import read_tasks

    made = stored.cache
    if task_cache.is_task_cache(probing):
        found = task_cache.read_task_cache(probing)
        wanted = {"d_in": stored.d_in, "model": model, "hook": made and made.hook}
        for name, value in wanted.items():
            if value not in (None, there := getattr(found, name)):
                raise ValueError(
                    f"{probing} holds activations with {name} {there}, but those of {stored.name} "
                    f"have {value}; name the folder of tasks, to run the model over them again."
                )
        return task_cache.open_task_activations(probing)
    if model is None or hook is None:
        raise ValueError(
            f"{stored.name} has no {'hook' if model else 'model'} on record, so there is nothing "
            "to run over the probing tasks; name the model with --model, or give --probing a cache "
            "that cache_task_activations has made."
        )
    tasks = read_tasks(probing, max_length=max_length, n_texts=n_texts)
    where = user_path(stored.name).resolve()
    folder = cache or where.with_name(f"{where.name}-probing")
    click.echo(f"Probing: {len(tasks)} tasks of {probing}, activations in {folder}")
    with quiet_libraries():
        of_cache: dict[str, Any] = {}
        context: dict[str, Any] = {}
        if made is not None:
            of_cache = {"model_class": made.model_class, "dtype": made.model_dtype}
            context = {"context_size": made.context_size, "prepend_bos": made.prepend_bos}
        opened = open_language_model(model, hook, device=device, **of_cache)
        if opened.d_in != stored.d_in:
            raise ValueError(
                f"{model} has activations of width {opened.d_in} at {hook}, but those of "
                f"{stored.name} have {stored.d_in}; it is another model."
            )
        return task_cache.cache_task_activations(
            opened, tasks, folder, progress=sys.stderr.isatty(), **context
        )
