"""What several commands share: options, names, folders for results. It takes not long to import."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparse_but_wrong.atomic import claimed, full_disk_named
from sparse_but_wrong.runs.provenance import provenance

if TYPE_CHECKING:
    from sparse_but_wrong.cluster.units import Cluster

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

TEXT = "A .txt, .jsonl or .parquet file, or a folder of them. Can be given several times."


_THREADS = f"{__name__}.threads"


def _use_threads(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    del param
    if value is not None:
        import torch

        torch.set_num_threads(value)
        ctx.meta[_THREADS] = value


threads = click.option(
    "--threads",
    type=AT_LEAST_1,
    callback=_use_threads,
    expose_value=False,
    help="CPU threads. [default: all cores]",
)
ray = click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Work on the Ray cluster whose head has this address, or on one of this machine alone. "
    "Each unit of work gets --threads CPUs, by default 1, and a GPU if --device names one.",
)
column = click.option("--column", help="Dataset column that holds the activations.")
quick = click.option(
    "--quick", is_flag=True, help="A fiftieth of the budget: a smoke test, not a result."
)


def out(default: str) -> Callable[[Any], Any]:
    """`--out`, for a folder that must be free; `default` is below runs/."""
    text = f"New or empty folder. [default: runs/{default}, or the next free number]"
    return click.option("--out", type=PATH, help=text)


def device(what: str, default: str | None = "cpu") -> Callable[[Any], Any]:
    """`--device`, for what happens there."""
    text = f"Where {what}: cpu, cuda, cuda:1, or auto for a CUDA GPU if any. [default: cpu]"
    return click.option(
        "--device", default=default, callback=_settle_device, help=text, show_default=False
    )


def _settle_device(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Which one "auto" is, so that all that follows has, and records, its name."""
    del ctx, param
    if value != "auto":
        return value
    from sparse_but_wrong.untrusted import usable_device

    taken = str(usable_device(value))
    click.echo(f"Device: {taken}")
    return taken


@contextmanager
def on_cluster(ray: str | None) -> Iterator[Cluster | None]:
    """The cluster that `--ray` asks for, which gives a unit of work as many CPUs as `--threads`."""
    if ray is None:
        yield None
        return
    from sparse_but_wrong.cluster.units import connected

    with connected(ray, click.get_current_context().meta.get(_THREADS, 1)) as cluster:
        yield cluster


def short_name(source: str) -> str:
    """What to call a file or folder, or something with a name of its own."""
    return Path(source).resolve().name if Path(source).exists() else source


@contextmanager
def results(out: Path | None, name: str) -> Iterator[tuple[Path, Callable[[], dict[str, object]]]]:
    """A folder to fill, and what tells in the end how that was done.

    It lies in `out`, or in the next free one below runs/, which is claimed before the work: that
    may take hours, and a bad folder is refused at once.
    """
    from sparse_but_wrong.runs.folder import fresh_path

    path, made, started = out or fresh_path(RUNS, name), provenance(), time.monotonic()

    def made_how() -> dict[str, object]:
        return {
            "Time": f"{time.monotonic() - started:.0f} s",
            "Command": made["command"],
            "Started": made["created"],
            "Commit": made["commit"] or "–",
        }

    advice = (
        "Only what is printed above is kept. Free some space, or name a folder on another disk "
        "with --out, and run the command again."
    )
    with full_disk_named(path, advice), claimed(path) as place:
        yield place, made_how
    click.echo(f"Report: {path / 'report.html'}")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide what the libraries say while all goes well; what goes wrong is raised."""
    import datasets
    import transformers

    bars: Any = transformers.utils.logging
    with ExitStack() as after:
        # For every library: some set the level of their own logger, others log to the root.
        after.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.WARNING)
        if bars.is_progress_bar_enabled():
            bars.disable_progress_bar()
            after.callback(bars.enable_progress_bar)
        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            after.callback(datasets.enable_progress_bars)
        yield
