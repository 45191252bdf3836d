"""On a real cluster of two raylets: what one process gives, whatever happens to workers."""

from __future__ import annotations

import _thread
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from ray.cluster_utils import Cluster as Raylets

from sparse_but_wrong.activations import cache
from sparse_but_wrong.cli.main import cli
from sparse_but_wrong.cluster import sweep, units
from sparse_but_wrong.cluster.units import Cluster, connected
from sparse_but_wrong.experiments import registry, runner, train
from sparse_but_wrong.experiments.analysis import Run
from sparse_but_wrong.experiments.runner import finish_run, start_run
from sparse_but_wrong.runs.checkpoint import Checkpoint
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.training.state import TrainingState
from tests.activations.caches import Written
from tests.activations.tiny_model import make_tiny_model, write_text
from tests.experiments import tiny
from tests.experiments.tiny import SETTINGS, TINY

# Ray leaves the processes that it starts, and /dev/null for them, to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed file .*/dev/null:ResourceWarning",
    "ignore:subprocess .* is still running:ResourceWarning",
)

LONG = replace(TINY, training=replace(TINY.training, total_training_samples=64 * 12_000))
"""Long enough to be interrupted."""
NO_FIGURES = replace(tiny.ANALYSIS, draw=lambda _: {})

NODE: Any = {"num_cpus": 1, "object_store_memory": 80 * 10**6, "include_dashboard": False}
# Or it takes half a minute until the head is sure that a node is gone.
QUICK = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def raylets() -> Iterator[Raylets]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = Raylets(True, head_node_args={**NODE, "_system_config": QUICK})
        yield started
        started.shutdown()


@pytest.fixture(scope="module")
def cluster(raylets: Raylets) -> Iterator[Cluster]:
    """This process as the driver, for all tests: workers are slow to start."""
    with connected(str(raylets.address)) as driver:
        yield driver


@pytest.fixture(autouse=True)
def _two_machines(raylets: Raylets) -> None:
    if not raylets.worker_nodes:  # it has died, or is the first
        raylets.add_node(**NODE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The long run, made in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(runner.ANALYSES, "tiny", NO_FIGURES)
        return tiny.finished(LONG, tmp_path_factory.mktemp("whole") / "run").folder


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry.EXPERIMENTS, "tiny", LONG)
    monkeypatch.setitem(runner.ANALYSES, "tiny", NO_FIGURES)
    monkeypatch.setattr(train, "CHECKPOINT_EVERY_SECONDS", 0.2)


