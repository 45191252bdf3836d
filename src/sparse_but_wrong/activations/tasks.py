"""Probing tasks: texts of two classes, which a probe learns to tell apart.

A task is a .csv or .csv.zst file with the columns `prompt` and `target`, such as the package
sae-probes has in its `data/cleaned_data`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sparse_but_wrong.seeds import derive_seed
from sparse_but_wrong.untrusted import damaged, user_path

if TYPE_CHECKING:
    import pandas as pd

_SUFFIXES = (".csv.zst", ".csv")
_FEWEST = 10
"""Texts of a class: fewer cannot be split into some to learn from and some to test on."""


@dataclass(frozen=True)
class Task:
    """Texts of two classes, as many of the one as of the other."""

    name: str
    prompts: tuple[str, ...]
    labels: tuple[bool, ...]
    classes: tuple[str, str]
    """The targets that the labels False and True stand for."""

    seed: int
    """Of the draw of its texts."""

    @property
    def sha256(self) -> str:
        """Of its texts and labels."""
        return hashlib.sha256(json.dumps([self.prompts, self.labels]).encode()).hexdigest()


def read_tasks(
    folder: str | Path,
    names: Collection[str] | None = None,
    *,
    max_length: float | None = None,
    n_texts: int = 500,
    seed: int = 0,
) -> list[Task]:
    """Read probing tasks from a folder, in the order of their names.

    A task is a file with exactly two targets and at least 10 distinct texts of each; other files
    are skipped. A text counts once, and not at all if it has both targets.

    Args:
        folder: holds .csv or .csv.zst files (the latter need `sparse_but_wrong[probing]`) with the
            columns `prompt` and `target`.
        names: of the tasks to read: file names without these endings. By default all.
        max_length: skip tasks whose median text is longer, in characters.
        n_texts: texts of a task at most, half of them of either class, drawn at random.
        seed: of the draw. What is drawn of a task does not depend on which others are read.
    Raises:
        OSError: there is no such folder.
        ValueError: a damaged file or one without these columns (the message names it), or no task,
            also of a name that is given.
    """
    if n_texts < 2 * _FEWEST:
        raise ValueError(f"n_texts must be at least {2 * _FEWEST}, but is {n_texts}.")
    tasks = []
    for name, file in _files(user_path(folder), names).items():
        texts = _read(file)
        if max_length is not None and texts["prompt"].str.len().median() > max_length:
            continue
        rows = {str(target): of for target, of in texts.groupby("target").indices.items()}
        n_each = min(map(len, rows.values()), default=0)
        if len(rows) != 2 or n_each < _FEWEST:
            continue
        draw = np.random.default_rng(derive_seed(seed, "task", name))
        n_each = min(n_each, n_texts // 2)
        drawn = texts.iloc[np.sort([draw.permutation(of)[:n_each] for of in rows.values()], None)]
        no, yes = rows
        labels = (drawn["target"] == yes).tolist()
        tasks.append(Task(name, tuple(drawn["prompt"]), tuple(labels), (no, yes), seed))
    missing = sorted(set(names or ()) - {task.name for task in tasks})
    if missing or not tasks:
        limit = "" if max_length is None else f" and a median of {max_length:g} characters at most"
        raise ValueError(
            f"{folder} has no task{''.join(f' {name!r}' for name in missing)}: no file of two "
            f"targets with at least {_FEWEST} distinct texts of each{limit}."
        )
    return tasks


def _files(folder: Path, names: Collection[str] | None) -> dict[str, Path]:
    if not folder.is_dir():
        raise NotADirectoryError(f"there is no folder {folder} with probing tasks.")
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        suffix = next((end for end in _SUFFIXES if file.name.endswith(end)), None)
        name = file.name.removesuffix(suffix or "")
        if suffix is None or (names is not None and name not in names):
            continue
        if name in files:
            raise ValueError(f"{files[name]} and {file} are of one name; keep one of them.")
        files[name] = file
    return files


def _read(file: Path) -> pd.DataFrame:
    """The distinct texts of a file that have one target, and that target, as text."""
    import pandas as pd

    content = file.read_bytes()
    if file.suffix == ".zst" and importlib.util.find_spec("zstandard") is None:
        raise ValueError(f"{file} needs zstandard; install `sparse_but_wrong[probing]`.")
    try:
        # As text: "None" or "NA" is a prompt like any other.
        text = (_decompressed(content) if file.suffix == ".zst" else content).decode()
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except ValueError as error:
        raise damaged(file, error) from error
    if not {"prompt", "target"} <= set(table.columns):
        there = ", ".join(table.columns)
        raise ValueError(f"{file} lacks the columns prompt and target of a task; it has {there}.")
    has_both = (table["prompt"].str.strip() != "") & (table["target"] != "")
    texts = table.loc[has_both, ["prompt", "target"]].drop_duplicates()
    return texts.drop_duplicates("prompt", keep=False)


def _decompressed(content: bytes) -> bytes:
    import zstandard

    text = b""
    while content:
        # Not a stream, which would take a file that was cut off for a short one.
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            text += frame.decompress(content)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
        if not frame.eof:
            raise ValueError("it ends too early")
        content = frame.unused_data
    return text
