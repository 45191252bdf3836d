"""The README: its example runs as it stands, its commands exist, its files are there."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

from sparse_but_wrong.cli.main import cli
from sparse_but_wrong.l0 import options, sweep
from sparse_but_wrong.l0.find import FindOptions
from tests.activations.tiny_model import D_IN, make_tiny_model, write_text
from tests.experiments import tiny
from tests.test_language_model import SPEC as SWEEP_ON_ACTIVATIONS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def test_the_example_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = blocks("python")
    assert len(code.strip().splitlines()) <= 18
    with torch.random.fork_rng(devices=[]):
        exec(compile(code, "README.md", "exec"), {})
    rows = re.findall(r"L0 (\S+), s_5 (\S+), MCC (\d+\.\d+)", capsys.readouterr().out)
    assert len(rows) == 3
    l0s = [float(row[0]) for row in rows]
    mccs = [float(row[2]) for row in rows]
    # What the example is there to show: the first SAE is far too dense and wrong, the last is not.
    assert l0s[0] > 6
    assert abs(l0s[2] - 4) < 1.5
    assert mccs[2] > mccs[0] + 0.15


def test_the_sweep_runs_as_it_stands() -> None:
    _, code = blocks("python")
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        exec(compile(code, "README.md", "exec"), names)
    log, kept = names["log"], names["kept"]
    assert [sae.trained_by for sae in log.saes] == ["engine"] * 5
    assert sorted((snapshot.step, snapshot.index) for snapshot in kept) == [
        (step, index) for step in (100, 200) for index in range(5)
    ]
    assert [log.saes[i].columns["k"][-1] for i in range(4)] == [2.5, 4, 6, 4]
    assert log.saes[3].columns["k"][0] == 8
    assert log.saes[0].columns["l0"][-1] == pytest.approx(2.5)


def test_make_commands_exist() -> None:
    commands = re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)
    assert {"run", "paper", "real", "test", "bench", "notebook"} <= set(commands)
    for target in commands:
        # A dry run fails for a target that is not there.
        found = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stderr


def test_sbw_commands_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The experiments by their names, but tiny: tested is that the commands do what they say.
    for name in ("jumprelu", "small"):
        tiny.register(monkeypatch, name=name)
    # The searches too: enough that every part of one runs.
    small = functools.partial(
        FindOptions,
        coarse_steps=60,
        fine_steps=60,
        n_coarse=3,
        fine_factors=(0.7, 1.0, 1.4),
        evaluation_samples=4_096,
        learning_batches=20,
    )
    monkeypatch.setattr(options, "FindOptions", small)
    measure = functools.partial(sweep.measure_sweep, evaluation_samples=4_096, learning_batches=20)
    monkeypatch.setattr(sweep, "measure_sweep", measure)
    monkeypatch.chdir(tmp_path)
    make_tiny_model(tmp_path / "my_model")
    write_text(tmp_path / "plays", n_words=2_000)
    JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=48)).save_model(tmp_path / "my_sae")
    (tmp_path / "sweep.yaml").write_text(SWEEP_ON_ACTIVATIONS)
    lines = [
        line.split("#")[0].strip()
        for block in blocks("")
        for line in block.splitlines()
        if line.startswith("sbw ")
    ]
    assert len(lines) >= 4
    for line in lines:
        command, _, file = line.partition(" > ")
        result = CliRunner().invoke(cli, shlex.split(command)[1:], catch_exceptions=False)
        assert result.exit_code == 0, (line, result.output)
        if file:
            Path(file).write_text(result.output)


def test_files_it_points_to_are_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(links) >= 3
    for link in links:
        assert (ROOT / link).exists(), link


def test_no_placeholder_is_left() -> None:
    assert re.findall(r"^[A-Z_]{3,}$|TODO|FIXME|XXX", README, re.MULTILINE) == []


def test_the_python_of_the_tests_is_one_it_promises() -> None:
    (minimum,) = re.findall(r"Python ≥ 3\.(\d+)", README)
    assert sys.version_info >= (3, int(minimum))
