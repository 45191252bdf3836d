"""Notebooks that make the published calls, run whole and unchanged, and the script for it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class Notebook:
    """A notebook, how it is run here, and what each of its code cells, counted from 1, does."""

    path: Path
    prelude: str
    figures: list[str]
    """The files it writes."""
    shown: tuple[str, ...]
    """The pictures of each cell: "p" a matplotlib figure, "e" an empty one, "i" plotly's."""
    true_l0_cell: int
    trained: tuple[int, str, int]
    """The cell that trains, what it prints of each SAE (its L0 and dead latents), and how many."""
    seed: int | None = None


# Makes the calls of the published package's notebooks, so that a clone tests them all by itself.
OURS = Notebook(
    path=Path(__file__).resolve().parent / "data" / "toy_models.ipynb",
    prelude=ONE_THREAD,
    figures=[
        *(f"plots/world/{n}.pdf" for n in ("firing", "correlations", "published", "by_position")),
        *(f"plots/{name}" for name in ("cosines.pdf", "cosines.png", "s_12.pdf", "s_20.pdf")),
        *("moving/cfg.json", "moving/sae_weights.safetensors", "values.png"),
        *("wide/cfg.json", "wide/sae_weights.safetensors"),
    ],
    shown=("pp", "pp", "e", "", "", "pp", "e", "p", "ii", "i", "pp", "", "pi"),
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
    shown=("pp", "", "", "p" * 14, "p"),
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


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


@dataclass(frozen=True)
class Run:
    """A finished run of a notebook."""

    notebook: Notebook
    executed: nbformat.NotebookNode
    folder: Path

    @property
    def code_cells(self) -> list[nbformat.NotebookNode]:
        """Those of the notebook itself, without the prelude."""
        return [cell for cell in self.executed.cells[1:] if cell.cell_type == "code"]


def run_in(folder: Path, script: ModuleType, notebook: Notebook) -> Run:
    before = notebook.path.read_bytes()
    executed = script.run_notebook(
        notebook.path, folder, prelude=notebook.prelude, seed=notebook.seed
    )
    assert notebook.path.read_bytes() == before
    return Run(notebook, read(executed), folder)


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda notebook: notebook.path.stem)
def run(
    request: pytest.FixtureRequest, script: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    return run_in(tmp_path_factory.mktemp("notebook"), script, request.param)


def test_runs_every_cell_of_the_source_after_a_marked_prelude(run: Run, script: ModuleType) -> None:
    first, *others = run.executed.cells
    sources = [(cell.cell_type, cell.source) for cell in read(run.notebook.path).cells]
    assert [(cell.cell_type, cell.source) for cell in others] == sources
    counts = [cell.execution_count for cell in run.code_cells]
    assert counts == list(range(1, len(run.notebook.shown) + 1))
    seeded = "" if run.notebook.seed is None else script.seeding(run.notebook.seed)
    assert first.source == script.PRELUDE_NOTE + seeded + run.notebook.prelude
    assert (first.metadata.tags, first.execution_count) == (["prelude"], None)


def test_outputs_hold_no_error(run: Run) -> None:
    outputs = [output for cell in run.code_cells for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    # Pictures are left out: their base64 spells out any short word now and then, "latex" too.
    for output in outputs:
        data = output.get("data", {})
        output = {**output, "data": {kind: data.get(kind) for kind in ("text/plain", "text/html")}}
        # Without LaTeX, or without Times, the style must fall back quietly.
        for complaint in ("traceback", "beartype", "findfont", "font family", "latex"):
            assert complaint not in json.dumps(output).lower()


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


def picture_in(output: nbformat.NotebookNode) -> str:
    data = output.get("data", {})
    if "application/vnd.plotly.v1+json" in data:
        return "i"
    return "p" if "image/png" in data else "e" if data else ""


def test_shows_every_figure_in_the_cell_that_makes_it(run: Run) -> None:
    shown = tuple("".join(map(picture_in, cell.outputs)) for cell in run.code_cells)
    assert shown == run.notebook.shown


def test_prints_the_true_l0_and_that_of_all_saes(run: Run) -> None:
    # The sum of the firing probabilities is 10.9525; the mean over 100,000 samples has a standard
    # error of about 0.01, so that five of them fit on either side.
    text = printed(run.code_cells[run.notebook.true_l0_cell - 1])
    assert 10.90 < float(text.removeprefix("True L0: ")) < 11.02
    cell, line, n_saes = run.notebook.trained
    saes = re.findall(line, printed(run.code_cells[cell - 1]), re.M)
    assert len(saes) == n_saes
    for l0, dead in saes:
        assert 0 < float(l0) <= 50 - int(dead)


def write_notebook(path: Path, *cells: str) -> Path:
    title = nbformat.v4.new_markdown_cell("A title is no code cell and takes no number.")
    code = map(nbformat.v4.new_code_cell, cells)
    nbformat.write(nbformat.v4.new_notebook(cells=[title, *code]), path)
    return path


TRAINS = """\
import random
import numpy, torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sparse_but_wrong.toy_models.get_training_batch import get_training_batch
from sparse_but_wrong.toy_models.toy_model import ToyModel
from sparse_but_wrong.toy_models.train_toy_sae import train_toy_sae

world, firing = ToyModel(num_feats=5, hidden_dim=20), torch.full((5,), 0.4)
sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=20, d_sae=8, k=2))
draw = lambda size: get_training_batch(size, firing, std_firing_magnitudes=torch.tensor(0.15))
train_toy_sae(sae, world, draw, training_tokens=640, train_batch_size_tokens=64)
print(random.random(), numpy.random.rand(), torch.rand(1).item(), sae.W_dec.sum().item())
sae.save_model("sae")
"""


def test_a_seed_gives_the_same_numbers_twice(script: ModuleType, tmp_path: Path) -> None:
    notebook, printed_by, weights = write_notebook(tmp_path / "trains.ipynb", TRAINS), set(), set()
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        executed = read(script.run_notebook(notebook, folder, prelude=ONE_THREAD, seed=3))
        printed_by.add(printed(executed.cells[-1]))
        # To the last bit.
        weights.add((folder / "sae/sae_weights.safetensors").read_bytes())
    assert len(weights) == 1
    (text,) = printed_by
    # All three global generators are read, and differ.
    *draws, total = text.split()
    assert len(set(draws)) == 3
    assert float(total) != 0


def test_without_a_seed_two_runs_differ(script: ModuleType, tmp_path: Path) -> None:
    source = (
        "import random, numpy, torch\nprint(random.random(), numpy.random.rand(), torch.rand(1))"
    )
    notebook, draws = write_notebook(tmp_path / "draws.ipynb", source), set()
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        draws |= set(printed(read(script.run_notebook(notebook, folder)).cells[-1]).split())
    assert len(draws) == 6


def test_a_failing_cell_ends_the_run_with_its_number_and_error(tmp_path: Path) -> None:
    failing = "print('so far')\nraise ValueError('the 7 dwarfs')"
    notebook = write_notebook(tmp_path / "failing.ipynb", "print('fine')", failing, "print(3)")
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
    assert done.stderr == (
        "cell 2 of 3 failed: ValueError: the 7 dwarfs\n"
        f"What ran until then is in {out / notebook.name}\n"
    )
    assert done.stdout.splitlines()[1:] == ["cell 1 of 3 …", "fine", "cell 2 of 3 …", "so far"]
    first, second, third = read(out / notebook.name).cells[1:]
    assert printed(first) == "fine\n"
    assert second.outputs[-1].ename == "ValueError"
    assert (third.outputs, third.execution_count) == ([], None)


def test_a_dying_kernel_is_told_from_a_failing_cell(script: ModuleType, tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "dying.ipynb", "import os\nos._exit(3)")
    with pytest.raises(SystemExit, match="cell 1 of 1 failed: the kernel died"):
        script.main([str(notebook), "--out", str(tmp_path / "out")])


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
    _, where, figure = read(script.run_notebook(notebook, folder)).cells
    assert printed(where).split() == [sys.executable, str(folder)]
    assert [output.output_type for output in figure.outputs] == ["display_data"]
    assert "image/png" in figure.outputs[0].data
    assert (folder / "plots" / "toy_l0_jumprelu").is_dir()


def test_nothing_is_overwritten_and_odd_seeds_are_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook, wanted = write_notebook(tmp_path / "here.ipynb", "1"), tmp_path / "runs" / "notebook"
    with pytest.raises(ValueError, match=r"here\.ipynb exists and would be overwritten"):
        script.run_notebook(notebook, tmp_path)
    made = [script.fresh_folder(wanted).relative_to(tmp_path).as_posix() for _ in range(3)]
    assert made == ["runs/notebook", "runs/notebook-2", "runs/notebook-3"]
    assert script.fresh_folder(notebook).name == "here.ipynb-2"
    for seed in (-1, 2**32):
        with pytest.raises(SystemExit, match="2"):
            script.main([str(notebook), "--out", str(tmp_path / "out"), f"--seed={seed}"])
        assert f"seed is {seed}" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
