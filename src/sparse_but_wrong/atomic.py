"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = ".unfinished-"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, replacing one that is there; a missing folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system; with the same
    # suffix, because some readers go by it.
    temporary = path.parent / f"{_PREFIX}{uuid.uuid4().hex}{path.suffix}"
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name only once the block has ended without an error.

    Args:
        folder: must not exist yet, or be empty. Parents are created.
    Raises:
        FileExistsError: the folder holds something.
    """
    refusal = (
        f"{folder} already holds something, and nothing is overwritten; choose a new folder or "
        "remove that one first."
    )
    if not is_free(folder):
        raise FileExistsError(refusal)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f"{_PREFIX}{uuid.uuid4().hex}"
    unfinished.mkdir()
    try:
        yield unfinished
        try:
            unfinished.rename(folder)
        except OSError as error:
            # Somebody else may have written there since the check above.
            if not is_free(folder):
                raise FileExistsError(refusal) from error
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove, at any depth, what a killed process left half-written in a folder."""
    for leftover in folder.rglob(f"{_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def is_free(folder: Path) -> bool:
    """Whether a folder could be written: it does not exist, or is an empty folder."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
