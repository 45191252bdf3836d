"""Experiments of the 50-feature world shrunk to a world of 6 features, to try analyses on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from sparse_but_wrong.experiments.analysis import Results
from sparse_but_wrong.experiments.runner import RunSettings, finish_run
from sparse_but_wrong.runs.spec import CorrelationSpec, ExperimentSpec, SAESpec, WorldSpec
from sparse_but_wrong.training.options import TrainOptions
from tests.experiments.tiny import started

N_FEATURES = 6
WORLD = WorldSpec(
    d_in=12,
    firing_probabilities=(0.5, 0.5, 0.5, 0.5, 0.4, 0.6),  # true L0 3
    std_firing_magnitudes=(0.15,) * N_FEATURES,
    mean_firing_magnitudes=(1.0,) * N_FEATURES,
    correlation=CorrelationSpec(seed=1),
    ortho_num_steps=200,
)
TRAINING = TrainOptions(
    total_training_samples=100 * 32,
    train_batch_size_samples=32,
    n_batches_for_norm_estimate=5,
    lr=3e-3,
    log_every=10,
)


def shrunk(
    spec: ExperimentSpec,
    keep: Callable[[SAESpec], bool],
    change: Callable[[SAESpec], SAESpec],
    projection_n: Sequence[int] = (),
) -> ExperimentSpec:
    """A spec on small worlds with some of its SAEs, changed to fit them."""
    return replace(
        spec,
        worlds=dict.fromkeys(spec.worlds, WORLD),
        saes=tuple(change(sae) for sae in spec.saes if keep(sae)),
        training=TRAINING,
        evaluation_samples=500,
        projection_n=tuple(projection_n),
    )


def with_k(sae: SAESpec, k: float) -> SAESpec:
    """The SAE with another k, as wide as the small world has features."""
    factors = {**sae.factors, "k": k} if "k" in sae.factors else sae.factors
    return replace(sae, config={**sae.config, "k": k, "d_sae": N_FEATURES}, factors=factors)


def run(spec: ExperimentSpec, out: Path) -> Results:
    """Train, measure, judge and draw."""
    settings = RunSettings(seed=0, threads=1, progress=False)
    folder = started(spec, out, settings)
    return finish_run(folder, spec, settings)


def assert_run_is_whole(results: Results, tables: Sequence[str]) -> None:
    """The tables and the figures of a run are there, and the first shown figure is the overview."""
    path = results.folder.path
    for name in ("results", "training_curves", *tables):
        assert len(pd.read_parquet(path / f"{name}.parquet")) > 0
    shown = results.folder.manifest["shown_figures"]
    assert shown[0]["name"] == "overview"
    assert all(figure["caption"] for figure in shown)
    for figure in shown:
        for suffix in ("pdf", "png"):
            assert (path / "plots" / f"{figure['name']}.{suffix}").stat().st_size > 2000
