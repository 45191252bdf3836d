"""Run a published notebook, unchanged and headless, against the installed package.

    python scripts/run_notebook.py NOTEBOOK [--out FOLDER] [--seed N]

The notebook runs from its first cell to its last in a folder of its own, which afterwards holds
what it wrote and the executed notebook. The notebook file itself is only read. Needs the extra
`notebook`. Exits with 1 where a cell fails and with 130 on Ctrl-C; the notebook as far as it came
is written in either case.

Two runs of a notebook that seeds nothing give different numbers. With --seed they give the same on
the same machine: a cell that seeds the global generators of Python, numpy and torch runs first.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import ipykernel  # noqa: F401  # the kernel needs it; better missed here than in the kernel
    import nbformat
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"Running notebooks needs {error.name}: pip install 'sparse_but_wrong[notebook]'",
        name=error.name,
    ) from error

from sparse_but_wrong import atomic

DEFAULT_FOLDER = Path("runs/notebook")

# Folders that published notebooks write into without making them.
FOLDERS_TAKEN_FOR_GRANTED = ("plots/toy_l0_jumprelu",)

PRELUDE_TAG = "prelude"
PRELUDE_NOTE = "# Not part of the notebook: scripts/run_notebook.py ran this cell before it.\n"

# A busy machine may be slow to start a kernel and to deliver a cell's last figures.
_PATIENCE_SECONDS = 180

# A Unix socket's path may have 103 bytes on macOS; "-ipc-1" and the like are added to this.
_LONGEST_SOCKET_STEM = 90


class NotebookError(RuntimeError):
    """A notebook that did not run to its end; the message names the cell and the error."""


def fresh_folder(wanted: Path) -> Path:
    """Make a folder that did not exist: `wanted`, or else `wanted`-2, `wanted`-3, …"""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    folder, number = wanted, 1
    while True:
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
        else:
            return folder


def seeding(seed: int) -> str:
    """Code that seeds the global generators and leaves no name behind.

    Raises:
        ValueError: a seed that numpy does not take.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"the seed is {seed}; numpy takes seeds from 0 to 2**32 - 1.")
    return (
        "import random, numpy, torch\n"
        f"random.seed({seed}); numpy.random.seed({seed}); torch.manual_seed({seed})\n"
        "del random, numpy, torch\n"
    )


def run_notebook(
    notebook: Path, folder: Path, prelude: str | None = None, seed: int | None = None
) -> Path:
    """Run every cell of a notebook in a kernel of this interpreter, and report on the way.

    Args:
        notebook: the file; its source is never changed.
        folder: an existing folder, the kernel's working directory.
        prelude: code to run in the kernel before the first cell, say to lower a budget. It becomes
            the first cell of the executed notebook, marked by a comment and by the tag
            `prelude`, so that nobody takes the result for that of the notebook as published. The
            numbers of the other cells stay the same.
        seed: of the global generators of Python, numpy and torch, in the prelude; the same seed
            gives the same numbers on the same machine. None seeds nothing.
    Returns:
        The executed notebook, `folder` / the notebook's name. It is written anew after each cell,
        and always whole.
    Raises:
        NotebookError: a cell raised, or the kernel died. What ran until then is written.
        ValueError: the notebook lies in `folder` itself, so that it would be overwritten, or a
            seed that numpy does not take.
    """
    if seed is not None:
        prelude = seeding(seed) + (prelude or "")
    executed = folder / notebook.name
    if executed.exists():
        raise ValueError(f"{executed} exists and would be overwritten: choose a fresh folder.")
    nb = nbformat.read(notebook, as_version=4)
    cells = {i: cell for i, cell in enumerate(nb.cells) if cell.cell_type == "code"}
    # Outputs of an earlier run must not pass for this one's where it ends early.
    for cell in cells.values():
        cell.outputs = []
        cell.execution_count = None
    names = {i: f"cell {number} of {len(cells)}" for number, i in enumerate(cells, start=1)}
    if prelude is not None:
        nb.cells.insert(0, _prelude_cell(prelude, nb.nbformat_minor))
        names = {0: "prelude", **{i + 1: name for i, name in names.items()}}
    for name in FOLDERS_TAKEN_FOR_GRANTED:
        (folder / name).mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory(prefix="nb_") as scratch:
        client = _EchoingClient(
            nb,
            Path(scratch),
            startup_timeout=_PATIENCE_SECONDS,
            iopub_timeout=_PATIENCE_SECONDS,
            # A progress bar leaves its last state, not thousands.
            coalesce_streams=True,
        )
        with client.setup_kernel(cwd=str(folder.resolve()), env=_kernel_environment(scratch)):
            for i, name in names.items():
                try:
                    _run_cell(client, nb.cells[i], i, name)
                except KeyboardInterrupt:
                    # In the middle of a cell, a kernel asked to leave would do so with an error.
                    client.shutdown_kernel = "immediate"
                    raise
                except NotebookError as error:
                    raise NotebookError(f"{error}\nWhat ran until then is in {executed}") from error
                finally:
                    atomic.write_bytes(executed, nbformat.writes(nb).encode())
    return executed


