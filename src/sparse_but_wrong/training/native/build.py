"""Compiling the loops once per machine, and finding them again."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# What this machine's processor can do; compilers differ in how they want to be asked.
_FOR_THIS_MACHINE = (("-march=native",), ("-mcpu=native",), ())


class CannotBuildError(RuntimeError):
    """There is no compiler, or it does not compile the loops."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled loops, built if need be; None, said once, where they cannot be built."""
    try:
        return ctypes.CDLL(str(_built()))
    except (CannotBuildError, OSError) as error:
        logger.warning(
            "the compiled training loops are not to be had (%s). Training runs on PyTorch's own "
            "operations: to the same end, several times slower. A C++ compiler (g++ or clang++, or "
            "one named in CXX) mends it.",
            error,
        )
        return None


def _built() -> Path:
    compiler = find_compiler()
    source = _SOURCE.read_bytes()
    machine, target = _target(compiler)
    key = hashlib.sha256(source + repr((_FLAGS, machine)).encode() + target).hexdigest()[:20]
    folder = _cache_folder()
    built = folder / f"kernels-{key}.so"
    if not built.exists():
        # Under a name of its own, then renamed: several processes may build at the same time.
        with tempfile.TemporaryDirectory(dir=folder) as work:
            fresh = Path(work) / "kernels.so"
            build(compiler, machine, fresh)
            fresh.replace(built)
    return built


def build(compiler: tuple[str, ...], machine_flags: tuple[str, ...], to: Path) -> None:
    """Compile the loops.

    Args:
        compiler: the command of a C++ compiler.
        machine_flags: for which processor.
        to: the shared library to write.
    Raises:
        CannotBuildError: the compiler cannot be run, or fails; the message is its own.
    """
    _run([*compiler, *_FLAGS, *machine_flags, str(_SOURCE), "-o", str(to)])


def find_compiler() -> tuple[str, ...]:
    """The command of a C++ compiler: what CXX says, or else the first of the usual ones.

    Raises:
        CannotBuildError: there is none, or not the one that CXX names.
    """
    if chosen := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(chosen[0]) is None:
            raise CannotBuildError(f"CXX names {chosen[0]}, which was not found")
        return tuple(chosen)
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return (path,)
    raise CannotBuildError("no C++ compiler was found")


def _target(compiler: tuple[str, ...]) -> tuple[tuple[str, ...], bytes]:
    """The flags for this machine, and all that the compiler then says of machine and itself.

    A home folder may be shared by machines that are not alike.
    """
    *attempts, last = _FOR_THIS_MACHINE
    for flags in attempts:
        try:
            return flags, _macros(compiler, flags)
        except CannotBuildError:  # this compiler wants to be asked in another way
            continue
    return last, _macros(compiler, last)


def _macros(compiler: tuple[str, ...], flags: tuple[str, ...]) -> bytes:
    return _run([*compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull])


def _cache_folder() -> Path:
    from platformdirs import user_cache_path

    folder = user_cache_path("sparse_but_wrong", appauthor=False)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise CannotBuildError(f"{folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise CannotBuildError(f"{folder} cannot be written to")
    return folder


def _run(command: list[str]) -> bytes:
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=300)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise CannotBuildError(
            f"{command[0]} failed: {said[0] if said else f'exit status {error.returncode}'}"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuildError(f"{command[0]} could not be run: {error}") from error
    return done.stdout
