"""Run a published notebook, unchanged and headless, against the installed package.

    python scripts/run_notebook.py NOTEBOOK [--out FOLDER] [--seed N]

What `jupyter execute` does not do: the notebook runs in a folder of its own, in a kernel of this
interpreter; what it prints is shown at once; and with --seed two runs give the same numbers on the
same machine, because a cell that seeds the global generators of Python, numpy and torch runs first.
The notebook file is only read; the executed one, as far as it came, is written into the folder.
Needs the extra `notebook`. Exits with 1 where a cell fails and with 130 on Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from sparse_but_wrong import atomic

# Folders that published notebooks write into without making them.
FOLDERS_TAKEN_FOR_GRANTED = ("plots/toy_l0_jumprelu",)
PRELUDE_NOTE = "# Not part of the notebook: scripts/run_notebook.py ran this cell before it.\n"
# A busy machine may be slow to start a kernel and to deliver a cell's last figures.
_PATIENCE_SECONDS = 180


class NotebookError(RuntimeError):
    """A notebook that did not run to its end; the message names the cell and the error."""


def fresh_folder(wanted: Path) -> Path:
    """Make a folder that did not exist: `wanted`, or else `wanted`-2, `wanted`-3, …"""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    folder, number = wanted, 1
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")


def seeding(seed: int) -> str:
    """Code that seeds the global generators and leaves no name behind."""
    return (
        "import random, numpy, torch\n"
        f"random.seed({seed}); numpy.random.seed({seed}); torch.manual_seed({seed})\n"
        "del random, numpy, torch\n"
    )


def run_notebook(notebook: Path, folder: Path, prelude: str = "", seed: int | None = None) -> Path:
    """Run every cell of a notebook in an existing folder.

    Args:
        prelude: code to run before the first cell, say to lower a budget; it becomes the first cell
            of the executed notebook, marked as such. The numbers of the others stay the same.
        seed: of the global generators, set in the prelude; None seeds nothing.
    Returns:
        The executed notebook.
    Raises:
        NotebookError: a cell raised, or the kernel died. What ran until then is written.
        ValueError: the notebook lies in `folder` itself, so that it would be overwritten.
    """
    prelude = (seeding(seed) if seed is not None else "") + prelude
    executed = folder / notebook.name
    if executed.exists():
        raise ValueError(f"{executed} exists and would be overwritten; choose a fresh folder.")
    nb = nbformat.read(notebook, as_version=4)
    cells = [cell for cell in nb.cells if cell.cell_type == "code"]
    for cell in cells:  # outputs of an earlier run must not pass for this one's
        cell.outputs, cell.execution_count = [], None
    names = {id(cell): f"cell {i} of {len(cells)}" for i, cell in enumerate(cells, start=1)}
    if prelude:
        first = nbformat.v4.new_code_cell(PRELUDE_NOTE + prelude, metadata={"tags": ["prelude"]})
        if nb.nbformat_minor < 5:  # older notebooks know no cell ids
            del first["id"]
        nb.cells.insert(0, first)
    for name in FOLDERS_TAKEN_FOR_GRANTED:
        (folder / name).mkdir(parents=True, exist_ok=True)
    # Figures go into the notebook, whatever backend the caller's environment names; and no start-up
    # files of whoever runs it.
    backend = "module://matplotlib_inline.backend_inline"
    with tempfile.TemporaryDirectory(prefix="nb_") as scratch:
        environment = {**os.environ, "MPLBACKEND": backend, "IPYTHONDIR": scratch}
        client = _EchoingClient(
            nb,
            scratch,
            startup_timeout=_PATIENCE_SECONDS,
            iopub_timeout=_PATIENCE_SECONDS,
            coalesce_streams=True,  # a progress bar leaves its last state, not thousands
        )
        with client.setup_kernel(cwd=str(folder.resolve()), env=environment):
            for index, cell in enumerate(nb.cells):
                name = names.get(id(cell), "prelude")
                if cell.cell_type != "code":
                    continue
                print(f"{name} …", flush=True)
                try:
                    # Outside the kernel's history, the prelude takes no other cell's number.
                    client.execute_cell(cell, index, store_history=name != "prelude")
                except (CellExecutionError, DeadKernelError) as error:
                    reason = "the kernel died, perhaps for lack of memory"
                    if isinstance(error, CellExecutionError):
                        reason = f"{error.ename}: {error.evalue}"
                    raise NotebookError(
                        f"{name} failed: {reason}\nWhat ran until then is in {executed}"
                    ) from error
                except KeyboardInterrupt:
                    client.shutdown_kernel = "immediate"  # it would not leave in mid-cell
                    raise
                finally:
                    if name == "prelude":
                        cell.execution_count = None
                    atomic.write_bytes(executed, nbformat.writes(nb).encode())
    return executed


class _OwnKernel(AsyncKernelManager):
    """Starts this very interpreter, whatever kernels are or are not registered on the machine."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, name="python3", display_name="Python 3", language="python")


class _EchoingClient(NotebookClient):
    def __init__(self, nb: nbformat.NotebookNode, scratch: str, **options: Any) -> None:
        super().__init__(nb, **options)
        self._connection_file = f"{scratch}/k.json"  # the usual place need not be writable

    def create_kernel_manager(self) -> AsyncKernelManager:
        # Sockets in that private folder, which nobody else reads; macOS allows paths of 103 bytes.
        use_sockets = os.name != "nt" and len(self._connection_file) <= 90
        transport = "ipc" if use_sockets else "tcp"
        self.km = _OwnKernel(connection_file=self._connection_file, transport=transport)
        return self.km

    def process_message(self, msg: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Print what cells print; not progress bars on stderr, which redraw all the time."""
        if msg["msg_type"] == "stream" and msg["content"]["name"] == "stdout":
            print(msg["content"]["text"], end="", flush=True)
        return super().process_message(msg, *args, **kwargs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, report; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/notebook"), metavar="FOLDER",
        help="folder to make and run in; if it exists, a numbered one beside it")  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", help="seeds the global generators")
    options = parser.parse_args(arguments)
    if options.seed is not None and not 0 <= options.seed < 2**32:
        parser.error(f"the seed is {options.seed}; numpy takes seeds from 0 to 2**32 - 1.")
    if not options.notebook.is_file():
        parser.error(f"There is no notebook {options.notebook}.")
    folder = fresh_folder(options.out)
    print(f"{options.notebook.name} runs in {folder}", flush=True)
    try:
        executed = run_notebook(options.notebook, folder, seed=options.seed)
    except NotebookError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Interrupted; what ran until then is in {folder}", file=sys.stderr)
        return 130
    print(f"{executed} is complete")
    return 0


if __name__ == "__main__":
    sys.exit(main())
