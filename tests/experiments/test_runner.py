"""The runner: what a run folder holds, and that resuming changes nothing."""

from __future__ import annotations

import errno
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sae_lens
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from sparse_but_wrong.experiments import registry, runner
from sparse_but_wrong.experiments.analysis import NamedFigure, Results, evaluation_samples
from sparse_but_wrong.experiments.runner import (
    RunSettings,
    finish_run,
    resume_run,
    start_run,
)
from sparse_but_wrong.experiments.verdict import Check, Verdict
from sparse_but_wrong.metrics.score import score_sae
from sparse_but_wrong.report.write import write_report
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.runs.spec import ONLY_WORLD, ExperimentSpec
from sparse_but_wrong.training.controls import KTransition
from sparse_but_wrong.training.loop import Training
from sparse_but_wrong.training.native import bindings
from sparse_but_wrong.worlds.world import ToyWorld
from tests.experiments import tiny
from tests.experiments.tiny import resumed, started

SETTINGS = RunSettings(seed=3, progress=False)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register(monkeypatch)


def run(out: Path, settings: RunSettings = SETTINGS) -> tuple[Results, RunFolder]:
    folder = started(tiny.TINY, out, settings)
    return finish_run(folder, tiny.TINY, settings), folder


def weights(folder: RunFolder) -> dict[str, dict[str, torch.Tensor]]:
    return {
        sae.sae_id: load_file(folder.sae_path(sae.sae_id) / "sae_weights.safetensors")
        for sae in tiny.TINY.saes
    }


def assert_same_weights(a: RunFolder, b: RunFolder) -> None:
    for sae_id, tensors in weights(a).items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, weights(b)[sae_id][name]), (sae_id, name)


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    results, folder = run(tmp_path / "run")

    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["seed"] == 3
    assert manifest["device"] == "cpu"
    assert manifest["spec"] == json.loads(json.dumps(tiny.TINY.to_dict()))
    assert manifest["provenance"]["versions"]["sae-lens"] == sae_lens.__version__
    assert manifest["timings"]["training_seconds"] > 0
    step = "pytorch" if bindings.kernels() is None else "compiled"
    assert manifest["steps"] == {sae.sae_id: step for sae in tiny.TINY.saes}
    assert manifest["verdict"]["outcome"] in ("holds", "fails", "not judged")
    assert manifest["verdict"] == json.loads(json.dumps(results.verdict.to_dict()))
    assert manifest["tables"] == {"widths": "How wide the SAEs are."}
    assert pd.read_csv(folder.path / "widths.csv")["width"].tolist() == [4, 4, 4]
    assert manifest["shown_figures"] == [{"name": "projections/s_1", "caption": "s_1 against L0."}]

    table = pd.read_parquet(folder.path / "results.parquet")
    pd.testing.assert_frame_equal(table, results.table)
    from_csv = pd.read_csv(folder.path / "results.csv")
    assert from_csv["l0"].tolist() == pytest.approx(table["l0"].tolist())
    assert table["sae_id"].tolist() == ["c_0.05", "c_0.5", "c_2"]
    assert table["added"].tolist() == [False, False, True]
    assert {"l0", "mse", "mcc", "c_dec", "c_enc", "shrinkage", "s_0", "s_3"} <= set(table.columns)

    world = ToyWorld.load(folder.world_path(ONLY_WORLD))
    activations, true_l0 = evaluation_samples(tiny.TINY, world, ONLY_WORLD, 3)
    assert results.true_l0 == {ONLY_WORLD: true_l0}
    assert true_l0 == pytest.approx(1.4, abs=0.1)
    for row in table.to_dict("records"):
        sae = sae_lens.SAE.load_from_disk(folder.sae_path(row["sae_id"]))
        assert sae.cfg.normalize_activations == "none"  # the scale is folded in
        score = score_sae(sae, activations, world.directions).as_row()
        for name, value in score.items():
            assert row[name] == pytest.approx(value, rel=1e-5), name

    curves = pd.read_parquet(folder.path / "training_curves.parquet")
    for sae_id in table["sae_id"]:
        steps = curves.loc[curves["sae_id"] == sae_id, "step"]
        assert list(steps) == [0, 50, 100, 150, 200, 250, 300, 350, 399]
    assert (folder.path / "training_curves.csv").is_file()
    assert not folder.checkpoint_path.exists()
    for name in ("projections/s_1", "training_curves"):
        assert (folder.plots_path / f"{name}.pdf").stat().st_size > 2000
        assert (folder.plots_path / f"{name}.png").stat().st_size > 2000


