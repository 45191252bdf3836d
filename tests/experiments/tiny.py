"""Tiny experiments to try the runner and the analyses on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from sparse_but_wrong.experiments import registry, runner
from sparse_but_wrong.experiments.analysis import (
    Figures,
    MeasuredTable,
    Run,
    RunSettings,
    draw_curves,
)
from sparse_but_wrong.experiments.runner import finish_run, resume_run, start_run
from sparse_but_wrong.experiments.sweep import ANALYSES
from sparse_but_wrong.experiments.verdict import Verdict
from sparse_but_wrong.figures.sweep import projection_vs_l0
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.runs.spec import (
    ONLY_WORLD,
    CorrelationSpec,
    ExperimentSpec,
    SAESpec,
    WorldSpec,
)
from sparse_but_wrong.training.loop import Training
from sparse_but_wrong.training.options import TrainOptions

SETTINGS = RunSettings(seed=3, progress=False)


def _sae(coefficient: float, added: bool = False) -> SAESpec:
    config = {
        "d_sae": 4,
        "l0_coefficient": coefficient,
        "jumprelu_bandwidth": 2.0,
        "jumprelu_init_threshold": 0.1,
        "jumprelu_sparsity_loss_mode": "tanh",
        "normalize_activations": "expected_average_only_in",
        "l0_warm_up_steps": 100,
    }
    return SAESpec(
        f"c_{coefficient:g}", "jumprelu", config, added, factors={"l0_coefficient": coefficient}
    )


WORLD = WorldSpec(
    d_in=8,
    firing_probabilities=(0.4, 0.3, 0.2, 0.5),
    std_firing_magnitudes=(0.15,) * 4,
    mean_firing_magnitudes=(1.0,) * 4,
    correlation=CorrelationSpec(seed=1),
)

TINY = ExperimentSpec(
    name="tiny",
    title="A tiny experiment",
    claim="none",
    worlds={ONLY_WORLD: WORLD},
    saes=(_sae(0.05), _sae(0.5), _sae(2.0, added=True)),
    training=TrainOptions(
        total_training_samples=400 * 64,
        train_batch_size_samples=64,
        n_batches_for_norm_estimate=20,
        lr=3e-3,
        log_every=50,
    ),
    evaluation_samples=2000,
    projection_n=(1, 2),
    analysis="tiny",
)
"""4 features in 8 dimensions, three JumpReLU SAEs."""


def _measure(run: Run) -> dict[str, MeasuredTable]:
    widths = [run.saes[sae_id].cfg.d_sae for sae_id in run.table["sae_id"]]
    frame = run.table[["sae_id", "l0"]].assign(width=widths)
    return {"widths": MeasuredTable(frame, "How wide the SAEs are.")}


def _draw(run: Run) -> Figures:
    figure = projection_vs_l0(run.table, run.projections, 1, run.only_l0)
    return {"projections/s_1": (figure, "s_1 against L0."), **draw_curves(run)}


ANALYSIS = replace(ANALYSES["sweep"], measure=_measure, draw=_draw)
"""A sweep with two figures and a table of its own."""


def register(monkeypatch: pytest.MonkeyPatch, name: str = "tiny") -> None:
    """Make `sbw run NAME` run the tiny experiment for the time of a test."""
    monkeypatch.setitem(registry.EXPERIMENTS, name, replace(TINY, name=name))
    monkeypatch.setitem(runner.ANALYSES, "tiny", ANALYSIS)


def started(
    spec: ExperimentSpec, out: Path, settings: RunSettings = SETTINGS, *, quick: bool = False
) -> RunFolder:
    """A run that was started, and on which nobody works."""
    with start_run(spec, out, settings, quick=quick) as run:
        return run.folder


def finished(spec: ExperimentSpec, out: Path, settings: RunSettings = SETTINGS) -> Run:
    """A run from its start to its end."""
    with start_run(spec, out, settings) as run:
        return finish_run(run)


def resumed(path: Path) -> Run:
    """A run that is taken up and finished."""
    with resume_run(path) as run:
        run.settings = replace(run.settings, progress=False)
        return finish_run(run)


def found(
    spec: ExperimentSpec,
    true_l0: float,
    table: pd.DataFrame | None = None,
    projections: pd.DataFrame | None = None,
    **tables: pd.DataFrame,
) -> Run:
    """A run whose tables are made by hand, to be judged."""
    run = Run(RunFolder(Path(), {}), spec, SETTINGS)
    run.true_l0 = {ONLY_WORLD: true_l0}
    run.table = run.table if table is None else table
    run.projections = run.projections if projections is None else projections
    run.tables = {name: MeasuredTable(frame, "") for name, frame in tables.items()}
    return run


def holds(verdict: Verdict) -> list[bool | None]:
    """What each check came to."""
    return [check.holds for check in verdict.checks]


def few(spec: ExperimentSpec, *sae_ids: str) -> ExperimentSpec:
    """Some SAEs of an experiment with their worlds, in as many steps as a quick run, but small."""
    saes = tuple(sae for sae in spec.saes if sae.sae_id in sae_ids)
    assert len(saes) == len(sae_ids)
    used = {sae.world for sae in saes}
    worlds = {name: world for name, world in spec.worlds.items() if name in used}
    quick = replace(spec, saes=saes, worlds=worlds).quick()
    samples = quick.training.total_training_samples // 32
    small = replace(
        quick.training, total_training_samples=samples, train_batch_size_samples=1024 // 32
    )
    return replace(quick, training=small, evaluation_samples=1000)


def assert_run_is_whole(run: Run, tables: Sequence[str] = ()) -> None:
    """The tables and the figures of a run are there, and the first shown figure is the overview."""
    for name in ("results", "training_curves", *tables):
        assert len(pd.read_parquet(run.folder.path / f"{name}.parquet")) > 0
    shown = run.folder.manifest["shown_figures"]
    assert shown[0]["name"] == "overview"
    assert all(figure["caption"] for figure in shown)
    for figure in shown:
        for suffix in ("pdf", "png"):
            file = run.folder.plots_path / f"{figure['name']}.{suffix}"
            assert file.stat().st_size > 2000


def weights(folder: RunFolder) -> dict[str, dict[str, torch.Tensor]]:
    """Those of the tiny experiment's SAEs, by name."""
    return {
        sae.sae_id: load_file(folder.sae_path(sae.sae_id) / "sae_weights.safetensors")
        for sae in TINY.saes
    }


def assert_same_weights(a: RunFolder, b: RunFolder) -> None:
    """Bit for bit."""
    torch.testing.assert_close(weights(a), weights(b), rtol=0, atol=0)


def interrupt(spec: ExperimentSpec, path: Path, samples: int = 100 * 64) -> RunFolder:
    """A run, a new one or one that is there, that stops after so many samples."""
    original = Training.run

    def run(self: Training, *_: Any, **__: Any) -> None:
        def stop(training: Training) -> None:
            if training.n_samples >= samples:
                raise KeyboardInterrupt

        original(self, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "run", run)
        with pytest.raises(KeyboardInterrupt):
            resumed(path) if path.exists() else finished(spec, path)
    return RunFolder.open(path)