def _run_cell(client: NotebookClient, cell: nbformat.NotebookNode, index: int, name: str) -> None:
    print(f"{name} …", flush=True)
    start = time.perf_counter()
    is_prelude = PRELUDE_TAG in cell.metadata.get("tags", [])
    try:
        # Kept out of the kernel's history, the prelude takes no other cell's number.
        client.execute_cell(cell, index, store_history=not is_prelude)
    except CellExecutionError as error:
        reason = f"{error.ename}: {error.evalue}"
        raise NotebookError(f"{name} failed after {_since(start)}: {reason}") from error
    except DeadKernelError as error:
        reason = "the kernel died, perhaps for lack of memory"
        raise NotebookError(f"{name} failed after {_since(start)}: {reason}") from error
    finally:
        if is_prelude:
            cell.execution_count = None
    print(f"{name}: {_since(start)}", flush=True)


def _since(start: float) -> str:
    return f"{time.perf_counter() - start:.1f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, report; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="FOLDER",
        help="the folder to make and run in (default: %(default)s); where it exists, a numbered "
        "one is made beside it, never the same one used twice",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of the global generators of Python, numpy and torch, set in a cell of its own before "
        "the first (default: they are not seeded, and two runs differ)",
    )
    options = parser.parse_args(arguments)
    try:
        seeding(options.seed or 0)
    except ValueError as error:
        parser.error(str(error))
    if not options.notebook.is_file():
        parser.error(f"there is no notebook {options.notebook}")
    folder = fresh_folder(options.out)
    print(f"{options.notebook.name} runs in {folder}", flush=True)
    start = time.perf_counter()
    try:
        executed = run_notebook(options.notebook, folder, seed=options.seed)
    except NotebookError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Interrupted; what ran until then is in {folder}", file=sys.stderr)
        return 130
    print(f"{executed} is complete after {_since(start)}")
    return 0


class _OwnInterpreterKernel(AsyncKernelManager):
    """Starts this very interpreter, whatever kernels are or are not registered on the machine."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            name="python3",
            display_name="Python 3",
            language="python",
        )


class _EchoingClient(NotebookClient):
    """Prints what the cells print while they run."""

    def __init__(self, nb: nbformat.NotebookNode, scratch: Path, **options: Any) -> None:
        super().__init__(nb, **options)
        self._scratch = scratch

    def create_kernel_manager(self) -> AsyncKernelManager:
        # The usual place is in the home folder, which need not be writable.
        connection_file = str(self._scratch / "k.json")
        # Sockets in that private folder: no port that another program takes first, and nobody
        # who reads along. Their paths must be short, and Windows has none.
        use_sockets = os.name != "nt" and len(connection_file) <= _LONGEST_SOCKET_STEM
        self.km = _OwnInterpreterKernel(
            connection_file=connection_file, transport="ipc" if use_sockets else "tcp"
        )
        return self.km

    def process_message(
        self, msg: dict[str, Any], cell: nbformat.NotebookNode, cell_index: int
    ) -> nbformat.NotebookNode | None:
        # Only what is printed: progress bars on stderr redraw themselves many times a second.
        if msg["msg_type"] == "stream" and msg["content"]["name"] == "stdout":
            print(msg["content"]["text"], end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def _kernel_environment(scratch: str) -> dict[str, str]:
    return {
        **os.environ,
        # Figures go into the notebook. A backend named in the caller's environment would win over
        # the kernel's own choice: one needs a display, another shows nothing.
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        # No start-up files or settings of whoever runs it.
        "IPYTHONDIR": scratch,
    }


def _prelude_cell(source: str, nbformat_minor: int) -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell(PRELUDE_NOTE + source, metadata={"tags": [PRELUDE_TAG]})
    if nbformat_minor < 5:
        # Older notebooks know no cell ids and are not valid with one.
        del cell["id"]
    return cell


if __name__ == "__main__":
    sys.exit(main())
