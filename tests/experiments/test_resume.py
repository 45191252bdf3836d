"""Stopped, damaged and full: a run that is resumed ends as one that never was."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors import SafetensorError

from sparse_but_wrong.experiments import train
from sparse_but_wrong.experiments.analysis import Run
from sparse_but_wrong.experiments.runner import finish_run, resume_run, start_run
from sparse_but_wrong.report.run import write_report
from sparse_but_wrong.runs.checkpoint import Checkpoint
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.runs.spec import ExperimentSpec
from sparse_but_wrong.training.loop import Training
from sparse_but_wrong.worlds.world import ToyWorld
from tests.experiments.tiny import (
    SETTINGS,
    TINY,
    assert_same_weights,
    finished,
    interrupt,
    resumed,
    started,
)

Patch = pytest.MonkeyPatch


def spied(monkeypatch: Patch, name: str, see: Callable[..., Any]) -> list[Any]:
    """What is seen of the arguments of a method of Training, at each call and after it."""
    original, seen = getattr(Training, name), []

    def method(self: Training, *rest: Any, **named: Any) -> None:
        original(self, *rest, **named)
        seen.append(see(self, *rest))

    monkeypatch.setattr(Training, name, method)
    return seen


def kill(spec: ExperimentSpec, path: Path) -> RunFolder:
    """A run whose process is killed after its third checkpoint, in the middle of writing."""
    original, written = Checkpoint.write, []

    def write(self: Checkpoint, path: Path) -> None:
        original(self, path)
        written.append(path)
        if len(written) == 3:
            raise SystemError("as if killed")  # nothing after this line runs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "CHECKPOINT_EVERY_SECONDS", 0.0)
        patch.setattr(Checkpoint, "write", write)
        with pytest.raises(SystemError):
            finished(spec, path)
    # What such a process leaves behind (tests/test_atomic.py):
    (path / "saes/.unfinished-1").mkdir(parents=True)
    (path / ".unfinished-2.safetensors").write_bytes(b"half")
    return RunFolder.open(path)


@pytest.mark.parametrize("stop", [interrupt, kill])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    stop: Callable[[ExperimentSpec, Path], RunFolder],
    whole: Run,
    tmp_path: Path,
    monkeypatch: Patch,
) -> None:
    folder = stop(TINY, tmp_path / "run")
    n_samples = Checkpoint.read(folder.checkpoint_path).state.n_samples
    assert not folder.has_sae("c_0.5")
    n_first = spied(monkeypatch, "load_state", lambda training, _: training.n_samples)
    again = resumed(folder.path)
    assert again.spec == TINY
    assert n_first[0] == min(n_samples) > 0
    assert_same_weights(whole.folder, again.folder)
    pd.testing.assert_frame_equal(whole.table, again.table)
    pd.testing.assert_frame_equal(whole.curves, again.curves)
    assert not list(folder.path.rglob(".unfinished-*"))


def test_a_run_in_use_is_left_alone(tmp_path: Path, monkeypatch: Patch) -> None:
    """From before there is a manifest to be taken up, until the last file is written."""
    original = ToyWorld.save

    def save(self: ToyWorld, folder: Path) -> None:
        original(self, folder)
        with pytest.raises(ValueError, match="another process"):
            resumed(tmp_path / "new")

    monkeypatch.setattr(ToyWorld, "save", save)
    with start_run(TINY, tmp_path / "new", SETTINGS) as run:
        for at_work in (resumed, partial(started, TINY)):
            with pytest.raises((ValueError, OSError), match=r"another process|--resume"):
                at_work(tmp_path / "new")
        finish_run(run)
    with resume_run(tmp_path / "new"), pytest.raises(ValueError, match="another process"):
        resumed(tmp_path / "new")


def flip(file: Path) -> None:
    """Change a bit of a number, so that the file looks whole."""
    content = bytearray(file.read_bytes())
    at = -8
    if file.suffix == ".json":
        at = max(i for i, byte in enumerate(content) if chr(byte).isdigit())
    content[at] ^= 1
    file.write_bytes(content)


def halve(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("damage", [flip, halve])
@pytest.mark.parametrize(
    "file",
    [
        "worlds/world/features.safetensors",
        "worlds/world/toy_model/toy_model.safetensors",
        "saes/c_0.5/sae_weights.safetensors",
        "saes/c_0.5/cfg.json",
        "logs/c_0.5.json",
    ],
)
def test_damage_is_named_before_training_and_what_is_deleted_is_made_again(
    whole: Run, copy: RunFolder, file: str, damage: Callable[[Path], None], monkeypatch: Patch
) -> None:
    damage(copy.path / file)
    message = rf"{re.escape(file)} is damaged .* delete (\S+) and --resume"
    if file.startswith("saes"):
        with pytest.raises(ValueError, match=message):
            write_report(copy)
    shutil.rmtree(copy.sae_path("c_2"))  # so that there is something to train
    with monkeypatch.context() as patch:
        patch.setattr(Training, "run", lambda *_: pytest.fail("trained before looking"))
        with pytest.raises(ValueError, match=message) as refused:
            resumed(copy.path)
    if damage is halve:
        return
    found = re.search(r"delete (\S+) and", str(refused.value))
    assert found
    shutil.rmtree(found[1])
    resumed(copy.path)
    before = (whole.folder.path / "results.csv").read_bytes()
    assert (copy.path / "results.csv").read_bytes() == before
    assert_same_weights(whole.folder, copy)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    folder = interrupt(TINY, tmp_path / "run")
    assert Checkpoint.read(folder.checkpoint_path).sae_ids == ["c_0.05", "c_0.5", "c_2"]
    content = folder.checkpoint_path.read_bytes()
    for damage in (flip, halve):
        folder.checkpoint_path.write_bytes(content)
        damage(folder.checkpoint_path)
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged .*delete it"):
            resumed(folder.path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"evaluation_samples"', '"evaluation_sample"', "evaluation_sample is not a field"),
        ('"d_in": 8,', "", r"worlds\.world\.d_in is missing"),
        ('"timings": {', '"timing": {', "timings"),
    ],
)
def test_a_spec_that_is_damaged_is_named(old: str, new: str, message: str, copy: RunFolder) -> None:
    manifest = copy.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"manifest\.json.*{message}"):
        resumed(copy.path)
    manifest.unlink()
    with pytest.raises(FileNotFoundError, match="there is no run in"):
        resumed(copy.path)


def test_a_run_without_checksums_is_taken_up_and_gets_them(copy: RunFolder) -> None:
    sums = copy.manifest.pop("sha256")
    copy.write_manifest()
    again = resumed(copy.path).folder.manifest["sha256"]
    assert {"logs/c_2.json", "saes/c_2/cfg.json", "results.parquet"} <= set(again)
    assert again == sums


def test_a_finished_run_that_lost_an_sae_trains_that_one_again(
    whole: Run, copy: RunFolder, monkeypatch: Patch
) -> None:
    assert copy.finished_saes() == ["c_0.05", "c_0.5", "c_2"]
    shutil.rmtree(copy.sae_path("c_0.5"))
    kept = (copy.sae_path("c_2") / "sae_weights.safetensors").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"c_0\.5 .*missing.*--resume"):
        write_report(copy)
    # Until it is trained again, the run is one that is not finished.
    again = interrupt(TINY, copy.path, 64)
    assert again.manifest["status"] == "unfinished"
    assert again.finished_saes() == ["c_0.05", "c_2"]
    trained = spied(monkeypatch, "__init__", lambda _, saes, *__: len(saes))
    resumed(copy.path)
    assert trained == [1]
    assert (copy.sae_path("c_2") / "sae_weights.safetensors").stat().st_mtime_ns == kept
    assert_same_weights(whole.folder, copy)


@pytest.mark.parametrize(
    ("owner", "through"),
    [(Checkpoint, "write"), (RunFolder, "save_sae"), (RunFolder, "write_table")],
)
def test_a_full_disk_is_said_with_what_is_kept(
    owner: type, through: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    def full(*_: object) -> None:
        if through == "save_sae":  # which sae_lens writes with safetensors
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train, "CHECKPOINT_EVERY_SECONDS", 0.0)
    started(TINY, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(owner, through, full)
        with pytest.raises(OSError, match=r"disk of .*run is full.* kept.*--resume"):
            resumed(tmp_path / "run")
    resumed(tmp_path / "run")
