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
        for place in (*unfinished.rglob("*"), unfinished):
            _sync(place)
        try:
            unfinished.rename(folder)
        except OSError as error:
            # Somebody else may have written there since the check above.
            if folder.exists():
                raise FileExistsError(refusal) from error
            raise
        _sync(folder.parent)
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
    """Whether a folder could be written: it does not exist, or holds nothing of anybody's.

    The lock and what a killed process left half-written are nobody's.
    """
    if not folder.is_dir():
        return not folder.exists()
    return all(child.name == LOCK or child.name.startswith(_PREFIX) for child in folder.iterdir())


def make_free_folder(folder: Path) -> None:
    """Make a folder for results, with its parents, or see that the one there is free.

    Raises:
        FileExistsError: it holds something.
        NotADirectoryError: a file, or a link that leads nowhere, stands where it or a parent should
            be.
        OSError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        place = next(p for p in (folder, *folder.parents) if p.is_symlink() or p.exists())
        raise NotADirectoryError(
            f"{place} is {'a link that leads nowhere' if not place.exists() else 'a file'}, so "
            f"{folder} cannot be a folder; choose another."
        ) from error
    except OSError as error:
        raise _not_writable(folder, error) from error
    if not is_free(folder):
        raise FileExistsError(
            f"{folder} is not empty, and nothing is overwritten; choose a new folder."
        )
    try:
        (folder / LOCK).touch()
    except OSError as error:
        raise _not_writable(folder, error) from error


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Hold a folder for results from before they are worked out until they are in it.

    What cannot be written to is refused before the work and not after it, and nobody else gets the
    folder meanwhile.

    Args:
        folder: must not exist yet, or be free. Where the block fails it is as it was.
    Yields:
        a folder within it to fill; what is in it moves up once the block has ended without an
        error, each file or folder whole.
    Raises:
        OSError: as `make_free_folder`.
        ValueError: another process is at work in it.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        make_free_folder(folder)
        with locked(folder):
            remove_leftovers(folder)
            unfinished = folder / f"{_PREFIX}{uuid.uuid4().hex}"
            unfinished.mkdir()
            try:
                yield unfinished
                for place in unfinished.rglob("*"):
                    _sync(place)
                for child in sorted(unfinished.iterdir()):
                    child.rename(folder / child.name)
                _sync(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
                (folder / LOCK).unlink(missing_ok=True)
    finally:
        for place in new:  # from the folder upwards, as far as they are still empty
            with suppress(OSError):
                place.rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a folder; ends with the process at the latest.

    Raises:
        ValueError: another process is at work in it.
    """
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
    """Say which disk is full, what is kept and how to go on, where writing to it fails for that.

    Args:
        folder: where is written to.
        advice: what is kept and what to do, as one or more sentences.
    Raises:
        OSError: the disk is full; every other error passes as it is.
    """
    try:
        yield
    except Exception as error:
        # safetensors has an error of its own, which gives the number in its text alone.
        if not (
            getattr(error, "errno", None) in _FULL
            or any(f"(os error {number})" in str(error) for number in _FULL)
        ):
            raise
        raise OSError(f"the disk of {folder} is full. {advice}") from error


def _not_writable(folder: Path, error: OSError) -> OSError:
    reason = error.strerror or error
    return type(error)(f"{folder} cannot be written to ({reason}); choose another folder.")


def _sync(place: Path) -> None:
    """Have the disk hold what was written to a file, or the names in a folder."""
    if os.name == "nt":  # where neither folders nor files that are only read can be synced
        return
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
