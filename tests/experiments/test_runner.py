"""The runner: what a run folder holds, and what is refused before there is one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sae_lens
import torch

import sparse_but_wrong as sbw
from sparse_but_wrong.experiments import runner
from sparse_but_wrong.experiments.analysis import Analysis, Run, RunSettings
from sparse_but_wrong.experiments.registry import EXPERIMENTS
from sparse_but_wrong.experiments.verdict import Check, Verdict
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.metrics.evaluation import RECOVERY, join_projections, split_projections
from sparse_but_wrong.runs.make import load_data
from sparse_but_wrong.runs.spec import ONLY_WORLD, USER_ANALYSES, ExperimentSpec, SyntheticSpec
from sparse_but_wrong.training import compiled_step
from sparse_but_wrong.training.controls import KTransition
from sparse_but_wrong.worlds.synthetic import SyntheticWorld
from tests.experiments import tiny
from tests.experiments.tiny import (
    SETTINGS,
    TINY,
    assert_same_weights,
    finished,
    interrupt,
    resumed,
    started,
    weights,
)
from tests.worlds.synthetic import CONFIG


def test_what_a_run_leaves_behind(whole: Run) -> None:
    folder = whole.folder
    manifest = json.loads((folder.path / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert (manifest["seed"], manifest["device"]) == (3, "cpu")
    assert manifest["spec"] == json.loads(json.dumps(TINY.to_dict()))
    assert manifest["provenance"]["versions"]["sae-lens"] == sae_lens.__version__
    timings = manifest["timings"]
    assert min(timings[f"{what}_seconds"] for what in ("training", "evaluation", "figures")) > 0
    step = "pytorch" if compiled_step.kernels() is None else "compiled"
    assert manifest["steps"] == {sae.sae_id: step for sae in TINY.saes}
    assert manifest["verdict"] == json.loads(json.dumps(whole.verdict.to_dict()))
    assert manifest["tables"] == {"widths": "How wide the SAEs are."}
    assert pd.read_csv(folder.path / "widths.csv")["width"].tolist() == [4, 4, 4]
    assert manifest["shown_figures"] == [{"name": "projections/s_1", "caption": "s_1 against L0."}]

    saved = pd.read_parquet(folder.path / "results.parquet")
    table, projections = split_projections(saved)
    pd.testing.assert_frame_equal(table, whole.table)
    pd.testing.assert_frame_equal(projections, whole.projections)
    pd.testing.assert_frame_equal(join_projections(table, projections), saved)
    from_csv = pd.read_csv(folder.path / "results.csv")
    assert from_csv["l0"].tolist() == pytest.approx(table["l0"].tolist())
    assert table["sae_id"].tolist() == ["c_0.05", "c_0.5", "c_2"]
    assert table["added"].tolist() == [False, False, True]

    activations, features = whole.samples(ONLY_WORLD)
    assert whole.only_l0 == pytest.approx(int((features > 0).sum()) / len(features))
    assert whole.only_l0 == pytest.approx(1.4, abs=0.1)
    directions = whole.world(ONLY_WORLD).directions
    for row, s in zip(table.to_dict("records"), projections.to_numpy(), strict=True):
        sae = sae_lens.SAE.load_from_disk(folder.sae_path(row["sae_id"]))
        assert sae.cfg.normalize_activations == "none"  # the scale is folded in
        found = evaluate(sae, activations, directions, features)
        assert found.projections.tolist() == pytest.approx(s.tolist())
        for name in ("l0", "shrinkage", "mse", "variance_explained", "c_dec", "c_enc", *RECOVERY):
            assert row[name] == pytest.approx(getattr(found, name), rel=1e-5), name

    curves = pd.read_parquet(folder.path / "training_curves.parquet")
    for sae_id in table["sae_id"]:
        steps = curves.loc[curves["sae_id"] == sae_id, "step"]
        assert list(steps) == [0, 50, 100, 150, 200, 250, 300, 350, 399]
    assert not folder.checkpoint_path.exists()
    for name in ("projections/s_1", "training_curves"):
        assert (folder.plots_path / f"{name}.pdf").stat().st_size > 2000
        assert (folder.plots_path / f"{name}.png").stat().st_size > 2000


def test_run_experiment(whole: Run, tmp_path: Path) -> None:
    run = sbw.run_experiment("tiny", out=tmp_path / "run", seed=3, threads=1, progress=False)
    pd.testing.assert_frame_equal(run.table, whole.table)
    assert_same_weights(run.folder, whole.folder)
    assert run.verdict.outcome in repr(run)
    assert "c_0.5" in run._repr_html_()
    assert list(run.saes) == ["c_0.05", "c_0.5", "c_2"]
    assert torch.equal(run.saes["c_0.5"].W_dec, weights(whole.folder)["c_0.5"]["W_dec"])
    with pytest.raises(KeyError):
        run.saes["c_9"]
    again = sbw.run_experiment(TINY, run.folder.path, seed=3, resume=True, progress=False)
    pd.testing.assert_frame_equal(again.table, run.table)
    with pytest.raises(ValueError, match="seed 3"):
        sbw.run_experiment("tiny", run.folder.path, resume=True)
    with pytest.raises(ValueError, match=r"'nonsense'.*tiny"):
        sbw.run_experiment("nonsense")


def test_every_experiment_has_its_analysis() -> None:
    assert {spec.analysis for spec in EXPERIMENTS.values()} <= set(runner.ANALYSES)
    assert tuple(runner.ANALYSES)[:2] == USER_ANALYSES


def test_another_seed_is_another_run(whole: Run, tmp_path: Path) -> None:
    other = finished(TINY, tmp_path / "run", replace(SETTINGS, seed=4))
    assert not torch.equal(whole.saes["c_0.5"].W_dec, other.saes["c_0.5"].W_dec)
    assert not torch.equal(whole.world().directions, other.world().directions)


SAE = TINY.saes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"worlds": {ONLY_WORLD: replace(tiny.WORLD, firing_probabilities=(1.2,) * 4)}}, "1.2"),
        ({"analysis": "no_such"}, "'no_such'.*sweep"),
        ({"worlds": {ONLY_WORLD: tiny.WORLD, "other": tiny.WORLD}}, "one world"),
        ({"saes": (replace(SAE, control=KTransition(3.0, 1, 2)),)}, "no k that a KTransition"),
        ({"saes": (replace(SAE, init="true_features", config={"d_sae": 5}),)}, "d_sae=4"),
        ({"saes": (replace(SAE, architecture="no_such"),)}, "no_such"),
        ({"saes": (replace(SAE, factors={"world": 1}),)}, "factor 'world'"),
        ({"saes": (replace(SAE, factors={"mcc": 1}),)}, "factor 'mcc'"),
        ({"saes": (replace(SAE, factors={"s_3": 1}),)}, "factor 's_3'"),
        *(
            ({"saes": (replace(SAE, config={**SAE.config, field: value}),)}, f"c_0.05': .*{field}")
            for field, value in {
                "nope": 1,
                "l0_coefficient": -1,
                "d_in": 9,
                "device": "cuda",
                "d_sae": 10**12,
                "target_l0": "x",
            }.items()
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        started(replace(TINY, **changes), tmp_path / "run")
    for device in ("nonsense", "meta"):
        with pytest.raises(ValueError, match=f"'{device}' cannot be used"):
            started(TINY, tmp_path / "run", RunSettings(device=device))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_is_left_alone(whole: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        started(TINY, tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(FileExistsError, match="add --resume"):
        started(TINY, whole.folder.path)


OF_TWO_WORLDS = Analysis(
    judge=lambda run: Verdict((Check("there are two", str(len(run.true_l0)), True),)),
    draw=lambda _: {},
)


@pytest.fixture
def two_worlds(monkeypatch: pytest.MonkeyPatch) -> ExperimentSpec:
    """The tiny experiment's middle SAE, begun in two ways, in worlds that differ in their name."""
    monkeypatch.setitem(runner.ANALYSES, "of_two_worlds", OF_TWO_WORLDS)
    sae = TINY.saes[1]
    saes = (
        replace(sae, sae_id="of_a", world="a"),
        replace(sae, sae_id="of_b", world="b", init="true_features"),
    )
    worlds = {"a": tiny.WORLD, "b": tiny.WORLD}
    return replace(TINY, worlds=worlds, saes=saes, analysis="of_two_worlds")


