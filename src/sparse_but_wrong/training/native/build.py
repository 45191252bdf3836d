"""Compiling the loops once per machine, and finding them again.

They are kept in the user's cache, and what lies there is code that will run: it is loaded only
where nobody else could have put it, and only if it is what the compiler wrote.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from sparse_but_wrong.untrusted import sha256

# Not a child of the training's logger: a search keeps that quiet, and this concerns it, too.
logger = logging.getLogger("sparse_but_wrong.native")

Flags = tuple[str, ...]

_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# What this machine's processor can do; compilers differ in how they want to be asked.
_FOR_THIS_MACHINE = (("-march=native",), ("-mcpu=native",))
_TIMEOUT = 300.0
# How old what is swept must be, in seconds: folders of compilations that were killed (one that is
# running is younger than its timeout), and libraries, of which other versions and other machines
# that share the home folder may use some.
_SWEPT = {"tmp*": 12 * _TIMEOUT, "kernels-*": 30 * 86400.0}


class CannotBuildError(RuntimeError):
    """There is no compiler, or it does not compile the loops."""


@functools.cache
def library(declarations: str) -> ctypes.CDLL | None:
    """The compiled loops, built if need be; None, said once, where they cannot be had.

    `declarations` of what they share with the caller come before their source.
    """
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as private:
            return ctypes.CDLL(str(_built(source_of(declarations), Path(private))))
    except (CannotBuildError, OSError) as error:
        say_without(error)
        return None


def say_without(reason: Exception) -> None:
    """Tell the user why training does without the compiled loops."""
    logger.warning(
        "Could not use the compiled training step (%s); using PyTorch instead (same results, about "
        "3x slower).",
        reason,
    )


def source_of(declarations: str) -> bytes:
    """What is compiled; messages count the lines of kernels.cpp."""
    return f'{declarations}#line 1 "kernels.cpp"\n'.encode() + _SOURCE.read_bytes()


def _built(source: bytes, private: Path) -> Path:
    """The library as it is kept, or else compiled: to be kept, or in a private folder."""
    from tqdm import tqdm

    compiler = find_compiler()
    machine, target = _target(compiler)
    key = hashlib.sha256(source + repr((_FLAGS, machine)).encode() + target).hexdigest()[:20]

    def name(file: Path) -> str:
        """What it was made from, and what it holds."""
        return f"kernels-{key}-{sha256(file)[:20]}.so"

    where = "once for this machine"
    try:
        folder = _cache_folder()
        _sweep(folder)
        for kept in folder.glob(f"kernels-{key}-*.so"):
            is_safe = kept.is_file() and _why_unsafe(kept.lstat()) is None
            if is_safe and kept.name == name(kept):
                return kept
            where = f"again, because {kept} was damaged or could have been changed by others"
            _remove(kept)
    except OSError as error:
        folder = private
        where = f"for this process alone, because it cannot be kept: {error}"
    # Not a warning, as nothing is wrong; and a bar that is being drawn is not to be cut in two.
    tqdm.write(f"Compiling the training step {where} …", file=sys.stderr)
    # Under a name of its own, then renamed: several processes may build at the same time.
    with tempfile.TemporaryDirectory(dir=folder) as work:
        fresh = Path(work) / "kernels.so"
        build(source, compiler, machine, fresh)
        fresh.chmod(0o700)  # whatever the umask, or it would not be trusted
        return fresh.replace(folder / name(fresh))


def build(source: bytes, compiler: Flags, machine_flags: Flags, to: Path) -> None:
    """Compile the loops for a processor; a CannotBuildError has the compiler's own message."""
    _run([*compiler, *_FLAGS, *machine_flags, "-x", "c++", "-", "-o", str(to)], source)


def find_compiler() -> Flags:
    """The command of a C++ compiler: what CXX says, or else the first of the usual ones."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(chosen[0]) is None:
            raise CannotBuildError(f"CXX names {chosen[0]}, which was not found")
        return tuple(chosen)
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return (path,)
    raise CannotBuildError("no C++ compiler was found; install g++ or clang++, or name one in CXX")


def _target(compiler: Flags) -> tuple[Flags, bytes]:
    """The flags for this machine, and what the compiler then says of it: homes may be shared."""
    asks = [*compiler, "-dM", "-E", "-x", "c++", os.devnull]
    for flags in _FOR_THIS_MACHINE:
        with suppress(CannotBuildError):  # this compiler wants to be asked in another way
            return flags, _run([*asks, *flags])
    return (), _run(asks)


def _cache_folder() -> Path:
    """The folder in which the library is kept, made if need be.

    An OSError says where it cannot be, or where others could put something in its place.
    """
    from platformdirs import user_cache_path

    folder = user_cache_path("sparse_but_wrong", appauthor=False).resolve()
    for place in (*reversed(folder.parents), folder):
        place.mkdir(mode=0o700, exist_ok=True)
        if (why := _why_unsafe(place.stat(), may_be_shared=place != folder)) is not None:
            raise PermissionError(
                f"{place} {why}; run chmod go-w on it if it is yours, or set XDG_CACHE_HOME to a "
                "folder of your own"
            )
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to")
    return folder


def _why_unsafe(found: os.stat_result, *, may_be_shared: bool = False) -> str | None:
    """Why others than this user and root could decide what lies in a place, in words.

    It `may_be_shared` like /tmp, where nobody touches what is another's.
    """
    if not hasattr(os, "geteuid"):  # Windows, where a user's cache is the user's alone
        return None
    if found.st_uid not in (0, os.geteuid()):
        return "belongs to another user"
    is_shared = may_be_shared and bool(found.st_mode & stat.S_ISVTX)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not is_shared:
        return "can be written to by others"
    return None


def _sweep(folder: Path) -> None:
    """Remove what killed compilations and old versions have left behind."""
    for pattern, age in _SWEPT.items():
        for old in folder.glob(pattern):
            with suppress(OSError):  # another process has just been done with it, or sweeps as well
                if old.lstat().st_mtime < time.time() - age:
                    _remove(old)


def _remove(place: Path) -> None:
    shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()


def _run(command: list[str], given: bytes = b"") -> bytes:
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, check=True, timeout=_TIMEOUT
        )
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise CannotBuildError(
            f"{command[0]} failed: {said[0] if said else f'exit status {error.returncode}'}"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuildError(f"{command[0]} could not be run: {error}") from error
    return done.stdout
