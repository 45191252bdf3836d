"""`sbw run` on stored activations: trained, evaluated on what is held out, drawn, resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from sparse_but_wrong.activations.shuffled import ShuffledActivations
from sparse_but_wrong.activations.stored import open_activations
from sparse_but_wrong.experiments.analysis import Run, RunSettings
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.runs.spec import ActivationsSpec, ExperimentSpec, SAESpec
from sparse_but_wrong.runs.stored_world import StoredWorld, fingerprint
from sparse_but_wrong.training.loop import Training
from sparse_but_wrong.training.options import TrainOptions
from tests.activations.caches import write_cache
from tests.experiments.tiny import finished, resumed, started

SETTINGS = RunSettings(seed=1, progress=False)
SIZES = (1500, 900, 1600)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of 10 features in 8 dimensions, in bfloat16."""
    folder = tmp_path_factory.mktemp("shards")
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(10, 8, generator=generator), dim=1)
    for i, n in enumerate(SIZES):
        fires = (torch.rand(n, 10, generator=generator) < 0.2).float()
        save_file({"activations": (5 * fires @ rows).bfloat16()}, folder / f"shard-{i}.safetensors")
    return folder


def spec_of(activations: Path) -> ExperimentSpec:
    config = {"d_sae": 16, "normalize_activations": "expected_average_only_in"}
    inits: tuple[Literal["random", "mean"], ...] = ("random", "mean", "random")
    saes = (
        SAESpec(
            f"k_{k}", "batchtopk", {**config, "k": k}, world="acts", factors={"k": k}, init=init
        )
        for k, init in zip((1, 2, 4), inits, strict=True)
    )
    training = TrainOptions(
        total_training_samples=200 * 64,
        train_batch_size_samples=64,
        n_batches_for_norm_estimate=10,
        lr=3e-3,
        log_every=50,
    )
    return ExperimentSpec(
        name="stored",
        title="Stored activations",
        claim="none",
        worlds={"acts": ActivationsSpec(str(activations))},
        saes=tuple(saes),
        training=training,
        evaluation_samples=800,
        projection_n=(4, 6),
        analysis="activations",
    )


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return finished(spec_of(shards), tmp_path_factory.mktemp("whole") / "run", SETTINGS)


def cut(spec: ExperimentSpec, path: Path, n_drawn: int) -> RunFolder:
    """A run that was stopped after drawing so many batches, and 256 before to start at the mean."""
    started(spec, path, SETTINGS)
    draw, drawn = ShuffledActivations.__next__, []

    def stops(self: ShuffledActivations) -> torch.Tensor:
        drawn.append(0)
        if len(drawn) > 256 + n_drawn:
            raise KeyboardInterrupt
        return draw(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShuffledActivations, "__next__", stops)
        with pytest.raises(KeyboardInterrupt):
            resumed(path)
    folder = RunFolder.open(path)
    assert folder.checkpoint_path.exists()
    return folder


def test_what_a_run_on_activations_leaves_behind(whole: Run, shards: Path) -> None:
    path = whole.folder.path
    table = pd.read_parquet(path / "results.parquet")
    assert table["sae_id"].tolist() == ["k_1", "k_2", "k_4"]
    assert table["n_samples"].tolist() == [800] * 3
    assert table["n_batches"].tolist() == [16] * 3
    # The row is what measuring the saved SAE on the held-out samples gives, s_n for every n.
    found = evaluate(whole.saes["k_2"], StoredWorld(str(shards), None, 800).held_out())
    row = table.set_index("sae_id").loc["k_2"]
    assert row["l0"] == pytest.approx(found.l0, rel=1e-12)
    assert row["s_7"] == pytest.approx(found.projections[7])
    assert row["variance_explained"] > 0.5
    assert whole.verdict.checks == ()
    assert "find-l0" in whole.verdict.remarks[0]
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["status"], manifest["true_l0"]) == ("finished", {})
    for name in ("overview", "projections/s_4", "training_curves"):
        assert (path / f"plots/{name}.png").is_file()
    assert "k_4" in (path / "report.html").read_text(encoding="utf-8")


def test_held_out_samples_are_not_trained_on_and_few_come_from_all_blocks(shards: Path) -> None:
    world = StoredWorld(str(shards), None, 800)
    stream = world.stream(64, 0)
    seen = torch.cat([next(stream) for _ in range(50)])
    assert len(seen) == 3200
    blocks = list(world.held_out())
    together = torch.cat([seen, *blocks]).sort(0).values
    assert torch.equal(together, world.stored.read(0, 4000).float().sort(0).values)
    few = list(world.held_out(24))
    assert [len(block) for block in few] == [1, 2] * 8
    assert all(torch.equal(a[: len(b)], b) for a, b in zip(blocks, few, strict=True))
    assert [len(block) for block in world.held_out(3)] == [1, 1, 1]
    assert sum(map(len, world.held_out(10_000))) == 800


