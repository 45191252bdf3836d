"""A whole run of the tiny experiment, made once, and copies of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sparse_but_wrong.experiments.analysis import Run
from sparse_but_wrong.runs.folder import RunFolder
from tests.experiments import tiny


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register(monkeypatch)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole run, to compare with and to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.register(patch)
        return tiny.finished(tiny.TINY, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def copy(whole: Run, tmp_path: Path) -> RunFolder:
    shutil.copytree(whole.folder.path, tmp_path / "run")
    return RunFolder.open(tmp_path / "run")