def test_the_same_seed_is_the_same_run_and_another_is_not(tmp_path: Path) -> None:
    first, a = run(tmp_path / "a")
    again, b = run(tmp_path / "b", RunSettings(seed=3, threads=1, progress=False))
    other, c = run(tmp_path / "c", RunSettings(seed=4, progress=False))
    assert_same_weights(a, b)
    pd.testing.assert_frame_equal(first.table, again.table)
    assert not torch.equal(weights(a)["c_0.5"]["W_dec"], weights(c)["c_0.5"]["W_dec"])
    directions = [results.world(ONLY_WORLD).directions for results in (first, other)]
    assert not torch.equal(*directions)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.register(patch)
        return run(tmp_path_factory.mktemp("finished") / "run")[1].path


def interrupt_after(monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    original = Training.run

    def run(self: Training, *_: Any, **__: Any) -> None:
        def stop(training: Training) -> None:
            if training.n_samples >= samples:
                raise KeyboardInterrupt

        original(self, stop)

    monkeypatch.setattr(Training, "run", run)


def test_ctrl_c_and_resume_give_the_run_that_was_never_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, whole = run(tmp_path / "whole")

    folder = started(tiny.TINY, tmp_path / "broken", SETTINGS)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 100 * 64)
        with pytest.raises(KeyboardInterrupt):
            finish_run(folder, tiny.TINY, SETTINGS)
    assert folder.checkpoint_path.is_file()
    assert not folder.has_sae("c_0.5")

    folder, spec, settings = resumed(tmp_path / "broken")
    assert spec == tiny.TINY
    assert settings.seed == 3
    with monkeypatch.context() as patch:
        n_first: list[int] = []
        original = Training.load_state

        def load_state(self: Training, state: Any) -> None:
            original(self, state)
            n_first.append(self.n_samples)

        patch.setattr(Training, "load_state", load_state)
        again = finish_run(folder, spec, SETTINGS)
    assert n_first
    assert n_first[0] >= 100 * 64
    assert_same_weights(whole, folder)
    pd.testing.assert_frame_equal(straight.table, again.table)
    pd.testing.assert_frame_equal(straight.curves, again.curves)


def test_killed_while_training_it_goes_on_from_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = run(tmp_path / "whole")
    folder = started(tiny.TINY, tmp_path / "killed", SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "CHECKPOINT_EVERY_SECONDS", 0.0)
        original = RunFolder.write_checkpoint
        n_written = 0

        def write(self: RunFolder, checkpoint: Any) -> None:
            nonlocal n_written
            original(self, checkpoint)
            n_written += 1
            if n_written == 3:
                raise SystemError("as if killed")  # nothing after this line runs

        patch.setattr(RunFolder, "write_checkpoint", write)
        with pytest.raises(SystemError):
            finish_run(folder, tiny.TINY, SETTINGS)
    # What a process killed in the middle of writing leaves behind (tests/test_atomic.py):
    (folder.path / "saes" / ".unfinished-1").mkdir(parents=True)
    (folder.path / ".unfinished-2.safetensors").write_bytes(b"half")

    folder, spec, _ = resumed(folder.path)
    finish_run(folder, spec, SETTINGS)
    assert_same_weights(whole, folder)
    assert not list(folder.path.rglob(".unfinished-*"))


def test_finished_saes_are_kept_and_only_the_others_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = run(tmp_path / "whole")
    _, folder = run(tmp_path / "run")
    shutil.rmtree(folder.sae_path("c_0.5"))
    kept = (folder.sae_path("c_2") / "sae_weights.safetensors").stat().st_mtime_ns
    trained: list[int] = []
    original = Training.__init__

    def init(self: Training, saes: Any, *rest: Any, **named: Any) -> None:
        trained.append(len(saes))
        original(self, saes, *rest, **named)

    monkeypatch.setattr(Training, "__init__", init)
    folder, spec, _ = resumed(folder.path)
    finish_run(folder, spec, SETTINGS)
    assert trained == [1]
    assert (folder.sae_path("c_2") / "sae_weights.safetensors").stat().st_mtime_ns == kept
    assert_same_weights(whole, folder)


