"""The one runner of all experiments: spec → world → trained SAEs → tables → figures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparse_but_wrong import atomic
from sparse_but_wrong.experiments.analysis import Results, evaluation_samples, inference_sae
from sparse_but_wrong.experiments.findings import (
    l0_change_at_end,
    log_every_that_tells,
    moving_in_words,
    sparsity_in_words,
)
from sparse_but_wrong.experiments.registry import get_analysis
from sparse_but_wrong.experiments.verdict import Verdict
from sparse_but_wrong.figures.style import save_figure
from sparse_but_wrong.metrics.score import score_sae
from sparse_but_wrong.metrics.stream import StreamScore, measure_stream
from sparse_but_wrong.report.write import write_report
from sparse_but_wrong.runs.checkpoint import Checkpoint
from sparse_but_wrong.runs.data import load_data, make_data
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.runs.make import make_saes
from sparse_but_wrong.runs.provenance import provenance
from sparse_but_wrong.runs.seeds import world_seed
from sparse_but_wrong.runs.spec import ExperimentSpec, SAESpec
from sparse_but_wrong.runs.stored_world import StoredWorld
from sparse_but_wrong.training.log import SAELog
from sparse_but_wrong.training.loop import Training
from sparse_but_wrong.worlds.world import ToyWorld

if TYPE_CHECKING:
    import pandas as pd

CHECKPOINT_EVERY_SECONDS = 10.0
_UNFINISHED, _FINISHED = "unfinished", "finished"


@dataclass(frozen=True)
class RunSettings:
    """How to run a spec, apart from what it is."""

    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    """CPU threads; PyTorch's own number if left out."""

    progress: bool = True


@contextmanager
def start_run(
    spec: ExperimentSpec, out: Path, settings: RunSettings, *, quick: bool
) -> Iterator[tuple[RunFolder, ExperimentSpec, RunSettings]]:
    """A new run folder for a spec, with its manifest and its worlds.

    No other process gets the folder while the block runs.

    Args:
        spec: the experiment, at full budget.
        out: the folder; must be empty or not exist.
        settings: seed and device.
        quick: run it at a fiftieth of its budget.
    Yields:
        what `finish_run` takes, with the spec as it is run.
    Raises:
        ValueError: a world or SAEs that cannot be made or trained as asked, an analysis that
            cannot be done with them, or a device that is not there. Nothing is written then.
        OSError: the folder is not empty or not writable.
    """
    spec = spec.quick() if quick else spec
    _check_device(settings.device)
    get_analysis(spec.analysis).check(spec)
    worlds = {name: make_data(spec, name, settings.seed, settings.device) for name in spec.worlds}
    for name, world in worlds.items():  # so that a bad SAE is refused now
        try:
            if group := spec.of_world(name):
                _make_training(spec, group, name, world, settings)
        except TypeError as error:  # a config value of the wrong type, which only sae_lens notices
            raise ValueError(f"the SAEs of the world {name!r} cannot be made: {error}") from error
    manifest = {
        "experiment": spec.name,
        "status": _UNFINISHED,
        "quick": quick,
        "seed": settings.seed,
        "device": settings.device,
        "spec": spec.to_dict(),
        "provenance": provenance(),
        "timings": {},
    }
    with _disk_named(out), RunFolder.create(out, manifest) as folder:
        for name, world in worlds.items():
            _save_world(folder, name, world)
        folder.write_manifest()
        yield folder, spec, settings


@contextmanager
def resume_run(path: Path) -> Iterator[tuple[RunFolder, ExperimentSpec, RunSettings]]:
    """An existing run folder, with the spec and the seed that it was started with.

    No other process gets the folder while the block runs.

    Yields:
        what `finish_run` takes.
    Raises:
        FileNotFoundError: there is no run in it.
        ValueError: it is damaged, or another process works in it.
    """
    with RunFolder.open_locked(path) as folder:
        manifest = folder.manifest
        try:
            spec = ExperimentSpec.from_dict(manifest["spec"])
        except ValueError as error:
            raise ValueError(
                f"{path / 'manifest.json'} is damaged ({error}); start a new run in another folder."
            ) from error
        yield folder, spec, RunSettings(seed=manifest["seed"], device=manifest["device"])


def check_same_spec(folder: RunFolder, spec: ExperimentSpec) -> None:
    """Refuse to go on with, or to keep, a run of another spec than the one that is meant now.

    Args:
        folder: of the run.
        spec: the experiment as it is now, at full budget.
    Raises:
        ValueError: the run was started with another.
    """
    meant = spec.quick() if folder.manifest.get("quick") else spec
    if folder.manifest.get("spec") != meant.to_dict():
        raise ValueError(
            f"the spec of {spec.name!r} has changed since the run in {folder.path} was started; "
            "undo the change to go on with that run, or start a new one in another folder."
        )