def test_each_world_has_its_own_directions_data_and_saes(
    two_worlds: ExperimentSpec, tmp_path: Path
) -> None:
    interrupt(two_worlds, tmp_path / "run")
    run = resumed(tmp_path / "run")
    assert run.table["world"].tolist() == ["a", "b"]
    assert run.true_l0["a"] != run.true_l0["b"]
    assert not torch.equal(run.world("a").directions, run.world("b").directions)
    assert run.verdict.outcome == "holds"
    pd.testing.assert_frame_equal(finished(two_worlds, tmp_path / "whole").table, run.table)

    # The SAE that starts at its world's features is the one that still lies near them.
    one_step = replace(TINY.training, total_training_samples=64, lr=1e-6)
    random, true = finished(replace(two_worlds, training=one_step), tmp_path / "short").table["mcc"]
    assert true == pytest.approx(1.0, abs=1e-4)
    assert random < 0.9


def test_a_world_of_sae_lens_synthetic(tmp_path: Path) -> None:
    config = {**tiny.TINY.saes[0].config, "d_sae": 12}
    spec = replace(
        tiny.TINY,
        analysis="sweep",
        worlds={ONLY_WORLD: SyntheticSpec(CONFIG)},
        saes=(replace(tiny.TINY.saes[0], config=config),),
    )
    assert ExperimentSpec.from_dict(spec.to_dict()) == spec
    run = tiny.finished(spec, tmp_path / "run")
    world = SyntheticWorld(CONFIG)
    assert run.only_l0 == pytest.approx(world.true_l0, rel=0.05)
    assert torch.equal(run.world().directions, world.directions)
    assert run.table["mcc"].between(0.2, 1).all()
    # What is in the folder is the world that was trained on.
    stream = load_data(run.folder.world_path(ONLY_WORLD)).stream(64, 1)
    assert torch.equal(next(stream), next(world.stream(64, 1)))


def test_a_quick_run_judges_nothing(two_worlds: ExperimentSpec, tmp_path: Path) -> None:
    started(two_worlds, tmp_path / "run", quick=True)
    run = resumed(tmp_path / "run")
    assert run.spec == two_worlds.quick()
    assert run.verdict.outcome == "not judged"
    assert run.verdict.checks[0].measured == "2"
    assert "numbers mean nothing" in run.verdict.remarks[0]


def test_a_batchtopk_sae_is_evaluated_as_it_is_exported(
    two_worlds: ExperimentSpec, tmp_path: Path
) -> None:
    sae = replace(SAE, architecture="batchtopk", config={"d_sae": 4, "k": 1.5})
    spec = replace(two_worlds, worlds=TINY.worlds, saes=(sae,))
    run = finished(spec, tmp_path / "run")
    used = run.saes["c_0.05"]
    assert used.cfg.architecture() == "jumprelu"
    l0 = evaluate(used, run.samples(ONLY_WORLD)[0]).l0
    assert run.table["l0"].item() == pytest.approx(l0)
    assert l0 != 1.5  # that of the threshold, not that of training
