"""`sbw run` on stored activations: trained, scored on what is held out, drawn, resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from sparse_but_wrong.activations.shuffled import ShuffledActivations
from sparse_but_wrong.activations.stored import open_activations
from sparse_but_wrong.experiments.analysis import RunSettings
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.runs.spec import ActivationsSpec, ExperimentSpec, SAESpec
from sparse_but_wrong.runs.stored_world import StoredWorld, fingerprint
from sparse_but_wrong.training.loop import Training
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.untrusted import sha256
from tests.experiments.tiny import finished, resumed, started

SETTINGS = RunSettings(seed=1, progress=False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of 10 features in 8 dimensions, in bfloat16."""
    folder = tmp_path_factory.mktemp("shards")
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(10, 8, generator=generator), dim=1)
    for i, n in enumerate((1500, 900, 1600)):
        fires = (torch.rand(n, 10, generator=generator) < 0.2).float()
        save_file({"activations": (5 * fires @ rows).bfloat16()}, folder / f"shard-{i}.safetensors")
    return folder


def spec_of(shards: Path) -> ExperimentSpec:
    return ExperimentSpec(
        name="stored",
        title="Stored activations",
        claim="none",
        worlds={"acts": ActivationsSpec(str(shards))},
        saes=tuple(
            SAESpec(
                f"k_{k}",
                "batchtopk",
                {"d_sae": 16, "k": k, "normalize_activations": "expected_average_only_in"},
                world="acts",
                factors={"k": k},
            )
            for k in (1, 2, 4)
        ),
        training=TrainOptions(
            total_training_samples=200 * 64,
            train_batch_size_samples=64,
            n_batches_for_norm_estimate=10,
            lr=3e-3,
            log_every=50,
        ),
        evaluation_samples=800,
        projection_n=(4, 6),
        analysis="activations",
    )


def test_what_a_run_on_activations_leaves_behind(shards: Path, tmp_path: Path) -> None:
    spec = spec_of(shards)
    run = finished(spec, tmp_path / "run", SETTINGS)
    table = pd.read_parquet(tmp_path / "run/results.parquet")
    assert table["sae_id"].tolist() == ["k_1", "k_2", "k_4"]
    assert table["n_samples"].tolist() == [800] * 3
    assert table["n_batches"].tolist() == [16] * 3
    # The row is what measuring the saved SAE on the held-out samples gives, s_n for every n.
    world = StoredWorld(str(shards), None, 800)
    found = evaluate(run.saes["k_2"], world.held_out())
    row = table.set_index("sae_id").loc["k_2"]
    assert row["l0"] == pytest.approx(found.l0, rel=1e-12)
    assert row["s_7"] == pytest.approx(found.projections[7])
    assert row["variance_explained"] > 0.5
    assert run.verdict.checks == ()
    assert "find-l0" in run.verdict.remarks[0]
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["true_l0"] == {}
    for name in ("overview", "projections/s_4", "training_curves"):
        assert (tmp_path / f"run/plots/{name}.png").is_file()
    assert "k_4" in (tmp_path / "run/report.html").read_text(encoding="utf-8")


def test_held_out_samples_are_not_trained_on(shards: Path) -> None:
    world = StoredWorld(str(shards), None, 800)
    stream = world.stream(64, 0)
    seen = torch.cat([next(stream) for _ in range(50)])
    assert len(seen) == 3200
    held_out = torch.cat(list(world.held_out()))
    together = torch.cat([seen, held_out]).sort(0).values
    everything = world.stored.read(0, 4000).float().sort(0).values
    assert torch.equal(together, everything)


def test_an_interrupted_run_ends_as_one_that_was_not(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(shards)
    finished(spec, tmp_path / "whole", SETTINGS)
    started(spec, tmp_path / "cut", SETTINGS)

    original = ShuffledActivations.__next__
    drawn = []

    def stops(self: ShuffledActivations) -> torch.Tensor:
        drawn.append(0)
        if len(drawn) > 90:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(ShuffledActivations, "__next__", stops)
    with pytest.raises(KeyboardInterrupt):
        resumed(tmp_path / "cut")
    assert (tmp_path / "cut/checkpoint.safetensors").exists()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    resumed(tmp_path / "cut")
    for sae_id in ("k_1", "k_2", "k_4"):
        a, b = (
            load_file(RunFolder.open(tmp_path / name).sae_path(sae_id) / "sae_weights.safetensors")
            for name in ("whole", "cut")
        )
        for name, tensor in a.items():
            assert torch.equal(tensor, b[name]), (sae_id, name)


def test_other_activations_than_at_the_start_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "acts.npy", np.ones((400, 8), dtype=np.float32))
    world = StoredWorld(str(tmp_path / "acts.npy"), None, 100)
    world.save(tmp_path / "world")
    assert StoredWorld.load(tmp_path / "world").d_in == 8
    np.save(tmp_path / "acts.npy", np.ones((500, 8), dtype=np.float32))
    with pytest.raises(ValueError, match="has 500 samples of width 8, but had 400 of width 8"):
        StoredWorld.load(tmp_path / "world")
    (tmp_path / "world/activations.json").write_text("{}")
    with pytest.raises(ValueError, match=r"activations\.json is damaged"):
        StoredWorld.load(tmp_path / "world")


