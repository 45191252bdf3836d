"""Building the compiled loops, and doing without them."""

from __future__ import annotations

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


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache folder with nothing in it, and nothing remembered from earlier."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.library.cache_clear()
    compiled_step.kernels.cache_clear()
    yield tmp_path / "sparse_but_wrong"
    build.library.cache_clear()
    compiled_step.kernels.cache_clear()


def compiler_or_skip() -> tuple[str, ...]:
    try:
        return build.find_compiler()
    except build.CannotBuildError:
        pytest.skip("this machine has no C++ compiler, so nothing can be built")


def a_compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library as the compiler writes it."""
    file = tmp_path_factory.mktemp("compiled") / "kernels.so"
    build.build(compiler_or_skip(), (), file)
    return file


@pytest.fixture
def kept(
    fresh: Path,
    compiled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Path]:
    """The library in the cache, put there by a compiler that copies it in no time."""
    script = (
        'case "$*" in *-dM*) echo macros; exit 0;; esac\n'
        f'echo x >> {tmp_path / "builds"}\nfor last; do :; done; cp {compiled} "$last"'
    )
    monkeypatch.setenv("CXX", a_compiler(tmp_path, script))
    assert build.library() is not None
    (file,) = fresh.iterdir()
    capfd.readouterr()
    again()
    (tmp_path / "builds").unlink()
    yield file
    assert not list(fresh.glob("tmp*"))


def again() -> None:
    """Forget the library, as a new process would have."""
    build.library.cache_clear()
    compiled_step.kernels.cache_clear()


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
def test_a_damaged_library_is_not_loaded_but_built_again(
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
    assert found.vector_floats in (4, 8, 16)
    assert kept.read_bytes() == whole
    assert n_builds(tmp_path) == 1
    assert str(kept) in capfd.readouterr().err

    again()
    assert compiled_step.kernels() is not None
    assert n_builds(tmp_path) == 1
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

    def load(path: str) -> ctypes.CDLL:
        loaded.append(path)
        return real(path)

    real = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert build.library() is not None
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
    folder = kept.parent
    old = time.time() - 40 * 86400
    for name, is_old in (("tmpkilled", True), ("tmprunning", False)):
        (folder / name).mkdir()
        (folder / name / "kernels.so").write_bytes(b"half")
        if is_old:
            os.utime(folder / name, (old, old))
    for name in ("kernels-stale.so", "kernels-other.so"):
        (folder / name).write_bytes(b"of another version")
    os.utime(folder / "kernels-stale.so", (old, old))
    assert build.library() is not None
    left = sorted(path.name for path in folder.iterdir())
    assert left == sorted([kept.name, "kernels-other.so", "tmprunning"])
    shutil.rmtree(folder / "tmprunning")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("int nothing;", "layout"),
        ('extern "C" const char* layout() { return "Config.policy 8\\n"; }', "disagree"),
    ],
)
@pytest.mark.usefixtures("fresh")
def test_a_library_that_is_not_as_expected_leaves_training_to_pytorch(
    source: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = shlex.join(compiler_or_skip())
    (tmp_path / "other.cpp").write_text(source)
    script = (
        'case "$*" in *-dM*) echo macros; exit 0;; esac\n'
        f'for last; do :; done; exec {real} -shared -fPIC {tmp_path / "other.cpp"} -o "$last"'
    )
    monkeypatch.setenv("CXX", a_compiler(tmp_path, script))
    sae = oracle.make_sae(0)
    start = sae.W_dec.detach().clone()
    with quiet_training():  # a search says nothing of single SAEs, but this concerns them all
        train_saes([sae], iter(oracle.recorded_batches(5)), oracle.options_for(5))
    assert not torch.equal(sae.W_dec, start)
    (line,) = caplog.messages
    assert said in line
    assert "PyTorch" in line


def test_it_is_built_once_and_found_again(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    compiler_or_skip()
    assert build.library() is not None
    assert "Compiling the training step once" in capfd.readouterr().err
    (built,) = fresh.iterdir()
    assert built.name.startswith("kernels-")
    before = built.stat().st_mtime_ns

    build.library.cache_clear()
    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("it was built again"))
    assert build.library() is not None
    assert built.stat().st_mtime_ns == before
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_training_works_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    batches = oracle.recorded_batches(5)
    for seed in (0, 1):
        sae = oracle.make_sae(seed)
        start = sae.W_dec.detach().clone()
        train_saes([sae], iter(batches), oracle.options_for(5))
        assert not torch.equal(sae.W_dec, start)
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 1
    assert "no C++ compiler was found" in said[0]
    assert "g++ or clang++" in said[0]


def test_a_compiler_that_fails_leaves_nothing_behind(
    fresh: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # It knows its macros, and half-writes what it is to build before it fails.
    script = (
        'case "$*" in *-dM*) echo macros; exit 0;; esac\n'
        'for last; do :; done; echo half > "$last"\necho "internal error: no" >&2; exit 1'
    )
    monkeypatch.setenv("CXX", a_compiler(tmp_path, script))
    assert build.library() is None
    assert list(fresh.iterdir()) == []
    assert "internal error: no" in caplog.text


def test_a_compiler_that_does_not_know_the_machine_flags_is_asked_otherwise(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = compiler_or_skip()
    script = (
        f'case "$*" in *=native*) echo "unknown" >&2; exit 1;; esac\nexec {shlex.join(real)} "$@"'
    )
    monkeypatch.setenv("CXX", a_compiler(tmp_path, script))
    assert build.library() is not None
    assert len(list(fresh.iterdir())) == 1


@pytest.mark.usefixtures("kept")
def test_a_cache_that_cannot_be_made_is_named_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))
    assert build.library() is not None
    assert n_builds(tmp_path) == 1
    assert str(in_the_way) in capfd.readouterr().err