def finish_run(folder: RunFolder, spec: ExperimentSpec, settings: RunSettings) -> Results:
    """Do whatever is left to do in a run folder: train, score, draw.

    Raises:
        ValueError: something in the folder is damaged, or another process works in it.
        KeyboardInterrupt: on Ctrl-C, with a checkpoint written.
    """
    _check_device(settings.device)
    with _disk_named(folder.path), folder.locked():
        atomic.remove_leftovers(folder.path)
        _check_what_is_there(folder, spec, settings)
        _train_all(folder, spec, settings)
        results = _measure(folder, spec, settings)
        _draw(folder, results)
        folder.manifest["status"] = _FINISHED
        write_report(folder)  # before the manifest says so: a finished run has its report
        folder.write_manifest()
    return results


def _check_what_is_there(folder: RunFolder, spec: ExperimentSpec, settings: RunSettings) -> None:
    """Name what is damaged before hours of training, not after; make worlds that are missing."""
    for name in spec.worlds:
        path = folder.world_path(name)
        if path.exists():
            load_data(folder.checked_world_path(name))
            folder.seal(path)
        else:  # killed right after the manifest was written, or deleted because it was damaged
            _save_world(folder, name, make_data(spec, name, settings.seed))
    for sae in spec.saes:
        if folder.has_sae(sae.sae_id):
            folder.load_sae(sae.sae_id)
            folder.read_log(sae.sae_id)
            folder.seal_sae(sae.sae_id)  # of a run that was killed before its manifest was written
        else:
            folder.forget_sae(sae.sae_id)
            folder.manifest["status"] = _UNFINISHED
    folder.write_manifest()


def _save_world(folder: RunFolder, name: str, world: ToyWorld | StoredWorld) -> None:
    path = folder.world_path(name)
    world.save(path)
    # One that is made again must be what the SAEs were trained on.
    folder.check(path, "it is not the world that the run was started with; start a new run")
    folder.seal(path)


def _disk_named(path: Path) -> AbstractContextManager[None]:
    return atomic.full_disk_named(
        path,
        "SAEs that are finished and the last checkpoint are kept; make room, then go on with "
        "`sbw run` and --resume.",
    )


def _measure(folder: RunFolder, spec: ExperimentSpec, settings: RunSettings) -> Results:
    """Score the SAEs, and let the experiment's analysis measure and judge."""
    started = time.perf_counter()
    logs = {sae.sae_id: folder.read_log(sae.sae_id) for sae in spec.saes}
    scored = _score_all(folder, spec, settings, logs)
    table, true_l0 = scored.table, scored.true_l0
    curves = _collect_curves(logs)
    if spec.saes:
        folder.write_table("results", table)
        folder.write_table("training_curves", curves)
    results = Results(folder, spec, settings.seed, settings.device, table, curves, true_l0)
    results.scores.update(scored.streamed)
    analysis = get_analysis(spec.analysis)
    results.tables.update(analysis.measure(results))
    for name, measured in results.tables.items():
        folder.write_table(name, measured.frame)
    verdict = analysis.judge(results)
    if folder.manifest["quick"] and spec.saes:
        verdict = verdict.unjudged("A quick run: everything works, and its figures mean nothing.")
    moving = moving_in_words(table) if spec.saes else None
    sparsity = sparsity_in_words(spec.saes, table) if spec.saes else []
    remarks = (*verdict.remarks, *([moving] if moving else []), *sparsity)
    results.verdict = Verdict(verdict.checks, remarks)
    folder.manifest["timings"]["evaluation_seconds"] = time.perf_counter() - started
    folder.manifest["true_l0"] = true_l0
    folder.manifest["verdict"] = results.verdict.to_dict()
    folder.manifest["tables"] = {name: table.caption for name, table in results.tables.items()}
    return results


def _draw(folder: RunFolder, results: Results) -> None:
    """Write the experiment's figures."""
    started = time.perf_counter()
    figures = get_analysis(results.spec.analysis).draw(results)
    for figure in figures:
        save_figure(figure.figure, folder.plots_path / figure.name)
    folder.manifest["shown_figures"] = [
        {"name": figure.name, "caption": figure.caption} for figure in figures if figure.caption
    ]
    folder.manifest["timings"]["figures_seconds"] = time.perf_counter() - started


def _train_all(folder: RunFolder, spec: ExperimentSpec, settings: RunSettings) -> None:
    """Train what is not saved yet, world by world; of many worlds there is one bar of progress."""
    from tqdm import tqdm

    worlds = [name for name in spec.worlds if spec.of_world(name)]
    one_bar = len(worlds) > 1
    bar = tqdm(worlds, desc="Training", unit=" worlds", disable=not (settings.progress and one_bar))
    for name in bar:
        _train_missing(
            folder, spec, name, replace(settings, progress=settings.progress and not one_bar)
        )