def npy(path: Path, seed: int) -> Path:
    np.save(path, np.random.default_rng(seed).normal(size=(4000, 8)).astype("float32"))
    return path


def test_a_run_goes_on_with_the_activations_it_was_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = npy(tmp_path / "acts.npy", 0)
    spec = spec_of(file)
    folder = started(spec, tmp_path / "run", SETTINGS)
    with monkeypatch.context() as patch:
        draw = ShuffledActivations.__next__
        drawn: list[int] = []

        def stops(self: ShuffledActivations) -> torch.Tensor:
            drawn.append(0)
            if len(drawn) > 60:
                raise KeyboardInterrupt
            return draw(self)

        patch.setattr(ShuffledActivations, "__next__", stops)
        with pytest.raises(KeyboardInterrupt):
            resumed(folder.path)
    assert folder.checkpoint_path.exists()
    npy(file, 1)
    monkeypatch.setattr(Training, "run", lambda *_, **__: pytest.fail("trained on other data"))
    with pytest.raises(ValueError, match=r"acts\.npy have changed since"):
        resumed(folder.path)
    # Nor does it help to have the world made again.
    shutil.rmtree(folder.world_path("acts"))
    with pytest.raises(ValueError, match="not the world that the run was started with"):
        resumed(folder.path)


def test_runs_from_before_there_were_fingerprints_go_on(tmp_path: Path) -> None:
    file = npy(tmp_path / "acts.npy", 0)
    StoredWorld(str(file), None, 100).save(tmp_path / "world")
    saved = tmp_path / "world/activations.json"
    facts = json.loads(saved.read_text())
    del facts["fingerprint"], facts["listed_sha256"]
    saved.write_text(json.dumps(facts))
    assert StoredWorld.load(tmp_path / "world").n_held_out == 100


@pytest.mark.parametrize("at", [130, 64_000, -3])
def test_a_fingerprint_sees_start_middle_and_end(tmp_path: Path, at: int) -> None:
    file = npy(tmp_path / "acts.npy", 0)
    before = fingerprint(open_activations(file))
    assert fingerprint(open_activations(file)) == before
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    assert fingerprint(open_activations(file)) != before


def test_a_fingerprint_tells_datasets_apart(tmp_path: Path) -> None:
    found = set()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        rows = np.random.default_rng(seed).normal(size=(50, 8)).astype("float32").tolist()
        Dataset.from_dict({"acts": rows}).save_to_disk(str(tmp_path / name))
        found.add(fingerprint(open_activations(tmp_path / name)))
    assert len(found) == 2


def test_the_checksums_of_a_cache_count_where_they_are_there(shards: Path, tmp_path: Path) -> None:
    """They cover all of it, not pieces only; a cache that got them since is still the same."""
    cache = tmp_path / "cache"
    shutil.copytree(shards, cache)

    files = sorted(cache.glob("*.safetensors"))

    def listed(with_sums: bool) -> None:
        entries = [
            {"file": file.name, "n_samples": n, "bytes": file.stat().st_size}
            | ({"sha256": sha256(file)} if with_sums else {})
            for file, n in zip(files, (1500, 900, 1600), strict=True)
        ]
        manifest = {"format": "sparse_but_wrong activations", "format_version": 1, "d_in": 8}
        (cache / "manifest.json").write_text(json.dumps({**manifest, "shards": entries}))

    listed(False)
    StoredWorld(str(cache), None, 100).save(tmp_path / "before")
    listed(True)
    StoredWorld(str(cache), None, 100).save(tmp_path / "after")
    assert StoredWorld.load(tmp_path / "before").d_in == 8
    # One number that no sampled piece holds need not be seen; the sums cover it.
    content = bytearray(files[1].read_bytes())
    content[len(content) // 2 + 5] ^= 1
    files[1].write_bytes(content)
    listed(True)
    with pytest.raises(ValueError, match="have changed since"):
        StoredWorld.load(tmp_path / "after")


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


def test_a_spec_is_read_back_as_it_was_written(shards: Path) -> None:
    spec = spec_of(shards)
    assert ExperimentSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(ValueError, match=r"worlds.acts.colunm is not a field"):
        ExperimentSpec.from_dict(
            {
                **spec.to_dict(),
                "worlds": {"acts": {"activations": "x", "colunm": "y"}},
            }
        )
