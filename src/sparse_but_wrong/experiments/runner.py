"""The one runner of all experiments: spec → world → trained SAEs → tables → figures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong import atomic
from sparse_but_wrong.activations.toy import ToyActivations
from sparse_but_wrong.diagnostics.score import score_sae
from sparse_but_wrong.experiments.findings import (
    ProjectionFinding,
    find_projection_minima,
    in_words,
    l0_change_at_end,
)
from sparse_but_wrong.experiments.make import make_saes, make_world
from sparse_but_wrong.experiments.registry import get_experiment
from sparse_but_wrong.experiments.seeds import derive_seed
from sparse_but_wrong.experiments.spec import ExperimentSpec, SAESpec
from sparse_but_wrong.figures.save import save_figure
from sparse_but_wrong.runs.checkpoint import Checkpoint
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.runs.provenance import provenance
from sparse_but_wrong.toy_models.world import World
from sparse_but_wrong.training.log import SAELog
from sparse_but_wrong.training.loop import Training

if TYPE_CHECKING:
    import pandas as pd

CHECKPOINT_EVERY_SECONDS = 10.0


@dataclass(frozen=True, eq=False)
class Results:
    """What a run found, as figures read it."""

    spec: ExperimentSpec
    world: World
    true_l0: float
    """Features active per sample, over the evaluation samples."""

    table: pd.DataFrame
    """A row per SAE."""

    curves: pd.DataFrame
    """A row per SAE and logged step."""

    findings: list[ProjectionFinding]


@dataclass(frozen=True)
class RunSettings:
    """How to run a spec, apart from what it is."""

    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    """CPU threads; PyTorch's own number if left out."""

    progress: bool = True


def start_run(spec: ExperimentSpec, out: Path, settings: RunSettings, *, quick: bool) -> RunFolder:
    """A new run folder for a spec, with its manifest and its world.

    Args:
        spec: the experiment, at full budget.
        out: the folder; must be empty or not exist.
        settings: seed and device.
        quick: run it at a fiftieth of its budget.
    Raises:
        ValueError: a world or SAEs that cannot be made, or a device that is not there. Nothing is
            written then.
        OSError: the folder is not empty or not writable.
    """
    spec = spec.quick() if quick else spec
    _check_device(settings.device)
    world = make_world(spec.world, settings.seed, settings.device)
    make_saes(spec.saes, spec.world.d_in, settings.seed)  # so that a bad one is refused now
    folder = RunFolder.create(
        out,
        {
            "experiment": spec.name,
            "status": "unfinished",
            "quick": quick,
            "seed": settings.seed,
            "device": settings.device,
            "spec": spec.to_dict(),
            "provenance": provenance(),
            "timings": {},
        },
    )
    world.save(folder.world_path)
    return folder


def resume_run(path: Path) -> tuple[RunFolder, ExperimentSpec, RunSettings]:
    """An existing run folder, with the spec and the seed that it was started with.

    Raises:
        FileNotFoundError: there is no run in it.
        ValueError: it is damaged.
    """
    folder = RunFolder.open(path)
    try:
        spec = ExperimentSpec.from_dict(folder.manifest["spec"])
        settings = RunSettings(
            seed=int(folder.manifest["seed"]), device=str(folder.manifest["device"])
        )
        for key, kind in (("quick", bool), ("timings", dict), ("experiment", str)):
            if not isinstance(folder.manifest[key], kind):
                raise ValueError(f"{key} is not a {kind.__name__}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path / 'manifest.json'} is damaged ({error}); start a new run in another folder."
        ) from error
    return folder, spec, settings


def finish_run(folder: RunFolder, spec: ExperimentSpec, settings: RunSettings) -> Results:
    """Do whatever is left to do in a run folder: train, score, draw.

    Raises:
        ValueError: something in the folder is damaged, or another process works in it.
        KeyboardInterrupt: on Ctrl-C, with a checkpoint written.
    """
    _check_device(settings.device)
    with folder.locked():
        atomic.remove_leftovers(folder.path)
        for sae in spec.saes:  # what is damaged is said before hours of training, not after
            if folder.has_sae(sae.sae_id):
                folder.load_sae(sae.sae_id)
                folder.read_log(sae.sae_id)
        if not folder.world_path.exists():  # killed right after the manifest was written
            make_world(spec.world, settings.seed).save(folder.world_path)
        world = World.load(folder.world_path, settings.device)
        _train_missing(folder, spec, world, settings)

        started = time.perf_counter()
        activations, true_l0 = evaluation_samples(spec, world, settings.seed)
        logs = {sae.sae_id: folder.read_log(sae.sae_id) for sae in spec.saes}
        table = _score_all(folder, spec, world, activations, settings, logs)
        curves = _collect_curves(logs)
        findings = find_projection_minima(table, spec.projection_n)
        folder.write_table("results", table)
        folder.write_table("training_curves", curves)
        folder.manifest["timings"]["evaluation_seconds"] = time.perf_counter() - started

        started = time.perf_counter()
        results = Results(spec, world, true_l0, table, curves, findings)
        for name, figure in get_experiment(spec.name).draw(results).items():
            save_figure(figure, folder.plots_path / name)
        folder.manifest["timings"]["figures_seconds"] = time.perf_counter() - started

        folder.manifest["true_l0"] = true_l0
        folder.manifest["findings"] = [asdict(finding) for finding in findings]
        folder.manifest["findings_in_words"] = in_words(findings, true_l0, table)
        folder.manifest["status"] = "finished"
        folder.write_manifest()
    return results


