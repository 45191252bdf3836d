"""Units of work on the machines of a Ray cluster.

Between the driver and a worker goes only what a unit is and what it came to; all else lies in a
folder that every machine sees. When a worker dies, Ray starts its unit again elsewhere, where it
goes on from the files that it left in that folder.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sparse_but_wrong.runs.provenance import versions
from sparse_but_wrong.threads import threads_per_operation
from sparse_but_wrong.training.interrupt import DeferredInterrupt
from sparse_but_wrong.untrusted import one_line

LOCAL = "local"
"""The address of a cluster of this machine alone, which is started and ended with the command."""

_STOP_SECONDS = 60.0
"""How long workers have to write a checkpoint when all is stopped."""


@dataclass(frozen=True)
class Unit:
    """Something that one worker does."""

    name: str
    """What messages and its progress bar call it."""
    work: Callable[[], Any]
    """Picklable. It continues from the files of an earlier attempt, if there are any."""
    n_done: Callable[[], int]
    """How many samples its files hold; asked in the driver, about once per second."""
    n_samples: int


class Cluster:
    """A Ray cluster that this process is the driver of; `connected` gives one."""

    def __init__(self, cpus: int) -> None:
        self.cpus = cpus
        """CPUs that a unit gets."""

    def n_slots(self, gpus: int) -> int:
        """How many units the cluster can run at a time; ValueError if none."""
        asked = {"CPU": self.cpus, "GPU": gpus}
        has = [node["Resources"] for node in _machines()]
        n = sum(min(int(of.get(k, 0) // v) for k, v in asked.items() if v) for of in has)
        if n == 0:
            what = f"{self.cpus} CPUs" + (f" and {gpus} GPU" if gpus else "")
            raise ValueError(
                f"no machine of the Ray cluster has {what}, which a unit asks for; lower "
                "--threads, choose another --device, or add such a machine."
            )
        return n

    def run(
        self, units: Sequence[Unit], shared: Path, gpus: int = 0, *, progress: bool = False
    ) -> Generator[Any, None, None]:
        """Do units of work on the cluster, and give the result of each once it is done.

        Args:
            shared: the folder that they work in. Workers have to see it, and the working directory.
            gpus: that each gets, besides its CPUs.
            progress: show a bar for each unit that has begun.
        Raises:
            ValueError: a machine does not see the folder or has other versions, before anything is
                done; or units failed, once the others are done. The message names them.
            KeyboardInterrupt: on Ctrl-C, with the units stopped as they are by Ctrl-C elsewhere.
        """
        import ray
        from ray.exceptions import RayError

        self._check_machines(shared)
        on_worker = ray.remote(num_cpus=self.cpus, num_gpus=gpus)(_make_on_worker())
        common = _common(shared)
        doing = {
            on_worker.options(name=unit.name).remote(*common, self._pickled(unit)): unit
            for unit in units
        }
        failed: dict[str, BaseException] = {}
        bars = _Bars(progress)
        # Within Ray, a signal would come out as Ctrl-C whatever it was.
        with bars.stack, DeferredInterrupt() as interrupt:
            try:
                while doing:
                    interrupt.raise_pending()
                    done, _ = ray.wait(list(doing), timeout=1.0)
                    for ref in done:
                        unit = doing.pop(ref)
                        bars.close(unit)
                        try:
                            result = ray.get(ref)
                        except RayError as error:
                            failed[unit.name] = getattr(error, "cause", None) or error
                            continue
                        yield result
                    for unit in doing.values():
                        bars.show(unit)
            except BaseException:
                interrupt.is_safe = True  # a second Ctrl-C does not wait for checkpoints
                for ref in doing:
                    ray.cancel(ref)
                if doing:
                    ray.wait(list(doing), num_returns=len(doing), timeout=_STOP_SECONDS)
                raise
        if failed:
            why = "; ".join(f"{k}: {type(e).__name__}: {one_line(e)}" for k, e in failed.items())
            raise ValueError(
                f"{len(failed)} of {len(units)} units failed; what the others did is kept. {why}"
            ) from next(iter(failed.values()))

    def run_one(self, name: str, work: Callable[[], Any], gpus: int = 0) -> Any:
        """Do something that is one unit and leaves no files; arguments as of `Unit` and `run`,
        errors as of `run`."""
        self.n_slots(gpus)
        (result,) = self.run([Unit(name, work, lambda: 0, 1)], Path(), gpus)
        return result

    def _pickled(self, unit: Unit) -> bytes:
        return pickle.dumps(partial(_on_threads, self.cpus, unit.work))

    def _check_machines(self, shared: Path) -> None:
        """Refuse (ValueError) machines that could not do a unit, before hours are spent."""
        import ray
        from ray.exceptions import RayTaskError
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look, common, refs = ray.remote(num_cpus=0)(_make_on_worker()), _common(shared), []
        for node in _machines():
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            refs.append(look.options(scheduling_strategy=there).remote(*common, None))
        try:
            ray.get(refs)
        except RayTaskError as error:
            raise ValueError(one_line(error.cause)) from error


@contextmanager
def connected(address: str, cpus: int = 1) -> Iterator[Cluster]:
    """Be the driver of a Ray cluster for the time of a block.

    Args:
        address: of its head, as "10.0.0.1:6379"; "auto" for the one this machine is part of; or
            `LOCAL`.
        cpus: that a unit of work gets.
    Raises:
        ValueError: Ray is not installed.
        OSError: there is no cluster at the address.
    """
    # A command of ours tells nobody that it runs, and Ray's advice on GPUs of tasks without any
    # concerns none of ours.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "--ray needs Ray, which is not installed: pip install 'sparse_but_wrong[ray]'."
        ) from error
    if ray.is_initialized():  # by the program that this is part of
        yield Cluster(cpus)
        return
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(address, logging_level=logging.WARNING, **options)
    try:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler would not let workers stop
        yield Cluster(cpus)
    finally:
        ray.shutdown()


def _on_threads(n: int, work: Callable[[], Any]) -> Any:
    with threads_per_operation(n):
        return work()


def _common(shared: Path) -> tuple[dict[str, str | None], list[str]]:
    """What a worker has to have: versions, and folders, of which it works in the first."""
    return versions(), [str(Path.cwd()), str(shared.resolve())]


def _machines() -> list[dict[str, Any]]:
    """Those that take work."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def _make_on_worker() -> Callable[[dict[str, str | None], list[str], bytes | None], Any]:
    """What a worker runs. It is pickled with its code, because there may be no package of ours, or
    another one, to import it from."""

    def on_worker(wanted: dict[str, str | None], shared: list[str], work: bytes | None) -> Any:
        import os
        import pickle
        import platform
        from importlib import metadata
        from pathlib import Path

        found = {}
        for name in wanted:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = None
        others = [f"{k} {found[k]}, not {v}" for k, v in wanted.items() if found[k] != v]
        if others:
            raise ValueError(
                f"the worker {platform.node()} has {', '.join(others)}; install there what the "
                "machine has that the command is given on."
            )
        for folder in shared:
            if not Path(folder).is_dir():
                raise ValueError(
                    f"the worker {platform.node()} does not see {folder}; give the command in a "
                    "folder that all machines share under the same path, and name one with --out."
                )
        os.chdir(shared[0])  # so that paths mean the same
        return None if work is None else pickle.loads(work)()

    return on_worker


class _Bars:
    """A progress bar for each unit that has begun."""

    def __init__(self, shown: bool) -> None:
        self.stack = ExitStack()
        self._shown = shown
        self._of: dict[str, tqdm[Any]] = {}

    def show(self, unit: Unit) -> None:
        """Bring the bar of a unit up to date, from when it has done something."""
        n_done = unit.n_done() if self._shown else 0
        if n_done and unit.name not in self._of:
            self._of[unit.name] = self.stack.enter_context(
                tqdm(desc=unit.name, total=unit.n_samples, unit=" samples", unit_scale=True)
            )
        if bar := self._of.get(unit.name):
            bar.update(n_done - bar.n)

    def close(self, unit: Unit) -> None:
        """Take away the bar of a unit that is done."""
        if bar := self._of.pop(unit.name, None):
            bar.leave = False
            bar.close()
