"""Building the compiled loops, and doing without them."""

from __future__ import annotations

import ctypes
import logging
import platform
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE

from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.native import bindings, build
from tests.training import oracle
from tests.training.native.stacks import STACKS


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache folder with nothing in it, and nothing remembered from earlier."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.library.cache_clear()
    bindings.kernels.cache_clear()
    yield tmp_path / "sparse_but_wrong"
    build.library.cache_clear()
    bindings.kernels.cache_clear()


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


def test_it_is_built_once_and_found_again(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler_or_skip()
    assert build.library() is not None
    (built,) = fresh.iterdir()
    assert built.name.startswith("kernels-")
    before = built.stat().st_mtime_ns

    build.library.cache_clear()
    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("it was built again"))
    assert build.library() is not None
    assert built.stat().st_mtime_ns == before


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
    assert "A C++ compiler (g++ or clang++" in said[0]


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


def test_a_cache_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler_or_skip()
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))
    build.library.cache_clear()
    try:
        assert build.library() is None
    finally:
        build.library.cache_clear()
    assert str(in_the_way) in caplog.text


# Other processors run other branches of the source: half as wide, or a quarter.
@pytest.mark.parametrize(
    "flags", [("-march=native", "-mno-avx512f"), ("-march=x86-64",)], ids=" ".join
)
def test_loops_for_older_processors_end_where_the_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("these flags are for x86-64 processors")
    library = tmp_path / "kernels.so"
    build.build(compiler_or_skip(), flags, library)
    older = bindings.Kernels(ctypes.CDLL(str(library)))
    assert older.vector_floats in (4, 8)

    def trained(compiled: bool) -> list[TrainingSAE[Any]]:
        saes = [sae for make in STACKS.values() for sae in make()]
        options = oracle.options_for(40, dead_feature_window=5, compiled=compiled)
        train_saes(saes, iter(oracle.recorded_batches(50)), options)
        return saes

    monkeypatch.setattr(bindings, "kernels", lambda: older)
    for mine, wanted in zip(trained(True), trained(False), strict=True):
        for name, value in oracle.parameters(wanted).items():
            torch.testing.assert_close(
                oracle.parameters(mine)[name], value, atol=1e-4, rtol=1e-4, msg=name
            )
