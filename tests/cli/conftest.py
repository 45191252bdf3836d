"""`sbw` as a shell runs it, in a folder of its own."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from matplotlib.figure import Figure

from sparse_but_wrong.cli.main import main
from tests.experiments import tiny


class Done(NamedTuple):
    """What a command printed."""

    out: str
    err: str


class Sbw:
    """Runs commands in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, line: str, code: int = 0) -> Done:
        """Run `sbw` with a line of arguments, which has to end with an exit code."""
        self._monkeypatch.setattr(sys, "argv", ["sbw", *shlex.split(line)])
        ended: object = 0
        try:
            main()
        except SystemExit as finished:
            ended = finished.code or 0
        printed = self._capsys.readouterr()
        done = Done(printed.out, printed.err)
        assert ended == code, done
        return done

    def refuses(self, line: str, *messages: str) -> None:
        """A user's error: one line with all messages, and nothing is left behind."""
        before = sorted(Path().rglob("*"))
        said = self(line, code=2).err.splitlines()
        errors = [one for one in said if one.startswith("sbw: error: ")]
        assert said[-1:] == errors, said
        for message in messages:
            assert re.search(message, errors[0]), said
        assert sorted(Path().rglob("*")) == before


@pytest.fixture
def sbw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Sbw]:
    monkeypatch.chdir(tmp_path)
    tiny.register(monkeypatch)
    n_threads = torch.get_num_threads()
    yield Sbw(monkeypatch, capsys)
    torch.set_num_threads(n_threads)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing of an evaluation or a recommendation: that takes longer than all else."""
    for name in ("evaluation.plot_evaluations", "recommendation.plot_recommendation"):
        monkeypatch.setattr(f"sparse_but_wrong.report.{name}", lambda _: Figure(figsize=(1, 1)))
