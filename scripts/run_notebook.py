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
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from sparse_but_wrong import atomic

# Folders that published notebooks write into without making them.
FOLDERS_TAKEN_FOR_GRANTED = ("plots/toy_l0_jumprelu",)
PRELUDE_NOTE = "# Not part of the notebook: scripts/run_notebook.py ran this cell before it.\n"
# A busy machine may be slow to start a kernel and to deliver a cell's last figures.
_PATIENCE_SECONDS = 180


def fresh_folder(wanted: Path) -> Path:
    """Make a folder that did not exist: `wanted`, or else `wanted`-2, `wanted`-3, …"""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    folder.mkdir(parents=True)
    return folder


def seeding(seed: int) -> str:
    """Code that seeds the global generators and leaves no name behind."""
    return (
        "import random, numpy, torch\n"
        f"random.seed({seed}); numpy.random.seed({seed}); torch.manual_seed({seed})\n"
        "del random, numpy, torch\n"
    )


def run_notebook(notebook: Path, folder: Path, prelude: str = "", seed: int | None = None) -> Path:
    """Run every cell of a notebook in an existing folder, and return the executed notebook.

    Where a cell fails, what ran until then is written, and the program exits with a message.

    Args:
        prelude: code to run before the first cell, say to lower a budget; it becomes the first cell
            of the executed notebook, marked as such. The numbers of the others stay the same.
        seed: of the global generators, set in the prelude; None seeds nothing.
    Raises:
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
        names[id(first)] = "prelude"
    for name in FOLDERS_TAKEN_FOR_GRANTED:
        (folder / name).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nb_") as scratch:
        # Figures go into the notebook, whatever backend the caller's environment names; and no
        # start-up files of whoever runs it.
        backend = "module://matplotlib_inline.backend_inline"
        environment = {**os.environ, "MPLBACKEND": backend, "IPYTHONDIR": scratch}
        client = _EchoingClient(
            nb,
            _own_kernel(f"{scratch}/k.json"),
            startup_timeout=_PATIENCE_SECONDS,
            iopub_timeout=_PATIENCE_SECONDS,
            coalesce_streams=True,  # a progress bar leaves its last state, not thousands
        )
        with client.setup_kernel(cwd=str(folder.resolve()), env=environment, cleanup_kc=True):
            for index, cell in enumerate(nb.cells):
                if (name := names.get(id(cell))) is None:
                    continue
                print(f"{name} …", flush=True)
                try:
                    # Outside the kernel's history, the prelude takes no other cell's number.
                    client.execute_cell(cell, index, store_history=name != "prelude")
                except (CellExecutionError, DeadKernelError) as error:
                    why = "the kernel died, perhaps for lack of memory"
                    if isinstance(error, CellExecutionError):
                        why = f"{error.ename}: {error.evalue}"
                    sys.exit(f"{name} failed: {why}\nWhat ran until then is in {executed}")
                except KeyboardInterrupt:
                    client.shutdown_kernel = "immediate"  # it would not leave in mid-cell
                    print(f"Interrupted; what ran until then is in {executed}", file=sys.stderr)
                    sys.exit(130)
                finally:
                    if name == "prelude":
                        cell.execution_count = None
                    atomic.write_bytes(executed, nbformat.writes(nb).encode())
    return executed


def _own_kernel(connection_file: str) -> AsyncKernelManager:
    """This very interpreter, whatever kernels are or are not registered on the machine.

    Its sockets lie beside the connection file, where nobody else reads, and which need not be the
    usual place; macOS allows paths of 103 bytes.
    """
    transport = "ipc" if os.name != "nt" and len(connection_file) <= 90 else "tcp"
    return AsyncKernelManager(
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
        connection_file=connection_file,
        transport=transport,
    )


class _EchoingClient(NotebookClient):
    def process_message(self, msg: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Print what cells print; not progress bars on stderr, which redraw all the time."""
        if msg["msg_type"] == "stream" and msg["content"]["name"] == "stdout":
            print(msg["content"]["text"], end="", flush=True)
        return super().process_message(msg, *args, **kwargs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, report."""
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
    print(f"{run_notebook(options.notebook, folder, seed=options.seed)} is complete")


if __name__ == "__main__":
    main()
