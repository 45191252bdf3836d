"""Notebooks that make the published calls, run whole and unchanged, and the script for it."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "run_notebook.py"

# Twenty steps instead of 14,649. Small batches, because each of the 12 SAEs first draws 1,000 of
# them to estimate the norm, and that would take longer than everything else. One thread, because on
# a busy machine two spend most of their time waiting for each other over tensors this small.
SMALL_BUDGET = """\
import functools
import torch
import sparse_but_wrong.training.toy_sae as module
module.train_toy_sae = functools.partial(
    module.train_toy_sae, training_tokens=20 * 128, train_batch_size_tokens=128
)
torch.set_num_threads(1)
"""
ONE_THREAD = "import torch\ntorch.set_num_threads(1)\n"

TEXTS = ("text/plain", "text/html")


@dataclass(frozen=True, eq=False)
class Notebook:
    """A notebook, how it is run here, and what each of its code cells, counted from 1, does."""

    path: Path
    prelude: str
    figures: list[str]
    """The files it writes."""
    shown: list[list[str]]
    """Which pictures each cell shows: "p" a matplotlib figure, "e" an empty one, "i" plotly's."""
    true_l0_cell: int
    trained: tuple[int, str, int]
    """The cell that trains, what it prints of each SAE (its L0 and dead latents), and how many."""
    seed: int | None = None


# Makes the calls of the published package's notebooks, so that a clone tests them all by itself.
OURS = Notebook(
    path=Path(__file__).resolve().parent / "data" / "toy_models.ipynb",
    prelude=ONE_THREAD,
    figures=[
        "plots/world/firing.pdf",
        "plots/world/correlations.pdf",
        "plots/world/published.pdf",
        "plots/world/by_position.pdf",
        "plots/cosines.pdf",
        "plots/cosines.png",
        "plots/s_12.pdf",
        "plots/s_20.pdf",
        "moving/cfg.json",
        "moving/sae_weights.safetensors",
        "values.png",
        "wide/cfg.json",
        "wide/sae_weights.safetensors",
    ],
    shown=[*map(list, ("pp", "pp", "e", "", "", "pp", "e", "p", "ii", "i", "pp", "", "pi"))],
    true_l0_cell=4,
    trained=(5, r"^\S+: L0 (\S+) of \S+, (\d+) dead, shrinkage 0\.\d+, rows of norm 1\.000$", 3),
    seed=0,
)
# Runs unchanged as well, where it lies beside the checkout.
PUBLISHED = Notebook(
    path=Path(__file__).resolve().parents[2]
    / "shared"
    / "seed"
    / "toy_model_experiments_jumprelu.ipynb",
    prelude=SMALL_BUDGET,
    figures=[
        "plots/toy_setup_jumprelu/toy_model_feature_firing_probabilities.pdf",
        "plots/toy_setup_jumprelu/toy_model_correlation_matrix.pdf",
        *(f"plots/dpn_jumprelu/dp_{n}.pdf" for n in range(12, 26)),
        "plots/toy_l0_jumprelu/l0_vs_l0_coeff_jumprelu.pdf",
    ],
    shown=[*map(list, ("pp", "", "", "p" * 14, "p"))],
    true_l0_cell=2,
    trained=(3, r"^SAE L0: (\S+), dead latents: (\d+), L1 coefficient: \S+$", 12),
)
NOTEBOOKS = [notebook for notebook in (OURS, PUBLISHED) if notebook.path.is_file()]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_notebook", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Run:
    """A finished run of a notebook."""

    notebook: Notebook
    source: nbformat.NotebookNode
    executed: nbformat.NotebookNode
    folder: Path

    @property
    def code_cells(self) -> list[nbformat.NotebookNode]:
        """Those of the notebook itself, without the prelude."""
        return [cell for cell in self.executed.cells[1:] if cell.cell_type == "code"]

    def printed(self, cell: int) -> str:
        """What a code cell printed; counted from 1."""
        return text_of(self.code_cells[cell - 1], "stdout")


def run_in(folder: Path, script: ModuleType, notebook: Notebook) -> Run:
    before = notebook.path.read_bytes()
    executed = script.run_notebook(
        notebook.path, folder, prelude=notebook.prelude, seed=notebook.seed
    )
    assert notebook.path.read_bytes() == before
    source, executed = (nbformat.read(path, as_version=4) for path in (notebook.path, executed))
    return Run(notebook, source, executed, folder)


