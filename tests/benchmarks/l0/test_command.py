"""`python -m benchmarks.l0` as a user types it; the searches themselves are left out."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from benchmarks.l0 import __main__ as command
from benchmarks.l0.run import Row
from sparse_but_wrong.l0.find import FindOptions
from tests.benchmarks.l0.test_summary import row


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command.bench, arguments)


def test_two_benchmarks_do_not_lose_each_others_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[str] = []

    def answer(worlds: list[Any], seed: int, options: FindOptions) -> Iterator[Row]:
        del seed, options
        refused.append(str(run("blocks").exception))
        yield from (row(world.name, 10.05) for world in worlds)

    monkeypatch.setattr(command, "run_benchmark", answer)
    assert run("constant-small").exit_code == 0
    assert "another process is working in runs/bench-l0" in refused[0]


def test_a_row_that_finds_the_disk_full_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(command, "run_benchmark", lambda *_: iter([row("blocks", 10.05)]))
    monkeypatch.setattr(command, "append_row", full)
    result = run("blocks")
    assert "blocks: true L0" in result.output
    assert re.search(r"disk of runs/bench-l0 is full.* kept", str(result.exception))


def test_the_benchmark_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def answer(worlds: list[Any], seed: int, options: FindOptions) -> Iterator[Row]:
        assert seed == 0
        assert not options.progress
        for world in worlds:
            done.append(world.name)
            yield row(world.name, 10.05)

    monkeypatch.setattr(command, "run_benchmark", answer)
    first = run("constant-small")
    assert first.exit_code == 0, first.output
    assert "constant-small: true L0 10.00; 10.05" in first.output
    assert "within 5 %: 100.0% (aim ≥ 90.0%: met)" in first.output
    second = run("constant-small", "blocks", "blocks")
    assert second.exit_code == 0
    assert "1 of the worlds are in runs/bench-l0/seed_0.csv already" in second.output
    assert done == ["constant-small", "blocks"]
    assert "worlds with d_sae ≥ features: 2" in second.output
    assert Path("runs/bench-l0/seed_0.csv").read_text().count("\n") == 3
    unknown = run("atlantis")
    assert "there is no world 'atlantis'" in str(unknown.exception)