def test_a_run_in_use_is_left_alone(tmp_path: Path) -> None:
    """From before there is a manifest to be taken up, until the last file is written."""
    folder = started(tiny.TINY, tmp_path / "run", SETTINGS)
    other, spec, settings = resumed(folder.path)
    with folder.locked(), pytest.raises(ValueError, match="another process is working"):
        finish_run(other, spec, settings)
    with resume_run(folder.path), pytest.raises(ValueError, match="another process is working"):
        resumed(folder.path)
    with start_run(tiny.TINY, tmp_path / "new", SETTINGS, quick=False) as run:
        for at_work in (resumed, partial(started, tiny.TINY, settings=SETTINGS)):
            with pytest.raises((ValueError, OSError), match=r"another process|--resume"):
                at_work(tmp_path / "new")
        finish_run(*run)


def test_a_world_is_saved_by_who_holds_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(self: ToyWorld, folder: Path) -> None:
        original(self, folder)
        with pytest.raises(ValueError, match="another process is working"):
            resumed(tmp_path / "run")

    original = ToyWorld.save
    monkeypatch.setattr(ToyWorld, "save", save)
    started(tiny.TINY, tmp_path / "run", SETTINGS)


def flip(file: Path) -> None:
    """Change a bit of a number, so that the file looks whole."""
    content = bytearray(file.read_bytes())
    if file.suffix == ".json":
        last_digit = max(i for i, byte in enumerate(content) if chr(byte).isdigit())
        content[last_digit] ^= 1
    else:
        content[-8] ^= 1
    file.write_bytes(content)


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
def test_a_flipped_bit_is_named_and_what_is_deleted_is_made_again(
    tmp_path: Path, file: str, finished: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    before = (folder.path / "results.csv").read_bytes()
    flip(folder.path / file)
    message = rf"{re.escape(file)} is damaged .* delete (\S+) and --resume"
    with pytest.raises(ValueError, match=message) as refused:
        finish_run(*resumed(folder.path))
    if not file.startswith("logs"):  # which a report does not read
        with pytest.raises(ValueError, match=message):
            write_report(folder)
    found = re.search(r"delete (\S+) and", str(refused.value))
    assert found
    shutil.rmtree(found[1])
    folder, spec, settings = resumed(folder.path)
    finish_run(folder, spec, replace(settings, progress=False))
    assert (folder.path / "results.csv").read_bytes() == before
    assert_same_weights(RunFolder.open(finished), folder)


def test_a_flipped_bit_in_a_checkpoint_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = started(tiny.TINY, tmp_path / "run", SETTINGS)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 100 * 64)
        with pytest.raises(KeyboardInterrupt):
            finish_run(folder, tiny.TINY, SETTINGS)
    assert folder.read_checkpoint() is not None
    flip(folder.checkpoint_path)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged .*delete it"):
        finish_run(*resumed(folder.path))


