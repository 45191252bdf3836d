"""Training what a run lacks, group by group, with checkpoints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from sparse_but_wrong.experiments.analysis import Run, RunSettings
from sparse_but_wrong.experiments.findings import log_every_that_tells
from sparse_but_wrong.runs.checkpoint import Checkpoint
from sparse_but_wrong.runs.make import load_data, make_spec_saes, world_seed
from sparse_but_wrong.runs.spec import ExperimentSpec, SAESpec
from sparse_but_wrong.runs.stored_world import StoredWorld
from sparse_but_wrong.training.loop import Training
from sparse_but_wrong.worlds.world import ToyWorld

CHECKPOINT_EVERY_SECONDS = 10.0


def train_all(run: Run) -> None:
    """Train what is not saved yet, world by world; many worlds share one progress bar."""
    from tqdm import tqdm

    worlds = [name for name in run.spec.worlds if run.spec.of_world(name)]
    one_bar = run.settings.progress and len(worlds) > 1
    settings = replace(run.settings, progress=run.settings.progress and not one_bar)
    for name in tqdm(worlds, desc="Training", unit=" worlds", disable=not one_bar):
        _train_missing(run, name, settings)


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
    source = world.stream(options.train_batch_size_samples, seed)
    features = world.model if isinstance(world, ToyWorld) else None
    saes = make_spec_saes(group, world.d_in, settings.seed, settings.device, features)
    if isinstance(world, StoredWorld) and (cache := world.stored.cache) is not None:
        for sae in saes:  # as sae_lens' runner does, so that they say where they belong
            sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = cache.model, cache.hook
    names = [f"SAE {sae.sae_id!r}" for sae in group]
    return Training(saes, source, options, [sae.control for sae in group], names=names)


def _train_missing(run: Run, world: str, settings: RunSettings) -> None:
    """Train every SAE of a world that is not saved yet, from the checkpoint if it is theirs.

    An SAE's result depends on the spec and the seed, not on the group it is trained in.
    """
    folder, path = run.folder, run.folder.checkpoint_path
    by_id = {sae.sae_id: sae for sae in run.spec.of_world(world)}
    missing = [sae_id for sae_id in by_id if not folder.has_sae(sae_id)]
    checkpoint = Checkpoint.read(path) if path.exists() else None
    is_ours = checkpoint is not None and set(checkpoint.sae_ids) <= set(by_id)
    if not missing:
        if is_ours:
            path.unlink()
        return
    if checkpoint is not None and not (is_ours and set(missing) <= set(checkpoint.sae_ids)):
        raise ValueError(
            f"{path} belongs to other SAEs than are missing here; delete it to train them from "
            "their start."
        )
    ids = checkpoint.sae_ids if checkpoint else missing
    data = load_data(folder.checked_world_path(world), settings.device)
    group = [by_id[sae_id] for sae_id in ids]
    training = make_training(run.spec, group, world, data, settings)
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
        training.run(write_checkpoint, every_seconds=CHECKPOINT_EVERY_SECONDS)
    except KeyboardInterrupt:
        write_checkpoint(training)
        raise
    # The log first: an SAE that is there counts as finished, so nothing of it may be missing.
    for sae_id, log in zip(ids, training.log.saes, strict=True):
        folder.write_log(sae_id, log)
    for sae_id, sae in zip(ids, training.saes, strict=True):
        if not folder.has_sae(sae_id):
            folder.save_sae(sae_id, sae)
    path.unlink(missing_ok=True)
    folder.manifest.setdefault("steps", {}).update(zip(ids, training.steps, strict=True))
    timings = folder.manifest["timings"]
    seconds = time.perf_counter() - started
    timings["training_seconds"] = timings.get("training_seconds", 0.0) + seconds
    folder.write_manifest()
