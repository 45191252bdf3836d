"""The published notebook, run whole and unchanged, and the script that runs it."""

from __future__ import annotations

import importlib.util
import json
import math
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
NOTEBOOK = "toy_model_experiments_jumprelu.ipynb"

# Twenty steps instead of 14,649. Small batches, because each of the 12 SAEs first draws 1,000 of
# them to estimate the norm, and that would take longer than everything else. One thread, because on
# a busy machine two spend most of their time waiting for each other over tensors this small.
SMALL_BUDGET = """\
import functools
import torch
import sparse_but_wrong.toy_models.train_toy_sae as module
module.train_toy_sae = functools.partial(
    module.train_toy_sae, training_tokens=20 * 128, train_batch_size_tokens=128
)
torch.set_num_threads(1)
"""

TEXTS = ("text/plain", "text/html")

FIGURES = [
    "plots/toy_setup_jumprelu/toy_model_feature_firing_probabilities.pdf",
    "plots/toy_setup_jumprelu/toy_model_correlation_matrix.pdf",
    *(f"plots/dpn_jumprelu/dp_{n}.pdf" for n in range(12, 26)),
    "plots/toy_l0_jumprelu/l0_vs_l0_coeff_jumprelu.pdf",
]


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
    """A finished run of the published notebook."""

    published: nbformat.NotebookNode
    executed: nbformat.NotebookNode
    folder: Path

    @property
    def code_cells(self) -> list[nbformat.NotebookNode]:
        """Those of the notebook itself, without the prelude."""
        return [cell for cell in self.executed.cells[1:] if cell.cell_type == "code"]

    def printed(self, cell: int) -> str:
        """What a code cell printed; counted from 1."""
        return text_of(self.code_cells[cell - 1], "stdout")


@pytest.fixture(scope="module")
def run(script: ModuleType, shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    notebook = shared_dir / "seed" / NOTEBOOK
    before = notebook.read_bytes()
    folder = tmp_path_factory.mktemp("published")
    executed = script.run_notebook(notebook, folder, prelude=SMALL_BUDGET)
    assert notebook.read_bytes() == before
    return Run(nbformat.read(notebook, as_version=4), nbformat.read(executed, as_version=4), folder)


def text_of(cell: nbformat.NotebookNode, stream: str) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == stream)


def test_runs_every_cell_of_the_published_source(run: Run) -> None:
    sources = [(cell.cell_type, cell.source) for cell in run.executed.cells[1:]]
    assert sources == [(cell.cell_type, cell.source) for cell in run.published.cells]
    assert [cell.execution_count for cell in run.code_cells] == [1, 2, 3, 4, 5]


def test_marks_the_prelude(run: Run, script: ModuleType) -> None:
    first = run.executed.cells[0]
    assert first.source == script.PRELUDE_NOTE + SMALL_BUDGET
    assert first.metadata.tags == [script.PRELUDE_TAG]
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
    contents = {name: (run.folder / name).read_bytes() for name in FIGURES}
    for name, content in contents.items():
        assert content.startswith(b"%PDF-"), name
        assert content.rstrip().endswith(b"%%EOF"), name
        # Text with its fonts and lines makes 15 kB; an empty page is below 2 kB.
        assert len(content) > 10_000, name
    assert len(set(contents.values())) == len(FIGURES)
    # Nothing else: no temporary file is left behind.
    written = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*.*")}
    assert written == {NOTEBOOK, *FIGURES}


def test_shows_every_figure(run: Run) -> None:
    shown = [
        sum("image/png" in output.get("data", {}) for output in cell.outputs)
        for cell in run.code_cells
    ]
    assert shown == [2, 0, 0, 14, 1]


def test_true_l0(run: Run) -> None:
    # The sum of the firing probabilities is 10.9525; the mean over 100,000 samples has a standard
    # error of about 0.01, so that five of them fit on either side.
    match = re.fullmatch(r"True L0: (\S+)\n", run.printed(2))
    assert match is not None
    assert 10.90 < float(match[1]) < 11.02


def test_trains_and_measures_all_saes(run: Run) -> None:
    lines = re.findall(
        r"^SAE L0: (\S+), dead latents: (\d+), L1 coefficient: (\S+)$", run.printed(3), re.M
    )
    assert [line[2] for line in lines] == [
        *("0.05", "0.07", "0.09", "0.10", "0.30", "0.50"),
        *("0.75", "1.00", "1.20", "1.30", "1.40", "1.50"),
    ]
    for l0, dead, _ in lines:
        assert math.isfinite(float(l0))
        assert 0 < float(l0) <= 50 - int(dead)


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
    message = r"cell 2 of 3 failed after \d+\.\d s: ValueError: the 7 dwarfs\n" + re.escape(
        f"What ran until then is in {out / notebook.name}\n"
    )
    assert re.fullmatch(message, done.stderr)
    assert re.fullmatch(
        r"failing\.ipynb runs in .*\n"
        r"cell 1 of 3 …\nfine\ncell 1 of 3: \d+\.\d s\n"
        r"cell 2 of 3 …\nso far\n",
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
    assert re.match(r"cell 1 of 1 failed after \S+ s: the kernel died", capsys.readouterr().err)


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


def test_a_missing_notebook_makes_no_folder(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        script.main([str(tmp_path / "none.ipynb"), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "there is no notebook" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folders_are_numbered_not_reused(script: ModuleType, tmp_path: Path) -> None:
    wanted = tmp_path / "runs" / "notebook"
    made = [script.fresh_folder(wanted).relative_to(tmp_path).as_posix() for _ in range(3)]
    assert made == ["runs/notebook", "runs/notebook-2", "runs/notebook-3"]
    (tmp_path / "file").touch()
    assert script.fresh_folder(tmp_path / "file").name == "file-2"
