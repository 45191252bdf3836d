"""Sweeps on a cluster: as local ones, whatever happens to workers and to the driver."""

from __future__ import annotations

import _thread
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from ray.cluster_utils import Cluster as Raylets

from sparse_but_wrong.cli.main import cli
from sparse_but_wrong.cluster import sweep, units
from sparse_but_wrong.cluster.units import Cluster, connected
from sparse_but_wrong.experiments import train
from sparse_but_wrong.experiments.analysis import Run
from sparse_but_wrong.experiments.runner import finish_run, resume_run, start_run
from sparse_but_wrong.runs.checkpoint import Checkpoint
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.runs.spec import ExperimentSpec
from sparse_but_wrong.training.state import TrainingState
from tests.experiments import tiny
from tests.experiments.tiny import SETTINGS, TINY

# Ray opens /dev/null for the processes that it starts, and leaves it to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(/dev/null|subprocess .* is still running):ResourceWarning",
    "ignore:.*/dev/null:pytest.PytestUnraisableExceptionWarning",
)

LONG = replace(TINY, training=replace(TINY.training, total_training_samples=64 * 15_000))
"""Long enough to be interrupted."""


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register(monkeypatch)
    monkeypatch.setattr(train, "CHECKPOINT_EVERY_SECONDS", 0.2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The long run, made in this process."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.register(patch)
        return tiny.finished(LONG, tmp_path_factory.mktemp("whole") / "run")


def assert_same(whole: RunFolder, other: RunFolder) -> None:
    """Byte for byte, all that does not say when and how fast it was made."""
    of_run = ["results.csv", "training_curves.csv", "results.parquet", "worlds", "saes", "logs"]
    for place in of_run:
        paths = [p for p in sorted((whole.path / place).rglob("*")) if p.is_file()]
        for file in paths or [whole.path / place]:
            found = other.path / file.relative_to(whole.path)
            assert found.read_bytes() == file.read_bytes(), file
    assert whole.manifest["sha256"] == other.manifest["sha256"]
    assert whole.manifest["steps"] == other.manifest["steps"]
    assert other.checkpoints() == []


def n_samples(folder: Path) -> dict[str, int]:
    """How far the checkpoints of a run are."""
    found = {path.stem: sweep.n_samples(path) for path in folder.glob("checkpoint-*.safetensors")}
    return {name: n for name, n in found.items() if n}


def once_all_train(path: Path, do: Callable[[], object]) -> threading.Thread:
    """Do something once both units of a run have checkpoints."""

    def wait() -> None:
        while len(n_samples(path)) < 2:
            time.sleep(0.05)
        do()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def on_cluster(cluster: Cluster, spec: ExperimentSpec, path: Path) -> Run:
    with resume_run(path) if path.exists() else start_run(spec, path, SETTINGS) as run:
        run.settings = SETTINGS
        return finish_run(run, lambda run: sweep.train_on(cluster, run))


def test_a_sweep_on_a_cluster_equals_a_local_one(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.n_slots(gpus=0) == 2
    local, ours = tmp_path / "local", tmp_path / "ours"
    for place, option in ((local, ""), (ours, "--ray auto")):
        line = f"run tiny --seed 3 --out {place} {option}"
        done = CliRunner().invoke(cli, line.split(), catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert_same(RunFolder.open(local), RunFolder.open(ours))


def test_ctrl_c_stops_all_with_checkpoints_and_the_run_is_finished_without_ray(
    whole: Run, cluster: Cluster, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    before = once_all_train(path, _thread.interrupt_main)
    with pytest.raises(KeyboardInterrupt):
        on_cluster(cluster, LONG, path)
    before.join()
    stopped = n_samples(path)
    assert stopped
    assert max(stopped.values()) < LONG.training.total_training_samples
    time.sleep(0.5)
    assert n_samples(path) == stopped  # nobody is at work any more
    run = tiny.resumed(path)
    assert_same(whole.folder, run.folder)


def test_a_unit_that_fails_is_named_and_the_others_end(
    whole: Run, cluster: Cluster, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with start_run(LONG, path, SETTINGS) as run:
        other = TrainingState({}, 1, [1, 1], [64, 64])  # of a run that was otherwise
        Checkpoint(["c_0.5"], 1.0, other).write(run.folder.checkpoint_path_of("c_0.5"))
        with pytest.raises(ValueError, match=r"1 of 3 .*c_0\.5: .*does not fit"):
            finish_run(run, lambda run: sweep.train_on(cluster, run))
        assert run.folder.finished_saes() == ["c_0.05", "c_2"]
        run.folder.checkpoint_path_of("c_0.5").unlink()
        assert_same(whole.folder, finish_run(run).folder)


def test_machines_that_cannot_take_part_are_refused(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"no machine .*1 GPU"):
        cluster.n_slots(gpus=1)
    with pytest.raises(ValueError, match="does not see"):
        list(cluster.run([], tmp_path / "elsewhere"))
    here = units.versions()
    monkeypatch.setattr(units, "versions", lambda: {**here, "torch": "1.0", "sae-lens": "2.0"})
    with pytest.raises(ValueError, match=rf"sae-lens {here['sae-lens']}, not 2\.0"):
        list(cluster.run([], tmp_path))


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"sparse_but_wrong\[ray\]"), connected("local"):
        pass


def test_a_unit_whose_node_dies_goes_on_elsewhere(
    whole: Run, cluster: Cluster, raylets: Raylets, tmp_path: Path
) -> None:
    path, at_death = tmp_path / "run", dict[str, int]()
    seen: list[dict[str, int]] = []

    def kill() -> None:
        at_death.update(n_samples(path))
        raylets.remove_node(next(iter(raylets.worker_nodes)), allow_graceful=False)
        while n_samples(path):
            seen.append(n_samples(path))
            time.sleep(0.05)

    thread = once_all_train(path, kill)
    run = on_cluster(cluster, LONG, path)
    thread.join(timeout=10)
    assert_same(whole.folder, run.folder)
    # Nothing was trained again from its start: no checkpoint was ever behind the one before.
    assert set(at_death) == {"checkpoint-c_0.05", "checkpoint-c_0.5"}
    for name, n_first in at_death.items():
        of_unit = [n[name] for n in seen if name in n]
        assert n_first > 0
        assert of_unit == sorted(of_unit)
    assert cluster.n_slots(gpus=0) == 1