def sbw(line: str) -> None:
    done = CliRunner().invoke(cli, line.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output


def on(cluster: Cluster, path: Path) -> Run:
    """A run from its start to its end."""
    with start_run(LONG, path, SETTINGS) as run:
        return finish_run(run, partial(sweep.train_on, cluster))


def assert_same(whole: RunFolder, path: Path) -> None:
    """Byte for byte, but for what says when and how fast it was made."""
    then, now = RunFolder.open(whole.path).manifest, RunFolder.open(path).manifest
    tables = [whole.path / f"{name}.csv" for name in ("results", "training_curves", "widths")]
    folders = [whole.path / name for name in ("worlds", "saes", "logs")]
    files = [*tables, *(p for folder in folders for p in folder.rglob("*") if p.is_file())]
    assert len(files) > 12
    for file in files:
        assert (path / file.relative_to(whole.path)).read_bytes() == file.read_bytes(), file
    for what in ("sha256", "steps", "verdict", "spec"):
        assert then[what] == now[what]
    assert list(path.glob("checkpoint*")) == []


def n_samples(folder: Path) -> dict[str, int]:
    """How far the checkpoints of a run are."""
    found = {path.stem: sweep.n_samples(path) for path in folder.glob("checkpoint-*.safetensors")}
    return {name: n for name, n in found.items() if n}


def once_both_train(path: Path, do: Callable[[], object]) -> threading.Thread:
    """Do something once both units of a run have checkpoints."""

    def wait() -> None:
        while len(n_samples(path)) < 2:
            time.sleep(0.05)
        do()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_sweep_is_as_a_local_one(cluster: Cluster, whole: RunFolder) -> None:
    assert cluster.n_slots(gpus=0) == 2
    sbw("run tiny --seed 3 --out run --ray auto")
    assert_same(whole, Path("run"))


def test_ctrl_c_leaves_checkpoints_and_the_run_is_finished_without_ray(
    cluster: Cluster, whole: RunFolder
) -> None:
    path = Path("run").resolve()
    before = once_both_train(path, _thread.interrupt_main)
    with pytest.raises(KeyboardInterrupt):
        on(cluster, path)
    before.join()
    stopped = n_samples(path)
    assert stopped
    assert max(stopped.values()) < LONG.training.total_training_samples
    time.sleep(0.5)
    assert n_samples(path) == stopped  # nobody is at work any more
    sbw(f"run tiny --out {path} --resume")
    assert_same(whole, path)


def test_a_unit_that_fails_is_named_the_others_end_and_paper_does_the_rest(
    cluster: Cluster, whole: RunFolder
) -> None:
    path = Path("papers/tiny")
    with start_run(LONG, path, SETTINGS) as run:
        other = TrainingState({}, 1, [1, 1], [64, 64])  # of a run that was otherwise
        bad = run.folder.checkpoint_path_of("c_0.5")
        Checkpoint(["c_0.5"], 1.0, other).write(bad)
        with pytest.raises(ValueError, match=r"1 of 3 .*c_0\.5: .*does not fit"):
            finish_run(run, partial(sweep.train_on, cluster))
    assert run.folder.finished_saes() == ["c_0.05", "c_2"]
    bad.unlink()
    sbw("paper tiny --seed 3 --out papers --ray auto")
    assert_same(whole, path)


CACHE = (
    "cache-activations --model model --hook model.layers.0 --text text --context-size 16 "
    "--batch-size 3 --dtype float32 --skip-positions 1"
)


@pytest.fixture
def _model_and_text(monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_model(Path("model"))
    write_text(Path("text"), n_words=4_000)
    # Shards of 9 sequences; where the last is cut, the driver finds out.
    small: Any = partial(cache.cache_activations, samples_per_shard=130)
    monkeypatch.setattr(cache, "cache_activations", small)


def assert_same_cache(alone: Written, together: Written) -> None:
    assert together.files == alone.files
    assert together.manifest | {"provenance": None} == alone.manifest | {"provenance": None}


@pytest.mark.usefixtures("_model_and_text")
def test_a_cache_is_as_a_local_one(cluster: Cluster) -> None:
    assert cluster.cpus == 1
    sbw(f"{CACHE} --tokens 600 --out alone")
    sbw(f"{CACHE} --tokens 600 --out together --ray auto")
    alone = Written(Path("alone"))
    assert len(alone.files) == 5
    assert_same_cache(alone, Written(Path("together")))


def test_a_search_is_done_by_a_worker(cluster: Cluster, whole: RunFolder) -> None:
    assert cluster.cpus == 1
    with pytest.raises(ValueError, match=r"find-l0: .*no 'mars'.* world"):
        sbw(f"find-l0 {whole.path} --world mars --ray auto")
    assert not Path("runs").exists()
    started = shutil.copytree(whole.path, "run")
    for sae_id in ("c_0.05", "c_2"):  # a search takes as long as there are SAEs
        shutil.rmtree(Path("run/saes", sae_id))
    manifest = whole.manifest | {"status": "unfinished"}
    Path(started, "manifest.json").write_text(json.dumps(manifest))
    sbw("find-l0 run --out found --ray auto")
    (row,) = pd.read_csv("found/sweep.csv").to_dict("records")
    trained = pd.read_csv("run/results.csv").set_index("sae_id")
    assert row["l0"] == pytest.approx(trained.loc["c_0.5", "l0"], rel=0.05)


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


def kill_a_machine(raylets: Raylets) -> None:
    raylets.remove_node(next(iter(raylets.worker_nodes)), allow_graceful=False)


def test_a_unit_whose_machine_dies_goes_on_elsewhere(
    cluster: Cluster, raylets: Raylets, whole: RunFolder
) -> None:
    path, at_death = Path("run").resolve(), dict[str, int]()
    seen: list[dict[str, int]] = []

    def kill() -> None:
        at_death.update(n_samples(path))
        kill_a_machine(raylets)
        while n_samples(path):
            seen.append(n_samples(path))
            time.sleep(0.05)

    thread = once_both_train(path, kill)
    on(cluster, path)
    thread.join(timeout=10)
    assert_same(whole, path)
    # Nothing was trained again from its start: no checkpoint was ever behind the one before.
    assert set(at_death) == {"checkpoint-c_0.05", "checkpoint-c_0.5"}
    for name, n_first in at_death.items():
        of_unit = [n_first, *(n[name] for n in seen if name in n)]
        assert of_unit == sorted(of_unit)
    assert cluster.n_slots(gpus=0) == 1


@pytest.mark.usefixtures("_model_and_text")
def test_a_part_of_a_cache_whose_machine_dies_goes_on_elsewhere(
    cluster: Cluster, raylets: Raylets
) -> None:
    assert cluster.n_slots(gpus=0) == 2
    parts, at_death = Path("together/.parts").resolve(), list[int]()

    def kill() -> None:
        while len(list(parts.glob("*/*00001.safetensors"))) < 2:
            time.sleep(0.01)
        kill_a_machine(raylets)
        at_death.extend(file.stat().st_mtime_ns for file in parts.glob("*/*.safetensors"))

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    sbw(f"{CACHE} --tokens 20_000 --out together --ray auto")
    thread.join(timeout=10)
    sbw(f"{CACHE} --tokens 20_000 --out alone")
    alone = Written(Path("alone"))
    assert_same_cache(alone, Written(Path("together")))
    # What both had written by then was neither lost nor made again.
    assert 4 <= len(at_death) < len(alone.files) - 1
    assert set(at_death) <= {file.stat().st_mtime_ns for file in Path("together").iterdir()}
