"""Training the SAEs of a run on a cluster."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from functools import partial
from pathlib import Path

from sparse_but_wrong import atomic
from sparse_but_wrong.cluster.units import Cluster, Unit
from sparse_but_wrong.experiments import train
from sparse_but_wrong.experiments.analysis import Run
from sparse_but_wrong.runs.checkpoint import CheckpointHeader
from sparse_but_wrong.untrusted import usable_device


def train_on(cluster: Cluster, run: Run) -> Generator[train.Trained, None, None]:
    """Train what a run lacks, in as many units as the cluster can run at a time.

    Raises:
        ValueError: as `Cluster.run`; SAEs that are finished, and checkpoints, are kept.
    """
    gpus = int(usable_device(run.settings.device).type == "cuda")
    settings = replace(run.settings, threads=cluster.cpus, progress=False)
    path = run.folder.path
    units = [
        Unit(
            unit.name,
            partial(train.train_unit, run, unit, settings, train.CHECKPOINT_EVERY_SECONDS),
            partial(n_samples, path / unit.checkpoint),
            run.spec.training.total_training_samples,
        )
        for unit in train.missing_units(run, cluster.n_slots(gpus))
    ]
    yield from cluster.run(units, path, gpus, progress=run.settings.progress)
    atomic.remove_leftovers(path)  # of workers that were killed


def n_samples(checkpoint: Path) -> int:
    """Samples that every SAE of a checkpoint was trained on; 0 where it cannot be read now."""
    try:
        return min(CheckpointHeader.read(checkpoint).n_samples)
    except (OSError, ValueError):
        return 0