def _train_missing(
    folder: RunFolder, spec: ExperimentSpec, world: str, settings: RunSettings
) -> None:
    """Train every SAE of a world that is not saved yet, from the checkpoint if it is theirs."""
    by_id = {sae.sae_id: sae for sae in spec.of_world(world)}
    missing = [sae_id for sae_id in by_id if not folder.has_sae(sae_id)]
    checkpoint = folder.read_checkpoint()
    is_ours = checkpoint is not None and set(checkpoint.sae_ids) <= set(by_id)
    if not missing:
        if is_ours:
            folder.remove_checkpoint()
        return
    if checkpoint is not None and not (is_ours and set(missing) <= set(checkpoint.sae_ids)):
        raise ValueError(
            f"{folder.checkpoint_path} is of other SAEs than are missing here; delete it to train "
            "them from their start."
        )
    group = [by_id[sae_id] for sae_id in (checkpoint.sae_ids if checkpoint else missing)]
    run_group(folder, spec, group, world, settings, checkpoint)


def _make_training(
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
    saes = make_saes(group, world.d_in, settings.seed, settings.device, features)
    names = [f"SAE {sae.sae_id!r}" for sae in group]
    return Training(saes, source, options, [sae.control for sae in group], names=names)


def run_group(
    folder: RunFolder,
    spec: ExperimentSpec,
    group: Sequence[SAESpec],
    world: str,
    settings: RunSettings,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train some SAEs of a world together and save each with its log.

    An SAE's result depends on the spec and the seed, not on the group it is trained in.

    Args:
        checkpoint: of this very group, to go on from.
    """
    training = _make_training(
        spec, group, world, load_data(folder.checked_world_path(world), settings.device), settings
    )
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
    for sae_id, sae in zip(ids, training.saes, strict=True):
        if not folder.has_sae(sae_id):
            folder.save_sae(sae_id, sae)
    folder.remove_checkpoint()
    folder.manifest.setdefault("steps", {}).update(zip(ids, training.steps, strict=True))
    timings = folder.manifest["timings"]
    seconds = seconds_before + time.perf_counter() - started
    timings["training_seconds"] = timings.get("training_seconds", 0.0) + seconds
    folder.write_manifest()


@dataclass(frozen=True, eq=False)
class _Scored:
    table: pd.DataFrame
    """A row per SAE in the order of the spec."""

    true_l0: dict[str, float]
    """Of each toy world."""

    streamed: dict[str, StreamScore]
    """Of each SAE on stored activations."""


def _score_all(
    folder: RunFolder, spec: ExperimentSpec, settings: RunSettings, logs: Mapping[str, SAELog]
) -> _Scored:
    """Score the SAEs of every world, all of a world on the same samples."""
    import pandas as pd

    true_l0: dict[str, float] = {}
    measured: dict[str, dict[str, Any]] = {}
    streamed: dict[str, StreamScore] = {}
    for name in spec.worlds:
        world = load_data(folder.checked_world_path(name), settings.device)
        saes = {
            sae.sae_id: inference_sae(folder, sae.sae_id, settings.device)
            for sae in spec.of_world(name)
        }
        if isinstance(world, StoredWorld):
            scores = dict(
                zip(saes, measure_stream(list(saes.values()), world.held_out()), strict=True)
            )
            streamed |= scores
            measured |= {sae_id: _as_row(score) for sae_id, score in scores.items()}
        else:
            activations, true_l0[name] = evaluation_samples(spec, world, name, settings.seed)
            for sae_id, sae in saes.items():
                measured[sae_id] = score_sae(sae, activations, world.directions).as_row()
    rows = [
        {
            "sae_id": sae.sae_id,
            "world": sae.world,
            "architecture": sae.architecture,
            "added": sae.added,
            **sae.factors,
            "diverged_at_step": logs[sae.sae_id].diverged_at,
            "l0_change_at_end": l0_change_at_end(
                logs[sae.sae_id].steps, logs[sae.sae_id].columns["l0"]
            ),
            **measured[sae.sae_id],
        }
        for sae in spec.saes
    ]
    table = pd.DataFrame(rows)
    return _Scored(
        table.astype({"diverged_at_step": "Int64"}) if rows else table, true_l0, streamed
    )


def _as_row(score: StreamScore) -> dict[str, float | int]:
    values = score.projections.values.tolist()
    return {**score.as_row(), **{f"s_{n}": value for n, value in enumerate(values)}}


def _collect_curves(logs: Mapping[str, SAELog]) -> pd.DataFrame:
    import pandas as pd

    frames = [
        pd.DataFrame({"sae_id": sae_id, "step": log.steps, **log.columns})
        for sae_id, log in logs.items()
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"the device {name!r} cannot be used here ({str(error).splitlines()[0]}); "
            "try --device cpu."
        ) from error