@pytest.fixture(scope="module")
def run_of(
    script: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Notebook], Run]:
    """Runs a notebook the first time it is asked for."""
    return cache(lambda notebook: run_in(tmp_path_factory.mktemp("notebook"), script, notebook))


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda notebook: notebook.path.stem)
def run(request: pytest.FixtureRequest, run_of: Callable[[Notebook], Run]) -> Run:
    return run_of(request.param)


def text_of(cell: nbformat.NotebookNode, stream: str) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == stream)


def test_runs_every_cell_of_the_source(run: Run) -> None:
    sources = [(cell.cell_type, cell.source) for cell in run.executed.cells[1:]]
    assert sources == [(cell.cell_type, cell.source) for cell in run.source.cells]
    counts = [cell.execution_count for cell in run.code_cells]
    assert counts == list(range(1, len(run.notebook.shown) + 1))


def test_marks_the_prelude(run: Run, script: ModuleType) -> None:
    first = run.executed.cells[0]
    seeded = "" if run.notebook.seed is None else script.seeding(run.notebook.seed)
    assert first.source == script.PRELUDE_NOTE + seeded + run.notebook.prelude
    assert first.metadata.tags == ["prelude"]
    assert first.execution_count is None


def test_outputs_hold_no_error(run: Run) -> None:
    outputs = [output for cell in run.executed.cells[1:] for output in cell.get("outputs", [])]
    assert [output for output in outputs if output.output_type == "error"] == []
    # Pictures are left out: their base64 spells out any short word now and then, "latex" too.
    everything = json.dumps(
        [
            {**output, "data": {k: v for k, v in output.get("data", {}).items() if k in TEXTS}}
            for output in outputs
        ]
    )
    assert len(everything) > 1_000
    assert "Traceback" not in everything
    assert "beartype" not in everything
    # Without LaTeX, or without Times, the style must fall back quietly.
    for complaint in ("findfont", "font family", "latex"):
        assert complaint not in everything.lower()


def test_writes_every_figure(run: Run) -> None:
    contents = {name: (run.folder / name).read_bytes() for name in run.notebook.figures}
    for name, content in contents.items():
        if name.endswith(".pdf"):
            assert content.startswith(b"%PDF-"), name
            assert content.rstrip().endswith(b"%%EOF"), name
        if name.endswith((".pdf", ".png")):
            # Text with its fonts and lines makes 15 kB; an empty page is below 2 kB.
            assert len(content) > 10_000, name
    assert len(set(contents.values())) == len(contents)
    # Nothing else: no temporary file is left behind.
    written = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*.*")}
    assert written == {run.notebook.path.name, *run.notebook.figures}


def test_shows_every_figure_in_the_cell_that_makes_it(run: Run) -> None:
    shown = [
        [kind for output in cell.outputs if (kind := picture_in(output))] for cell in run.code_cells
    ]
    assert shown == run.notebook.shown


def picture_in(output: nbformat.NotebookNode) -> str | None:
    data = output.get("data", {})
    if "application/vnd.plotly.v1+json" in data:
        return "i"
    if "image/png" in data:
        return "p"
    return "e" if data else None


def test_true_l0(run: Run) -> None:
    # The sum of the firing probabilities is 10.9525; the mean over 100,000 samples has a standard
    # error of about 0.01, so that five of them fit on either side.
    match = re.fullmatch(r"True L0: (\S+)\n", run.printed(run.notebook.true_l0_cell))
    assert match is not None
    assert 10.90 < float(match[1]) < 11.02


def test_trains_and_measures_all_saes(run: Run) -> None:
    cell, line, n_saes = run.notebook.trained
    saes = re.findall(line, run.printed(cell), re.M)
    assert len(saes) == n_saes
    for l0, dead in saes:
        assert math.isfinite(float(l0))
        assert 0 < float(l0) <= 50 - int(dead)


def everything_printed(run: Run) -> list[str]:
    return [text_of(cell, "stdout") for cell in run.code_cells]


def test_a_seed_gives_the_same_numbers_twice(
    script: ModuleType, run_of: Callable[[Notebook], Run], tmp_path: Path
) -> None:
    run, again = run_of(OURS), run_in(tmp_path, script, OURS)
    assert everything_printed(again) == everything_printed(run)
    assert len("".join(everything_printed(run))) > 300
    # All three global generators are read.
    draws = re.search(r"^generators: (\S+), (\S+), (\S+)$", everything_printed(run)[-1], re.M)
    assert draws is not None
    assert len(set(draws.groups())) == 3
    # Weights too, to the last bit.
    weights = "wide/sae_weights.safetensors"
    assert (tmp_path / weights).read_bytes() == (run.folder / weights).read_bytes()


