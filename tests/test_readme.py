"""README and docs: commands and examples run as they stand, in order; files are there."""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

from sparse_but_wrong.activations.stored import open_activations
from sparse_but_wrong.cli.main import cli
from sparse_but_wrong.l0 import find, options, refine, sweep
from tests.activations.tiny_model import D_IN, make_tiny_model, write_tasks, write_text
from tests.experiments import tiny

ROOT = Path(__file__).resolve().parents[1]
SPEC = """
name: tiny-model
title: A sweep on a tiny language model
claim: none
world: {activations: acts}
analysis: activations
saes:
- {sae_id: k_2, architecture: batchtopk, factors: {k: 2},
   config: {d_sae: 64, k: 2, normalize_activations: expected_average_only_in}}
- {sae_id: k_8, architecture: batchtopk, factors: {k: 8},
   config: {d_sae: 64, k: 8, normalize_activations: expected_average_only_in}}
- {sae_id: k_24, architecture: batchtopk, factors: {k: 24},
   config: {d_sae: 64, k: 24, normalize_activations: expected_average_only_in}}
training: {total_training_samples: 64_000, train_batch_size_samples: 128, lr: 1e-3,
           n_batches_for_norm_estimate: 20, reinit_dead_every: 100}
evaluation_samples: 2_000
projection_n: [16, 24]
"""
PAGES = {path.stem: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and text."""
    text = PAGES[page].read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: a model, texts, an SAE, a spec."""
    folder = tmp_path_factory.mktemp("here")
    make_tiny_model(folder / "my_model")
    write_text(folder / "plays", n_words=2_000)
    write_tasks(folder / "tasks")
    JumpReLUSAE(JumpReLUSAEConfig(d_in=D_IN, d_sae=48)).save_model(folder / "my_sae")
    (folder / "sweep.yaml").write_text(SPEC)
    return folder


@pytest.fixture(scope="module")
def asked() -> set[str]:
    """Commands that only answer, and have on another page: once is enough."""
    return set()


@pytest.fixture
def run_page(here: Path, asked: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the blocks of a page, in order, in a folder of its own; gives all names they set."""
    # The experiments by their names, but tiny: tested is that the commands do what they say.
    for name in ("jumprelu", "small"):
        tiny.register(monkeypatch, name=name)
    # The searches too: enough that every part of one runs.
    few = {"evaluation_samples": 2_048, "learning_batches": 10}
    monkeypatch.setattr(sweep, "evaluate_sweep", functools.partial(sweep.evaluate_sweep, **few))
    monkeypatch.chdir(tmp_path)
    for path in here.iterdir():
        (tmp_path / path.name).symlink_to(path)

    def run(page: str) -> dict[str, Any]:
        steps = 60
        if page == "index":  # there an SAE is to come of it, as it does from 300 steps on
            steps = 400
        else:
            monkeypatch.setattr(refine, "_PRUNE_STEPS", 4)
            monkeypatch.setattr(refine, "_PRUNE_BATCHES", 1)
        small: Any = functools.partial(
            options.FindOptions,
            coarse_steps=steps,
            fine_steps=steps,
            n_coarse=3,
            fine_factors=(0.7, 1.0, 1.4),
            **few,
        )
        for module in (options, find):
            monkeypatch.setattr(module, "FindOptions", small)
        every_block = "".join(text for _, text in blocks(page))
        if "cache-activations" not in every_block:
            Path("acts").mkdir()
            # Features along a few axes: searches of dense or wide activations take long.
            shape = (2_000, D_IN if "my_sae" in every_block else 8)
            rng = np.random.default_rng(0)
            acts = (rng.random(shape) < 0.1) * rng.normal(1, 0.1, shape)
            np.save("acts/0.npy", acts.astype("f4"))
        of_page: dict[str, Any] = {}
        for language, text in blocks(page):
            assert language in ("", "python", "text"), "nothing runs it"
            if language == "python":
                names: dict[str, Any] = {}
                with torch.random.fork_rng(devices=[]):
                    exec(compile(text, str(PAGES[page]), "exec"), names)
                of_page |= names
            for line in text.splitlines() if language == "" else ():
                command, _, file = line.split("#")[0].strip().partition(" > ")
                if not command.startswith("sbw "):
                    # `make` has a test of its own, which also installs the package with pip.
                    assert command.startswith("make ") or command == "pip install .", line
                    continue
                if command in asked:
                    continue
                if command.startswith(("sbw find-l0", "sbw diagnose")) and "my_run" not in command:
                    asked.add(command)
                done = CliRunner().invoke(cli, shlex.split(command)[1:], catch_exceptions=False)
                assert done.exit_code == 0, (line, done.output)
                if file:
                    Path(file).write_text(done.output)
        return of_page

    return run


def test_the_readme_runs_as_it_stands(run_page: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run_page("README")
    rows = re.findall(r"L0 (\S+), s_5 (\S+), MCC (\d+\.\d+)", capsys.readouterr().out)
    l0s, mccs = [float(row[0]) for row in rows], [float(row[2]) for row in rows]
    # What the example is there to show: the first SAE is far too dense and wrong, the last is not.
    assert l0s[0] > 6
    assert abs(l0s[2] - 4) < 1.5
    assert mccs[2] > mccs[0] + 0.15
    assert Path("s_5.png").is_file()


def test_the_sweeps_run_as_they_stand(run_page: Any) -> None:
    names = run_page("sweeps")
    log, kept = names["log"], names["kept"]
    assert [sae.trained_by for sae in log.saes] == ["engine"] * 5
    assert sorted((snapshot.step, snapshot.index) for snapshot in kept) == [
        (step, index) for step in (100, 200) for index in range(5)
    ]
    assert [log.saes[i].columns["k"][-1] for i in range(4)] == [2.5, 4, 6, 4]
    assert log.saes[3].columns["k"][0] == 8
    assert log.saes[0].columns["l0"][-1] == pytest.approx(2.5)


def test_language_models_run_as_they_stand(run_page: Any) -> None:
    run_page("language_models")
    assert open_activations("acts").dtype == torch.bfloat16
    # What the command has run the model for is there for the function.
    assert {file.stem for file in Path("acts-probing").glob("*.safetensors")} == {
        "task_0",
        "task_1",
    }
    table = pd.read_parquet("my_sweep/results.parquet").set_index("sae_id")
    # SAEs that were given more latents use more, and explain more.
    assert table["l0"].is_monotonic_increasing
    assert table["variance_explained"].is_monotonic_increasing
    assert table.loc["k_24", "variance_explained"] > 0.5
    line = "diagnose my_sweep --activations acts --out diagnosis --batch-size 1000"
    assert CliRunner().invoke(cli, line.split(), catch_exceptions=False).exit_code == 0
    measured = pd.read_csv("diagnosis/saes.csv")
    # On all samples rather than on those held out: about the same.
    assert measured["l0"].tolist() == pytest.approx(table["l0"].tolist(), rel=0.1)
    assert len(pd.read_csv("diagnosis/projections.csv")) == 3 * 64
    (file,) = Path().rglob("recommendation.json")
    answer = json.loads(file.read_text())
    # A random model has no features of a usual magnitude; whatever is said has its reasons.
    assert (answer["l0"] is None) == bool(answer["doubts"])
    for folder in (Path("my_sweep"), Path("diagnosis"), file.parent):
        assert "sparse_but_wrong" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted(PAGES.keys() - {"README", "sweeps", "language_models"}))
def test_the_docs_run_as_they_stand(page: str, run_page: Any) -> None:
    run_page(page)


def test_make_commands_exist() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES.values())
    commands = set(re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE))
    assert {"run", "paper", "real", "test", "bench", "notebook"} <= commands
    # A dry run fails for a target that is not there.
    command = ["make", "--dry-run", *sorted(commands)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("page", PAGES)
def test_files_it_points_to_are_there(page: str) -> None:
    text = PAGES[page].read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (PAGES[page].parent / link).exists(), link
    assert re.findall(r"^[A-Z_]{3,}$|TODO|FIXME|XXX", text, re.MULTILINE) == []


def test_the_python_of_the_tests_is_one_it_promises() -> None:
    (minimum,) = re.findall(r"Python ≥ 3\.(\d+)", PAGES["README"].read_text(encoding="utf-8"))
    assert sys.version_info >= (3, int(minimum))
