"""Options that several commands share. Nothing here takes long to import."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

RUNS = Path("runs")


class _Path(click.Path):
    """A path, or what may be one, with "~" for the home folder also where a shell leaves it."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The path, of the type that is asked for."""
        if str(value).startswith("~/"):
            value = str(Path(value).expanduser())
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)
NAME_OR_PATH = _Path(path_type=str)
AT_LEAST_0, AT_LEAST_1 = click.IntRange(min=0), click.IntRange(min=1)

threads = click.option("--threads", type=AT_LEAST_1, help="CPU threads. [default: all cores]")
column = click.option("--column", help="Dataset column that holds the activations.")
quick = click.option(
    "--quick", is_flag=True, help="A fiftieth of the budget: a smoke test, not a result."
)


def out(default: str) -> Callable[[Any], Any]:
    """`--out`, for a folder that must be free; `default` is below runs/."""
    text = f"New or empty folder. [default: runs/{default}, or the next free number]"
    return click.option("--out", type=PATH, help=text)


def device(what: str) -> Callable[[Any], Any]:
    """`--device`, for what happens there."""
    return click.option(
        "--device", default="cpu", show_default=True, help=f"Where {what}, for example cuda."
    )


def use_threads(threads: int | None) -> None:
    """Have PyTorch use so many threads, if a number was given."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def made_how(started: float) -> dict[str, object]:
    """What a page says of how it was made, `started` at that `time.monotonic`."""
    from sparse_but_wrong.runs.provenance import provenance

    made = provenance()
    return {
        "Time": f"{time.monotonic() - started:.0f} s",
        "Command": made["command"],
        "Started": made["created"],
        "Commit": made["commit"] or "–",
    }
