"""Activations at the last tokens of tasks' texts, kept in a folder.

It holds a .safetensors file per task, with "activations" [texts, d_in] and "labels" [texts], and a
manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import safetensors.torch
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from sparse_but_wrong import atomic
from sparse_but_wrong.activations.language_model import LanguageModel
from sparse_but_wrong.activations.manifest import MANIFEST
from sparse_but_wrong.activations.tasks import Task
from sparse_but_wrong.untrusted import (
    checked,
    damaged,
    plain_name,
    read_json,
    read_safetensors,
    sha256,
    user_path,
)

FORMAT, FORMAT_VERSION = "sparse_but_wrong task activations", 1

_REMAKE = "remove that file and make the activations again"

TaskActivations = dict[str, tuple[Float[Tensor, "texts d_in"], Bool[Tensor, " texts"]]]
"""Activations at the last tokens of texts, and the labels of the texts, by the name of the task."""


@dataclass(frozen=True, kw_only=True)
class CachedTask:
    """An entry of the manifest: what the file of a task holds, and what it is of."""

    classes: tuple[str, str]
    seed: int
    n_texts: Annotated[int, Field(ge=1)]
    n_cut: Annotated[int, Field(ge=0)]
    """Texts that were longer than the context."""

    texts_sha256: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TaskCache:
    """The manifest of a folder with task activations: how they were made, and what there is."""

    model: str
    model_class: str
    model_dtype: str
    hook: str
    d_in: int
    context_size: int
    prepend_bos: bool
    # What may change when tasks are added begins here.
    complete: bool = False
    """Whether all tasks are there that were asked for last."""

    tasks: Mapping[str, CachedTask]

    def __post_init__(self) -> None:
        for name in self.tasks:
            plain_name(name)

    def write(self, folder: Path) -> None:
        """Write the manifest."""
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        atomic.write_bytes(folder / MANIFEST, text.encode())

    def is_intact(self, folder: Path, name: str) -> bool:
        """Whether the file of a task is there as it was written."""
        file = _file(folder, name)
        return file.is_file() and sha256(file) == self.tasks[name].sha256


def is_task_cache(folder: str | Path) -> bool:
    """Whether a folder holds task activations, rather than tasks."""
    return (user_path(folder) / MANIFEST).is_file()


def read_task_cache(folder: str | Path) -> TaskCache:
    """The manifest in a folder; ValueError if it is damaged, or of something else."""
    file = user_path(folder) / MANIFEST
    content = read_json(file, _REMAKE)
    kind = content.get("format"), content.get("format_version")
    if kind != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"{file} is of {kind!r:.100}, not of {FORMAT!r}, {FORMAT_VERSION}.")
    return checked(TaskCache, content, file, _REMAKE)


def open_task_activations(folder: str | Path) -> TaskActivations:
    """The activations that `cache_task_activations` has kept in a folder; no model is needed.

    Raises:
        OSError: there is no such folder.
        ValueError: a manifest or file is damaged, or the folder does not hold all tasks yet.
    """
    place, cache = user_path(folder), read_task_cache(folder)
    if not cache.complete:
        raise ValueError(
            f"{folder} holds {len(cache.tasks)} tasks and lacks others; name their folder to "
            "continue."
        )
    return _opened(place, cache, cache.tasks)


def _opened(folder: Path, cache: TaskCache, names: Collection[str]) -> TaskActivations:
    found: TaskActivations = {}
    for name in names:
        if not cache.is_intact(folder, name):
            raise damaged(_file(folder, name), "not what the manifest lists", _REMAKE)
        tensors = read_safetensors(_file(folder, name))
        found[name] = tensors["activations"], tensors["labels"]
    return found


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def cache_task_activations(
    model: LanguageModel,
    tasks: Sequence[Task],
    out: str | Path,
    *,
    context_size: int = 128,
    prepend_bos: bool = True,
    batch_size: int = 32,
    progress: bool = False,
) -> TaskActivations:
    """Run a language model over the texts of tasks, and keep the activation at each last token.

    What is in the folder already is not run again, so that all SAEs of a sweep, and later ones,
    share one run. Whatever stops this leaves the finished tasks; the same call continues, remakes
    damaged files, and in the end has written the same bytes as an uninterrupted one.

    Args:
        out: a folder that is new or empty, or has task activations of the same model and settings.
        context_size: tokens of a text at most, BOS included; longer ones are cut on the left.
        prepend_bos: start every text with BOS, where the tokenizer has one.
        batch_size: texts that run at once.
        progress: show a bar.
    Returns:
        for each of the tasks given: activations [texts, d_in] in float32, and labels [texts].
    Raises:
        OSError: the folder holds something else, or cannot be written to.
        ValueError: sequences longer than the model takes, a text without a token, activations that
            are not finite, activations of another model, hook, setting or of other texts in the
            folder, or another process at work in it.
    """
    n_bos = int(prepend_bos and model.tokenizer.bos_token_id is not None)
    most = model.n_ctx or context_size
    if not n_bos < context_size <= most or batch_size < 1:
        raise ValueError(
            f"context_size must be {n_bos + 1} to {most} tokens, the most that {model.name} takes, "
            f"and batch_size at least 1, but they are {context_size} and {batch_size}."
        )
    folder = user_path(out)
    cache = TaskCache(
        model=model.name,
        model_class=model.model_class,
        model_dtype=model.dtype,
        hook=model.hook,
        d_in=model.d_in,
        context_size=context_size,
        prepend_bos=prepend_bos,
        tasks={},
    )
    if not is_task_cache(folder):
        atomic.make_free_folder(folder)
    with atomic.locked(folder):
        atomic.remove_leftovers(folder)
        if is_task_cache(folder):
            cache = _continued(cache, folder, tasks)
        todo = [
            task
            for task in tasks
            if task.name not in cache.tasks or not cache.is_intact(folder, task.name)
        ]
        for task in tqdm(todo, desc="Running the model", unit=" tasks", disable=not progress):
            activations, n_cut = _run(model, task, context_size, n_bos, batch_size)
            content = safetensors.torch.save(
                {"activations": activations, "labels": torch.tensor(task.labels)}
            )
            atomic.write_bytes(_file(folder, task.name), content)
            entry = CachedTask(
                classes=task.classes,
                seed=task.seed,
                n_texts=len(task.prompts),
                n_cut=n_cut,
                texts_sha256=task.sha256,
                sha256=hashlib.sha256(content).hexdigest(),
            )
            cache = replace(cache, complete=False, tasks={**cache.tasks, task.name: entry})
            cache.write(folder)
        if not cache.complete:
            cache = replace(cache, complete=True)
            cache.write(folder)
        return _opened(folder, cache, [task.name for task in tasks])


def _continued(cache: TaskCache, folder: Path, tasks: Sequence[Task]) -> TaskCache:
    """What a folder holds already, if it may be continued; ValueError if it is of other things."""
    found = read_task_cache(folder)
    pairs = [
        (name, value, getattr(cache, name))
        for name, value in vars(found).items()
        if name not in ("complete", "tasks")
    ]
    for task in tasks:
        if there := found.tasks.get(task.name):
            before = there.n_texts, there.seed, there.texts_sha256[:8]
            now = len(task.prompts), task.seed, task.sha256[:8]
            pairs.append((f"(texts, seed, SHA-256) of {task.name}", before, now))
    for what, before, now in pairs:
        if before != now:
            raise ValueError(
                f"the task activations in {folder} were made with {what} {before!r}, not {now!r}; "
                "use another folder."
            )
    return found


def _run(
    model: LanguageModel, task: Task, context_size: int, n_bos: int, batch_size: int
) -> tuple[Float[Tensor, "texts d_in"], int]:
    """Activations at the last tokens of a task's texts, and how many of these were cut."""
    ids = model.tokenizer(list(task.prompts), add_special_tokens=False, verbose=False)["input_ids"]
    texts = [[model.tokenizer.bos_token_id] * n_bos + text[n_bos - context_size :] for text in ids]
    lengths = torch.tensor(list(map(len, texts)))
    if not all(ids):
        raise ValueError(f"a text of {task.name} has no token: {task.prompts[ids.index([])]!r}")
    activations = torch.empty(len(texts), model.d_in)
    # By length, so that there is little padding.
    for places in lengths.argsort(stable=True).split(batch_size):
        last = lengths[places] - 1
        # On the right, where a causal model does not see it from the last token of the text.
        longest = int(last.max()) + 1
        batch = [texts[i] + texts[i][-1:] * (longest - len(texts[i])) for i in places.tolist()]
        found = model.activations(torch.tensor(batch))
        activations[places] = found[torch.arange(len(last)), last.to(found.device)].cpu()
    if not bool(torch.isfinite(activations).all()):
        raise ValueError(f"{model.name} gives activations that are not finite for {task.name}.")
    return activations, sum(len(text) + n_bos > context_size for text in ids)
