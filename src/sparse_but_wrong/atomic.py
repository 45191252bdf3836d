"""Files and folders that appear whole or not at all, and folders that one process holds."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = ".unfinished-"
_FULL = (errno.ENOSPC, errno.EDQUOT)
LOCK = ".lock"
"""The file in a folder by which a process holds it."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, replacing one that is there; a missing folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a rename is atomic only within one file system; with the same
    # suffix, because some readers go by it.
    temporary = path.parent / f"{_PREFIX}{uuid.uuid4().hex}{path.suffix}"
    try:
        temporary.write_bytes(content)
        # Or, after a power cut, the name could be there without the content.
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _unfinished(place: Path) -> Iterator[Path]:
    """An unfinished folder in a place, removed at the end if it is still there."""
    unfinished = place / f"{_PREFIX}{uuid.uuid4().hex}"
    unfinished.mkdir()
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name only once the block has ended without an error.

    Raises as `check_free`.
    """
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _unfinished(folder.parent) as unfinished:
        yield unfinished
        _sync(*unfinished.rglob("*"), unfinished)
        try:
            unfinished.rename(folder)
        except OSError:
            check_free(folder)  # somebody else may have written there meanwhile
            raise
        _sync(folder.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove, at any depth, what a killed process left half-written in a folder."""
    for leftover in folder.rglob(f"{_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def is_free(folder: Path) -> bool:
    """Whether a folder could be written: it does not exist, or holds nothing of anybody's.

    The lock and what a killed process left half-written are nobody's.
    """
    if not folder.is_dir():
        return not folder.exists()
    return all(child.name == LOCK or child.name.startswith(_PREFIX) for child in folder.iterdir())


def nearest(folder: Path) -> Path:
    """The path itself if it is there, else its nearest parent that is."""
    places = (folder, *folder.absolute().parents)
    return next(place for place in places if place.is_symlink() or place.exists())


def check_free(folder: Path, instead: str = "choose a new folder or remove that one first") -> None:
    """Raise FileExistsError for a folder that holds anything, or an error of `check_writable`.

    Args:
        instead: what to do about one that holds something, for the message.
    """
    check_writable(folder)
    if not is_free(folder):
        raise FileExistsError(f"{folder} is not empty, and nothing is overwritten; {instead}.")


def check_writable(folder: Path) -> None:
    """Raise an OSError for a folder that cannot be made or written to."""
    there = nearest(folder)
    if not there.is_dir():
        kind = "a file" if there.exists() else "a link that leads nowhere"
        raise NotADirectoryError(f"{there} is {kind}, so {folder} cannot be a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{there} cannot be written to; choose another folder.")


def make_free_folder(folder: Path) -> None:
    """Make a folder for results, with its parents, or check that the one there is free."""
    check_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except OSError as error:
        reason = error.strerror or error
        says = f"{folder} cannot be written to ({reason}); choose another folder."
        raise type(error)(says) from error


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Hold a folder for results from before they are computed until they are in it.

    What cannot be written to is refused before the work, and nobody else gets it meanwhile. If the
    block fails the folder is as it was.

    Yields:
        a folder within it to fill; its content moves up once the block has ended without an error,
        each file or folder whole.
    Raises:
        OSError: as `make_free_folder`.
        ValueError: another process is at work in it.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        make_free_folder(folder)
        with locked(folder):
            remove_leftovers(folder)
            try:
                with _unfinished(folder) as unfinished:
                    yield unfinished
                    _sync(*unfinished.rglob("*"))
                    for child in sorted(unfinished.iterdir()):
                        child.rename(folder / child.name)
                    _sync(folder)
            finally:
                (folder / LOCK).unlink(missing_ok=True)
    finally:
        for place in new:  # from the folder upwards, as far as they are still empty
            with suppress(OSError):
                place.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, until this process ends at the latest; ValueError if another does."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another process is working in {folder}; wait for it or choose another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def full_disk_named(folder: Path, advice: str) -> Iterator[None]:
    """Turn the error of a full disk into one that names it; others pass as they are.

    Args:
        folder: the place that is written to.
        advice: what is kept and what to do, in sentences.
    """
    try:
        yield
    except Exception as error:
        # safetensors has an error of its own, which gives the number in its text alone.
        in_text = any(f"(os error {number})" in str(error) for number in _FULL)
        if not in_text and getattr(error, "errno", None) not in _FULL:
            raise
        raise OSError(f"the disk of {folder} is full. {advice}") from error


def _sync(*places: Path) -> None:
    """Have the disk hold what was written to files, or the names in folders."""
    if os.name == "nt":  # where neither folders nor files that are only read can be synced
        return
    for place in places:
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