def test_a_run_without_checksums_is_taken_up_and_gets_them(tmp_path: Path, finished: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run/manifest.json"
    manifest = json.loads(file.read_text())
    sums = manifest.pop("sha256")
    file.write_text(json.dumps(manifest))
    folder, spec, settings = resumed(tmp_path / "run")
    finish_run(folder, spec, replace(settings, progress=False))
    again = json.loads(file.read_text())["sha256"]
    assert again == sums
    assert {"logs/c_2.json", "saes/c_2/cfg.json", "results.parquet"} <= set(again)


def test_a_finished_run_that_lost_an_sae_is_not_judged_without_it(
    tmp_path: Path, finished: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    assert folder.finished_saes() == ["c_0.05", "c_0.5", "c_2"]
    shutil.rmtree(folder.sae_path("c_0.5"))
    with pytest.raises(ValueError, match=r"c_0\.5 are missing.*--resume"):
        write_report(folder)
    folder, spec, settings = resumed(folder.path)
    finish_run(folder, spec, replace(settings, progress=False))
    assert_same_weights(RunFolder.open(finished), folder)
    # Until they are trained again, the run is one that is not finished.
    shutil.rmtree(folder.sae_path("c_0.5"))
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 64)
        with pytest.raises(KeyboardInterrupt):
            finish_run(*resumed(folder.path))
    again = RunFolder.open(folder.path)
    assert again.manifest["status"] == "unfinished"
    assert again.finished_saes() == ["c_0.05", "c_2"]


@pytest.mark.parametrize("through", ["write_checkpoint", "save_sae", "write_table"])
def test_a_full_disk_is_said_with_what_is_kept(
    tmp_path: Path, through: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        if through == "save_sae":  # which sae_lens writes with safetensors
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runner, "CHECKPOINT_EVERY_SECONDS", 0.0)
    folder = started(tiny.TINY, tmp_path / "run", SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, through, full)
        with pytest.raises(OSError, match=r"disk of .*run is full.* kept.*--resume"):
            finish_run(*resumed(folder.path))
    finish_run(*resumed(folder.path))


def damage(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("worlds/world/features.safetensors", "features.safetensors is damaged"),
        ("worlds/world/toy_model/toy_model.safetensors", "toy_model.safetensors"),
        ("saes/c_0.5/sae_weights.safetensors", r"c_0\.5.* is damaged .*--resume to train"),
        ("saes/c_0.5/cfg.json", r"c_0\.5.* is damaged .*--resume to train"),
        ("logs/c_0.5.json", r"c_0\.5\.json is damaged"),
    ],
)
def test_a_damaged_run_folder_is_named_before_any_training(
    tmp_path: Path, file: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = run(tmp_path / "run")
    damage(folder.path / file)
    shutil.rmtree(folder.sae_path("c_2"))  # so that there is something left to train
    folder, spec, _ = resumed(folder.path)
    monkeypatch.setattr(Training, "run", lambda *_: pytest.fail("trained before looking"))
    with pytest.raises(ValueError, match=message):
        finish_run(folder, spec, SETTINGS)


def test_a_damaged_manifest_or_checkpoint_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = started(tiny.TINY, tmp_path / "run", SETTINGS)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 100 * 64)
        with pytest.raises(KeyboardInterrupt):
            finish_run(folder, tiny.TINY, SETTINGS)
    whole = folder.checkpoint_path.read_bytes()
    damage(folder.checkpoint_path)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged .* delete it"):
        finish_run(folder, tiny.TINY, SETTINGS)
    folder.checkpoint_path.write_bytes(whole)

    manifest = folder.path / "manifest.json"
    text = manifest.read_text()
    for wrong, message in (
        (text[:100], "manifest.json is damaged"),
        ("[]", "manifest.json holds a list"),
        (text.replace('"format_version": 2', '"format_version": 9'), "not a manifest of format"),
        (
            text.replace('"evaluation_samples"', '"evaluation_sample"'),
            "evaluation_sample is not a field",
        ),
        (text.replace('"d_in": 8,', ""), r"worlds\.world\.d_in is missing"),
        (text.replace('"timings": {', '"timing": {'), "timings"),
        (text.replace('"quick": false', '"quick": 0'), "quick"),
        ('{"format_version": 2, "spec": {"saes": 3}}', "experiment"),
    ):
        manifest.write_text(wrong)
        with pytest.raises(ValueError, match=message):
            resumed(folder.path)
    manifest.unlink()
    with pytest.raises(FileNotFoundError, match="there is no run in"):
        resumed(folder.path)