def _train_missing(
    folder: RunFolder, spec: ExperimentSpec, world: World, settings: RunSettings
) -> None:
    """Train every SAE that is not saved yet, from the checkpoint where there is one."""
    missing = [sae.sae_id for sae in spec.saes if not folder.has_sae(sae.sae_id)]
    if not missing:
        folder.remove_checkpoint()
        return
    checkpoint = folder.read_checkpoint()
    by_id = {sae.sae_id: sae for sae in spec.saes}
    if checkpoint is not None and not set(missing) <= set(checkpoint.sae_ids) <= set(by_id):
        raise ValueError(
            f"{folder.checkpoint_path} is of other SAEs than are missing here; delete it to train "
            "them from their start."
        )
    group = [by_id[sae_id] for sae_id in (checkpoint.sae_ids if checkpoint else missing)]
    run_group(folder, spec, group, world, settings, checkpoint)


def run_group(
    folder: RunFolder,
    spec: ExperimentSpec,
    group: Sequence[SAESpec],
    world: World,
    settings: RunSettings,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train some SAEs of a run together and save each with its log.

    An SAE's result depends on the spec and the seed, not on the group it is trained in.

    Args:
        checkpoint: of this very group, to go on from.
    """
    saes = make_saes(group, spec.world.d_in, settings.seed, settings.device)
    options = replace(spec.training, threads=settings.threads, progress=settings.progress)
    source = ToyActivations(
        world.model,
        world.sampler,
        options.train_batch_size_samples,
        derive_seed(settings.seed, "stream"),
    )
    training = Training(saes, source, options)
    seconds_before = 0.0
    if checkpoint is not None:
        try:
            training.load_state(checkpoint.state)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{folder.checkpoint_path} does not fit this run ({error}); delete it to train the "
                "unfinished SAEs from their start."
            ) from error
        seconds_before = checkpoint.seconds
    ids = [sae.sae_id for sae in group]
    started = time.perf_counter()

    def write_checkpoint(training: Training) -> None:
        if training.can_checkpoint:
            seconds = seconds_before + time.perf_counter() - started
            folder.write_checkpoint(Checkpoint(ids, seconds, training.state()))

    try:
        training.run(write_checkpoint, every_seconds=CHECKPOINT_EVERY_SECONDS)
    except KeyboardInterrupt:
        write_checkpoint(training)
        raise
    # The log first: an SAE that is there counts as finished, so nothing of it may be missing.
    for sae_id, log in zip(ids, training.log.saes, strict=True):
        folder.write_log(sae_id, log)
    for sae_id, sae in zip(ids, saes, strict=True):
        if not folder.has_sae(sae_id):
            folder.save_sae(sae_id, sae)
    folder.remove_checkpoint()
    timings = folder.manifest["timings"]
    seconds = seconds_before + time.perf_counter() - started
    timings["training_seconds"] = timings.get("training_seconds", 0.0) + seconds
    folder.write_manifest()


def evaluation_samples(
    spec: ExperimentSpec, world: World, seed: int
) -> tuple[Float[Tensor, "samples d_in"], float]:
    """The activations on which every SAE of a run is scored, and the true L0 of those samples."""
    generator = torch.Generator(device=world.sampler.device).manual_seed(
        derive_seed(seed, "evaluation")
    )
    features = world.sampler.sample(spec.evaluation_samples, generator)
    true_l0 = (features > 0).sum(1).float().mean().item()
    with torch.no_grad():
        return world.model.embed(features), true_l0


def _score_all(
    folder: RunFolder,
    spec: ExperimentSpec,
    world: World,
    activations: Float[Tensor, "samples d_in"],
    settings: RunSettings,
    logs: Mapping[str, SAELog],
) -> pd.DataFrame:
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for sae_spec in spec.saes:
        sae = folder.load_sae(sae_spec.sae_id, settings.device)
        log = logs[sae_spec.sae_id]
        rows.append(
            {
                "sae_id": sae_spec.sae_id,
                "added": sae_spec.added,
                "l0_coefficient": sae_spec.config.get("l0_coefficient"),
                "diverged_at_step": log.diverged_at,
                "l0_change_at_end": l0_change_at_end(log.steps, log.columns["l0"]),
                **score_sae(sae, activations, world.directions).as_row(),
            }
        )
    return pd.DataFrame(rows).astype({"diverged_at_step": "Int64"})


def _collect_curves(logs: Mapping[str, SAELog]) -> pd.DataFrame:
    import pandas as pd

    frames = [
        pd.DataFrame({"sae_id": sae_id, "step": log.steps, **log.columns})
        for sae_id, log in logs.items()
    ]
    return pd.concat(frames, ignore_index=True)


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"the device {name!r} cannot be used here ({str(error).splitlines()[0]}); "
            "try --device cpu."
        ) from error
