"""A tiny experiment, to try the runner on: 4 features in 8 dimensions, two JumpReLU SAEs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sparse_but_wrong.experiments import registry
from sparse_but_wrong.experiments.analysis import MeasuredTable, NamedFigure, Results
from sparse_but_wrong.experiments.runner import RunSettings, resume_run, start_run
from sparse_but_wrong.experiments.sweep import Sweep
from sparse_but_wrong.figures.sweep import projection_vs_l0
from sparse_but_wrong.figures.training import training_curves
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.runs.spec import (
    ONLY_WORLD,
    CorrelationSpec,
    ExperimentSpec,
    SAESpec,
    WorldSpec,
)
from sparse_but_wrong.training.options import TrainOptions


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


def register(monkeypatch: pytest.MonkeyPatch, name: str = "tiny") -> None:
    """Make `sbw run NAME` run the tiny experiment for the time of a test."""
    monkeypatch.setitem(registry.EXPERIMENTS, name, replace(TINY, name=name))
    monkeypatch.setitem(registry.ANALYSES, "tiny", TinyAnalysis())


def started(
    spec: ExperimentSpec, out: Path, settings: RunSettings, *, quick: bool = False
) -> RunFolder:
    """A run that was started, and on which nobody works."""
    with start_run(spec, out, settings, quick=quick) as (folder, _, _):
        return folder


def resumed(path: Path) -> tuple[RunFolder, ExperimentSpec, RunSettings]:
    """A run as it is taken up, on which nobody works."""
    with resume_run(path) as run:
        return run


class TinyAnalysis(Sweep):
    """A sweep with two figures and a table of its own."""

    def measure(self, results: Results) -> dict[str, MeasuredTable]:
        frame = results.table[["sae_id", "l0"]].assign(
            width=[results.sae(sae_id).cfg.d_sae for sae_id in results.table["sae_id"]]
        )
        return {"widths": MeasuredTable(frame, "How wide the SAEs are.")}

    def draw(self, results: Results) -> list[NamedFigure]:
        table, true_l0 = results.table, results.true_l0[results.only_world]
        s_1 = projection_vs_l0(table, results.projections, 1, true_l0)
        return [
            NamedFigure("projections/s_1", s_1, "s_1 against L0."),
            NamedFigure("training_curves", training_curves(results.curves, true_l0)),
        ]