def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def refuse(message: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            started(replace(tiny.TINY, **changes), out, SETTINGS)
        assert not out.exists()

    sae = tiny.TINY.saes[0]
    world = replace(tiny.WORLD, firing_probabilities=(0.4, 1.2, 0.2, 0.5))
    refuse("1.2", worlds={ONLY_WORLD: world})
    refuse("no analysis 'no_such'", analysis="no_such")
    refuse("looks at one world", worlds={ONLY_WORLD: tiny.WORLD, "other": tiny.WORLD})
    refuse(
        "has no k that a KTransition could move",
        saes=(replace(sae, control=KTransition(3.0, 1, 2)),),
    )
    refuse("d_sae=4", saes=(replace(sae, init="true_features", config={"d_sae": 5}),))
    refuse("nope", saes=(replace(sae, config={**sae.config, "nope": 1}),))
    for field, value in (
        ("l0_coefficient", -1),
        ("d_in", 9),
        ("device", "cuda"),
        ("d_sae", 10**12),
    ):
        config = {**sae.config, field: value}
        refuse(f"'c_0.05': .*{field}", saes=(replace(sae, config=config),))
    refuse("no_such", saes=(replace(sae, architecture="no_such"),))
    refuse(
        "target_l0",
        saes=(replace(sae, config={"d_sae": 4, "jumprelu_sparsity_loss_mode": "quadratic"}),),
    )
    for device in ("nonsense", "meta"):
        with pytest.raises(ValueError, match=f"the device '{device}' cannot be used"):
            started(tiny.TINY, out, RunSettings(device=device))
    assert not out.exists()


def test_a_folder_that_cannot_be_a_run_folder(tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        started(tiny.TINY, used, SETTINGS)
    assert [f.name for f in used.iterdir()] == ["thesis.tex"]
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (file, file / "below"):
        with pytest.raises(NotADirectoryError, match="file is a file"):
            started(tiny.TINY, place, SETTINGS)
    started(tiny.TINY, tmp_path / "run", SETTINGS)
    with pytest.raises(FileExistsError, match="add --resume"):
        started(tiny.TINY, tmp_path / "run", SETTINGS)


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The superuser may write anywhere, so the answer of the system is stood in for.
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refused)
    with pytest.raises(PermissionError, match="cannot be written to"):
        started(tiny.TINY, tmp_path / "run", SETTINGS)


def two_worlds() -> ExperimentSpec:
    """The tiny experiment's middle SAE, begun in two ways, in worlds that differ in their name."""
    sae = tiny.TINY.saes[1]
    return replace(
        tiny.TINY,
        worlds={"a": tiny.WORLD, "b": tiny.WORLD},
        saes=(
            replace(sae, sae_id="of_a", world="a"),
            replace(sae, sae_id="of_b", world="b", init="true_features"),
        ),
        analysis="of_two_worlds",
    )


class OfTwoWorlds(tiny.TinyAnalysis):
    def check(self, spec: ExperimentSpec) -> None:
        del spec

    def judge(self, results: Results) -> Verdict:
        return Verdict((Check("there are two", str(len(results.true_l0)), True),))

    def draw(self, results: Results) -> list[NamedFigure]:
        del results
        return []


def test_each_world_has_its_own_directions_data_and_saes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.ANALYSES, "of_two_worlds", OfTwoWorlds())
    spec = two_worlds()
    folder = started(spec, tmp_path / "run", SETTINGS)
    monkeypatch.setattr(runner, "CHECKPOINT_EVERY_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 100 * 64)
        with pytest.raises(KeyboardInterrupt):
            finish_run(folder, spec, SETTINGS)
    results = finish_run(folder, spec, SETTINGS)
    assert results.table["world"].tolist() == ["a", "b"]
    assert results.true_l0["a"] != results.true_l0["b"]
    assert not torch.equal(results.world("a").directions, results.world("b").directions)
    assert results.verdict.outcome == "holds"

    whole = started(spec, tmp_path / "whole", SETTINGS)
    pd.testing.assert_frame_equal(finish_run(whole, spec, SETTINGS).table, results.table)

    # The SAE that starts at its world's features is the one that still lies near them.
    one_step = replace(tiny.TINY.training, total_training_samples=64, lr=1e-6)
    short = replace(spec, training=one_step)
    folder = started(short, tmp_path / "short", SETTINGS)
    random, true = finish_run(folder, short, SETTINGS).table["mcc"]
    assert true == pytest.approx(1.0, abs=1e-4)
    assert random < 0.9


def test_a_quick_run_judges_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.ANALYSES, "of_two_worlds", OfTwoWorlds())
    folder = started(two_worlds(), tmp_path / "run", SETTINGS, quick=True)
    results = finish_run(folder, two_worlds().quick(), SETTINGS)
    assert results.verdict.outcome == "not judged"
    assert results.verdict.checks[0].measured == "2"
    assert "its figures mean nothing" in results.verdict.remarks[0]


def test_a_batchtopk_sae_is_scored_as_it_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.ANALYSES, "of_two_worlds", OfTwoWorlds())
    config = {"d_sae": 4, "k": 1.5}
    spec = replace(
        tiny.TINY,
        saes=(replace(tiny.TINY.saes[0], architecture="batchtopk", config=config),),
        analysis="of_two_worlds",
    )
    folder = started(spec, tmp_path / "run", SETTINGS)
    results = finish_run(folder, spec, SETTINGS)
    sae = results.sae("c_0.05")
    assert sae.cfg.architecture() == "jumprelu"
    score = score_sae(sae, results.activations(ONLY_WORLD))
    assert results.table["l0"].item() == pytest.approx(score.sparsity.l0)
    assert score.sparsity.l0 != 1.5  # that of the threshold, not that of training