def test_without_a_seed_two_runs_differ(script: ModuleType, tmp_path: Path) -> None:
    source = """
    import random, numpy, torch
    print(random.random(), numpy.random.rand(), torch.rand(1).item())
    """
    notebook = write_notebook(tmp_path / "draws.ipynb", textwrap.dedent(source))
    draws = set()
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        executed = script.run_notebook(notebook, folder)
        draws |= set(text_of(nbformat.read(executed, as_version=4).cells[-1], "stdout").split())
    assert len(draws) == 6


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_a_seed_that_numpy_does_not_take_is_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: str
) -> None:
    notebook = write_notebook(tmp_path / "one.ipynb", "1")
    with pytest.raises(SystemExit) as stopped:
        script.main([str(notebook), "--out", str(tmp_path / "out"), f"--seed={seed}"])
    assert stopped.value.code == 2
    assert f"seed is {seed}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def write_notebook(path: Path, *cells: str) -> Path:
    nb = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("A title is no code cell and takes no number."),
            *map(nbformat.v4.new_code_cell, cells),
        ]
    )
    nbformat.write(nb, path)
    return path


def test_a_failing_cell_ends_the_run_with_its_number_and_error(tmp_path: Path) -> None:
    notebook = write_notebook(
        tmp_path / "failing.ipynb",
        "print('fine')",
        "print('so far')\nraise ValueError('the 7 dwarfs')",
        "print('never')",
    )
    out = tmp_path / "deep" / "out"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(notebook), "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 1
    message = r"cell 2 of 3 failed: ValueError: the 7 dwarfs\n" + re.escape(
        f"What ran until then is in {out / notebook.name}\n"
    )
    assert re.fullmatch(message, done.stderr)
    assert re.fullmatch(
        r"failing\.ipynb runs in .*\n"
        r"cell 1 of 3 …\nfine\ncell 2 of 3 …\nso far\n",
        done.stdout,
    )
    first, second, third = nbformat.read(out / notebook.name, as_version=4).cells[1:]
    assert text_of(first, "stdout") == "fine\n"
    assert second.outputs[-1].ename == "ValueError"
    assert (third.outputs, third.execution_count) == ([], None)


def test_a_dying_kernel_is_told_from_a_failing_cell(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = write_notebook(tmp_path / "dying.ipynb", "import os\nos._exit(3)")
    assert script.main([str(notebook), "--out", str(tmp_path / "out")]) == 1
    assert re.match(r"cell 1 of 1 failed: the kernel died", capsys.readouterr().err)


def test_runs_this_interpreter_headless_in_the_folder(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another kernel by the usual name, found first; and a backend that shows nothing.
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["no-such-python"], "display_name": "Python 3", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.delenv("DISPLAY", raising=False)
    notebook = write_notebook(
        tmp_path / "where.ipynb",
        "import os, sys\nprint(sys.executable)\nprint(os.getcwd())",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    )
    folder = tmp_path / "out"
    folder.mkdir()
    executed = script.run_notebook(notebook, folder)
    _, where, figure = nbformat.read(executed, as_version=4).cells
    assert text_of(where, "stdout").split() == [sys.executable, str(folder)]
    assert [output.output_type for output in figure.outputs] == ["display_data"]
    assert "image/png" in figure.outputs[0].data
    assert (folder / "plots" / "toy_l0_jumprelu").is_dir()


def test_refuses_to_overwrite_a_notebook(script: ModuleType, tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "here.ipynb", "1")
    before = notebook.read_bytes()
    with pytest.raises(ValueError, match=r"here\.ipynb exists and would be overwritten"):
        script.run_notebook(notebook, tmp_path)
    assert notebook.read_bytes() == before


def test_folders_are_numbered_not_reused(script: ModuleType, tmp_path: Path) -> None:
    wanted = tmp_path / "runs" / "notebook"
    made = [script.fresh_folder(wanted).relative_to(tmp_path).as_posix() for _ in range(3)]
    assert made == ["runs/notebook", "runs/notebook-2", "runs/notebook-3"]
    (tmp_path / "file").touch()
    assert script.fresh_folder(tmp_path / "file").name == "file-2"
