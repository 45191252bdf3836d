"""Training what a run lacks, unit by unit, with checkpoints: here, or on other machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise

from sparse_but_wrong.experiments.analysis import Run, RunSettings
from sparse_but_wrong.experiments.findings import log_every_that_tells
from sparse_but_wrong.runs.checkpoint import Checkpoint, CheckpointHeader
from sparse_but_wrong.runs.make import load_data, make_spec_saes, world_seed
from sparse_but_wrong.runs.spec import ExperimentSpec, SAESpec
from sparse_but_wrong.runs.stored_world import StoredWorld
from sparse_but_wrong.training.loop import Training
from sparse_but_wrong.worlds.world import ToyWorld

CHECKPOINT_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class TrainingUnit:
    """SAEs of one world that one process trains together, from a checkpoint if there is one."""

    world: str
    sae_ids: tuple[str, ...]
    checkpoint: str
    """The name of its file in the run folder."""

    @property
    def name(self) -> str:
        """What messages and progress bars call it."""
        first, n_more = self.sae_ids[0], len(self.sae_ids) - 1
        return first + (f" and {n_more} more" if n_more else "")


@dataclass(frozen=True)
class Trained:
    """What the manifest of a run is to say of a unit, whose SAEs and logs are saved."""

    steps: dict[str, str]
    """What took the steps of each SAE, by id."""
    seconds: float
    sha256: dict[str, str]
    """Of the files, by name."""


TrainUnits = Callable[[Run], Generator[Trained, None, None]]
"""Trains whatever a run lacks, and tells of each unit once it is done."""


def train_all(run: Run, train_units: TrainUnits) -> None:
    """Train what is not saved yet."""
    manifest = run.folder.manifest
    with closing(train_units(run)) as done:  # so that those at work are stopped on any error here
        for trained in done:
            manifest.setdefault("steps", {}).update(trained.steps)
            manifest.setdefault("sha256", {}).update(trained.sha256)
            timings = manifest["timings"]
            timings["training_seconds"] = timings.get("training_seconds", 0.0) + trained.seconds
            run.folder.write_manifest()


def train_here(run: Run) -> Generator[Trained, None, None]:
    """Train in this process, world by world; many worlds share one progress bar."""
    from tqdm import tqdm

    units = missing_units(run)
    one_bar = run.settings.progress and len(units) > 1
    settings = replace(run.settings, progress=run.settings.progress and not one_bar)
    for unit in tqdm(units, desc="Training", unit=" worlds", disable=not one_bar):
        yield train_unit(run, unit, settings, CHECKPOINT_EVERY_SECONDS)


def missing_units(run: Run, n_workers: int | None = None) -> list[TrainingUnit]:
    """What is left to train: the groups that have a checkpoint, then the rest of every world.

    Args:
        n_workers: how many units to make at least, where there are as many SAEs; if left out, one
            per world. Only SAEs of one architecture and width, which mostly train as one stack,
            share a unit then.
    Raises:
        ValueError: a checkpoint is damaged, or of SAEs that are not in the run.
    """
    folder, units = run.folder, []
    world_of = {sae.sae_id: sae.world for sae in run.spec.saes}
    missing = [sae for sae in run.spec.saes if not folder.has_sae(sae.sae_id)]
    for path in folder.checkpoints():
        ids = tuple(CheckpointHeader.read(path).sae_ids)
        worlds = {world_of.get(sae_id) for sae_id in ids}
        if len(worlds) != 1 or None in worlds:
            raise ValueError(
                f"{path} belongs to SAEs that are not in this run; delete it to train those that "
                "are missing from their start."
            )
        if all(folder.has_sae(sae_id) for sae_id in ids):  # stopped right after the last was saved
            path.unlink()
            continue
        units.append(TrainingUnit(world_of[ids[0]], ids, path.name))
        missing = [sae for sae in missing if sae.sae_id not in ids]
    stacks: dict[tuple[object, ...], list[str]] = {}
    for sae in missing:
        kind = () if n_workers is None else (sae.architecture, sae.config.get("d_sae"))
        stacks.setdefault((sae.world, *kind), []).append(sae.sae_id)
    n_parts = 1 if n_workers is None else -(-n_workers // max(1, len(stacks)))
    for ids in stacks.values():
        n = min(n_parts, len(ids))
        for start, stop in pairwise(len(ids) * i // n for i in range(n + 1)):
            part = tuple(ids[start:stop])
            own = (
                folder.checkpoint_path if n_workers is None else folder.checkpoint_path_of(part[0])
            )
            units.append(TrainingUnit(world_of[part[0]], part, own.name))
    return units


def make_training(
    spec: ExperimentSpec,
    group: Sequence[SAESpec],
    name: str,
    world: ToyWorld | StoredWorld,
    settings: RunSettings,
) -> Training:
    """The training of some SAEs of a world, at its start."""
    options = replace(
        spec.training,
        threads=settings.threads,
        progress=settings.progress,
        log_every=log_every_that_tells(spec.training.log_every, spec.training.n_steps),
    )
    seed = world_seed(settings.seed, "stream", name)
    source, for_mean = (world.stream(options.train_batch_size_samples, seed) for _ in range(2))
    features = world.model if isinstance(world, ToyWorld) else None
    saes = make_spec_saes(group, world.d_in, settings.seed, settings.device, features, for_mean)
    if isinstance(world, StoredWorld):
        world.describe_in(saes)
    names = [f"SAE {sae.sae_id!r}" for sae in group]
    return Training(saes, source, options, [sae.control for sae in group], names=names)


def train_unit(
    run: Run, unit: TrainingUnit, settings: RunSettings, checkpoint_seconds: float
) -> Trained:
    """Train SAEs of a world, from their checkpoint if there is one, and save them with their logs.

    An SAE's result depends on the spec and the seed, not on the group it is trained in. Nothing
    else is written to the run folder, so that several processes can do this at a time.

    Raises:
        ValueError: the checkpoint, or the world, is damaged.
        KeyboardInterrupt: on Ctrl-C, with a checkpoint written.
    """
    folder, ids, path = run.folder, list(unit.sae_ids), run.folder.path / unit.checkpoint
    checkpoint = Checkpoint.read(path) if path.exists() else None
    by_id = {sae.sae_id: sae for sae in run.spec.of_world(unit.world)}
    data = load_data(folder.checked_world_path(unit.world), settings.device)
    group = [by_id[sae_id] for sae_id in ids]
    training = make_training(run.spec, group, unit.world, data, settings)
    started = time.perf_counter()
    if checkpoint is not None:
        try:
            training.load_state(checkpoint.state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{path} does not fit this run ({error}); delete it to train the "
                "unfinished SAEs from their start."
            ) from error
        started -= checkpoint.seconds

    if settings.logger is not None:
        training.report_to(settings.logger, ids)

    def write_checkpoint(training: Training) -> None:
        if training.can_checkpoint:
            seconds = time.perf_counter() - started
            Checkpoint(ids, seconds, training.state()).write(path)

    try:
        training.run(write_checkpoint, every_seconds=checkpoint_seconds)
    except KeyboardInterrupt:
        write_checkpoint(training)
        raise
    # The log first: an SAE that is there counts as finished, so nothing of it may be missing.
    for sae_id, log in zip(ids, training.log.saes, strict=True):
        folder.write_log(sae_id, log)
    for sae_id, sae in zip(ids, training.saes, strict=True):
        if not folder.has_sae(sae_id):
            folder.save_sae(sae_id, sae)
        else:  # by a process that was killed before it could tell
            folder.seal(folder.sae_path(sae_id))
    path.unlink(missing_ok=True)
    sums: dict[str, str] = {}
    for sae_id in ids:
        sums |= folder.sums_of(folder.log_path(sae_id)) | folder.sums_of(folder.sae_path(sae_id))
    steps = dict(zip(ids, training.steps, strict=True))
    return Trained(steps, time.perf_counter() - started, sums)