def test_an_interrupted_run_ends_as_one_that_was_not(
    whole: Run, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cut(spec_of(shards), tmp_path / "cut", 90)
    monkeypatch.chdir(tmp_path)
    resumed(folder.path)
    for sae_id in ("k_1", "k_2", "k_4"):
        a, b = (
            load_file(of.sae_path(sae_id) / "sae_weights.safetensors")
            for of in (whole.folder, folder)
        )
        for name, tensor in a.items():
            assert torch.equal(tensor, b[name]), (sae_id, name)


def test_a_run_that_moved_with_its_activations_goes_on(whole: Run, tmp_path: Path) -> None:
    was, now = tmp_path / "was", tmp_path / "now"
    was.mkdir()
    cut(spec_of(npy(was / "acts.npy", 0)), was / "run", 60)
    was.rename(now)
    assert resumed(now / "run").saes.keys() == whole.saes.keys()
    (now / "acts.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"was/acts\.npy"):
        resumed(now / "run")


def npy(path: Path, seed: int, n_samples: int = 4000) -> Path:
    np.save(path, np.random.default_rng(seed).normal(size=(n_samples, 8)).astype("float32"))
    return path


def test_other_activations_than_at_the_start_are_refused(tmp_path: Path) -> None:
    file = npy(tmp_path / "acts.npy", 0, 400)
    StoredWorld(str(file), None, 100).save(tmp_path / "world")
    assert StoredWorld.load(tmp_path / "world").d_in == 8
    npy(file, 0, 500)
    with pytest.raises(ValueError, match="has 500 samples of width 8, but had 400 of width 8"):
        StoredWorld.load(tmp_path / "world")
    saved = json.loads((tmp_path / "world/activations.json").read_text())
    for broken in ({}, {**saved, "held_out": "5"}, {**saved, "column": 3}):
        (tmp_path / "world/activations.json").write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=r"activations\.json is damaged .*--resume"):
            StoredWorld.load(tmp_path / "world")


def test_a_run_goes_on_with_the_activations_it_was_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = npy(tmp_path / "acts.npy", 0)
    folder = cut(spec_of(file), tmp_path / "run", 60)
    npy(file, 1)
    monkeypatch.setattr(Training, "run", lambda *_, **__: pytest.fail("trained on other data"))
    with pytest.raises(ValueError, match=r"acts\.npy have changed since"):
        resumed(folder.path)
    # Nor does it help to have the world made again.
    shutil.rmtree(folder.world_path("acts"))
    with pytest.raises(ValueError, match="not the world that the run was started with"):
        resumed(folder.path)


@pytest.mark.parametrize("at", [130, 64_000, -3])
def test_a_fingerprint_sees_start_middle_and_end(tmp_path: Path, at: int) -> None:
    file = npy(tmp_path / "acts.npy", 0)
    before = fingerprint(open_activations(file))
    assert fingerprint(open_activations(file)) == before
    flip(file, at)
    assert fingerprint(open_activations(file)) != before


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def test_a_fingerprint_tells_datasets_apart(tmp_path: Path) -> None:
    found = set()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        rows = np.random.default_rng(seed).normal(size=(50, 8)).astype("float32").tolist()
        Dataset.from_dict({"acts": rows}).save_to_disk(str(tmp_path / name))
        found.add(fingerprint(open_activations(tmp_path / name)))
    assert len(found) == 2


def test_the_checksums_of_a_cache_count(tmp_path: Path) -> None:
    """They cover all of it, not pieces only."""
    rows = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    cache = write_cache(tmp_path / "cache", *rows.split(list(SIZES)))
    StoredWorld(str(cache), None, 100).save(tmp_path / "world")
    assert StoredWorld.load(tmp_path / "world").d_in == 8
    # One number that no sampled piece holds need not be seen; the sums cover it.
    rows[2000, 4] += 1
    write_cache(cache, *rows.split(list(SIZES)))
    with pytest.raises(ValueError, match="have changed since"):
        StoredWorld.load(tmp_path / "world")


def test_the_home_folder_may_be_written_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npy(tmp_path / "acts.npy", 0)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert StoredWorld("~/acts.npy", None, 100).where == str((tmp_path / "acts.npy").resolve())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"analysis": "sweep"}, "analysis: activations"),
        ({"saes": ()}, "has no SAEs"),
        ({"worlds": {"acts": ActivationsSpec("missing.npy")}}, "missing.npy"),
        ({"evaluation_samples": 3000}, "3,000 cannot be held out"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    shards: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    spec = replace(spec_of(shards), **change)  # type: ignore[arg-type]
    with pytest.raises((ValueError, OSError), match=message):
        started(spec, tmp_path / "run", SETTINGS)
    assert not (tmp_path / "run").exists()
