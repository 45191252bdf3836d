"""Building the compiled loops, and doing without them."""

from __future__ import annotations

import copy
import ctypes
import logging
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sparse_but_wrong.l0.find import quiet_training
from sparse_but_wrong.training import compiled_step
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.native import build
from tests.training import oracle

SOURCE = build.source_of(compiled_step.DECLARATIONS)
KNOWS_ITS_MACROS = 'case "$*" in *-dM*) echo macros; exit 0;; esac\n'


def library() -> ctypes.CDLL | None:
    return build.library(compiled_step.DECLARATIONS)


def forget() -> None:
    """Forget the library, as a new process would have."""
    build.library.cache_clear()
    compiled_step.kernels.cache_clear()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache folder with nothing in it, and nothing remembered from earlier."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget()
    yield tmp_path / "sparse_but_wrong"
    forget()


@pytest.fixture
def set_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Make a script the compiler."""

    def set_to(script: str) -> None:
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))

    return set_to


def compiler_or_skip() -> tuple[str, ...]:
    try:
        return build.find_compiler()
    except build.CannotBuildError:
        pytest.skip("this machine has no C++ compiler, so nothing can be built")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library as the compiler writes it."""
    file = tmp_path_factory.mktemp("compiled") / "kernels.so"
    build.build(SOURCE, compiler_or_skip(), (), file)
    return file


@pytest.fixture
def kept(
    fresh: Path,
    compiled: Path,
    tmp_path: Path,
    set_compiler: Callable[[str], None],
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Path]:
    """The library in the cache, put there by a compiler that copies it in no time."""
    copies = f'for last; do :; done; cp {compiled} "$last"'
    set_compiler(f"{KNOWS_ITS_MACROS}echo x >> {tmp_path / 'builds'}\n{copies}")
    assert library() is not None
    (file,) = fresh.iterdir()
    assert file.name.startswith("kernels-")
    assert "Compiling the training step once" in capfd.readouterr().err
    forget()
    (tmp_path / "builds").unlink()
    yield file
    assert not list(fresh.glob("tmp*"))


def n_builds(tmp_path: Path) -> int:
    record = tmp_path / "builds"
    return len(record.read_text().split()) if record.exists() else 0


def flip(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flip, lambda _: b"", lambda content: content[: len(content) // 2]],
    ids=["flipped", "empty", "truncated"],
)
def test_it_is_built_once_and_found_again_but_not_if_damaged(
    kept: Path,
    damage: Callable[[bytes], bytes],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    whole = kept.read_bytes()
    kept.unlink()  # this process has it mapped
    kept.write_bytes(damage(whole))
    found = compiled_step.kernels()
    assert found is not None
    assert found.vector_floats() in (4, 8, 16)
    assert kept.read_bytes() == whole
    assert n_builds(tmp_path) == 1
    assert str(kept) in capfd.readouterr().err

    before = kept.stat().st_mtime_ns
    forget()
    assert compiled_step.kernels() is not None
    assert n_builds(tmp_path) == 1
    assert kept.stat().st_mtime_ns == before
    assert capfd.readouterr().err == ""


def open_to_others(place: Path) -> None:
    place.chmod(0o777)


def another_users(place: Path) -> None:
    os.chown(place, os.geteuid() + 12345, -1)


@pytest.mark.parametrize("make_unsafe", [open_to_others, another_users])
@pytest.mark.parametrize("which", ["file", "folder", "parent"])
def test_what_others_could_have_written_is_not_loaded(
    kept: Path,
    make_unsafe: Callable[[Path], None],
    which: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if make_unsafe is another_users and os.geteuid() != 0:
        # Only root can give files away; root in a user's folder is the same from the other side.
        monkeypatch.setattr(os, "geteuid", lambda: 0)
    else:
        make_unsafe({"file": kept, "folder": kept.parent, "parent": tmp_path}[which])
    before = kept.lstat().st_ino, list(kept.parent.iterdir())
    loaded: list[str] = []
    real = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda path: (loaded.append(path), real(path))[1])
    assert library() is not None
    assert n_builds(tmp_path) == 1
    said = capfd.readouterr().err
    if which == "file" and "cannot be kept" not in said:  # ours to replace: the folder is safe
        assert kept.lstat().st_ino != before[0]
    else:
        assert kept.parent not in Path(loaded[0]).parents
        assert not Path(loaded[0]).exists()  # it was this process's alone
        assert (kept.lstat().st_ino, list(kept.parent.iterdir())) == before
        assert "by others" in said or "another user" in said


def test_leftovers_are_swept_but_not_what_is_in_use(kept: Path) -> None:
    folder, old = kept.parent, time.time() - 40 * 86400
    for name, is_old in (("tmpkilled", True), ("tmprunning", False)):
        (folder / name).mkdir()
        (folder / name / "kernels.so").write_bytes(b"half")
        if is_old:
            os.utime(folder / name, (old, old))
    for name in ("kernels-stale.so", "kernels-other.so"):
        (folder / name).write_bytes(b"of another version")
    os.utime(folder / "kernels-stale.so", (old, old))
    assert library() is not None
    left = sorted(path.name for path in folder.iterdir())
    assert left == sorted([kept.name, "kernels-other.so", "tmprunning"])
    shutil.rmtree(folder / "tmprunning")


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("lacks", ["compiler", "function"])
def test_without_the_loops_pytorch_trains_and_one_line_says_so(
    lacks: str,
    tmp_path: Path,
    set_compiler: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if lacks == "compiler":
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CXX", raising=False)
        expected = ["no C++ compiler was found", "g++ or clang++"]
    else:
        real, other = shlex.join(compiler_or_skip()), tmp_path / "other.cpp"
        other.write_text("int nothing;")
        builds = f'for last; do :; done; exec {real} -shared -fPIC {other} -o "$last"'
        set_compiler(f"{KNOWS_ITS_MACROS}{builds}")
        expected = ["vector_floats"]
    for seed in (0, 1):
        sae = oracle.make_sae(seed)
        start = copy.deepcopy(sae)
        with quiet_training():  # a search says nothing of single SAEs, but this concerns them all
            train_saes([sae], oracle.Batches(), oracle.options_for(5))
        assert not torch.equal(sae.W_dec, start.W_dec)
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert all(part in line for part in [*expected, "PyTorch"])


def test_a_compiler_that_fails_leaves_nothing_behind(
    fresh: Path, set_compiler: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    # It half-writes what it is to build before it fails.
    fails = 'for last; do :; done; echo half > "$last"\necho "internal error: no" >&2; exit 1'
    set_compiler(f"{KNOWS_ITS_MACROS}{fails}")
    assert library() is None
    assert list(fresh.iterdir()) == []
    assert "internal error: no" in caplog.text


def test_a_compiler_that_does_not_know_the_machine_flags_is_asked_otherwise(
    fresh: Path, set_compiler: Callable[[str], None]
) -> None:
    real = shlex.join(compiler_or_skip())
    set_compiler(f'case "$*" in *=native*) echo "unknown" >&2; exit 1;; esac\nexec {real} "$@"')
    assert library() is not None
    assert len(list(fresh.iterdir())) == 1


@pytest.mark.usefixtures("kept")
def test_a_cache_that_cannot_be_made_is_named_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))
    assert library() is not None
    assert n_builds(tmp_path) == 1
    assert str(in_the_way) in capfd.readouterr().err
