"""The one runner of all experiments: spec → worlds → trained SAEs → tables → figures → report."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparse_but_wrong import atomic
from sparse_but_wrong.experiments import (
    intuition,
    low_l0,
    published_l0,
    small,
    sweep,
    true_features,
)
from sparse_but_wrong.experiments.analysis import Analysis, Run, RunSettings
from sparse_but_wrong.experiments.findings import l0_change_at_end, training_remarks
from sparse_but_wrong.experiments.registry import get_experiment
from sparse_but_wrong.experiments.train import TrainUnits, make_training, train_all, train_here
from sparse_but_wrong.experiments.verdict import Verdict
from sparse_but_wrong.figures.style import save_figure
from sparse_but_wrong.loggers import Logger
from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.metrics.evaluation import RECOVERY, join_projections
from sparse_but_wrong.report.run import write_report
from sparse_but_wrong.runs.folder import RunFolder, fresh_path
from sparse_but_wrong.runs.make import load_data, make_data
from sparse_but_wrong.runs.provenance import provenance
from sparse_but_wrong.runs.spec import ExperimentSpec
from sparse_but_wrong.runs.stored_world import StoredWorld
from sparse_but_wrong.untrusted import usable_device
from sparse_but_wrong.worlds.world import ToyWorld

_OF_SAE = ("sae_id", "world", "architecture", "added")
_OF_TRAINING = ("diverged_at_step", "l0_change_at_end")
_TOY_METRICS = (
    *("l0", "dead_latents", "shrinkage", "mse", "variance_explained", "c_dec", "c_enc"),
    *RECOVERY,
)
_STORED_METRICS = (
    *("l0", "l0_standard_error", "l0_p05", "l0_median", "l0_p95", "dead_latents", "dense_latents"),
    *("mse", "mse_standard_error", "variance_explained", "variance_explained_standard_error"),
    *("c_dec", "c_enc", "d_sae", "n_samples", "n_batches"),
)
"""Columns of the table of results, in this order; after those of the SAE stand its factors."""

ANALYSES: dict[str, Analysis] = {
    name: analysis
    for module in (sweep, intuition, small, low_l0, true_features, published_l0)
    for name, analysis in module.ANALYSES.items()
}
"""What a spec's `analysis` may be; in users' own, only the first two."""

_KEPT = (
    "Finished SAEs and the last checkpoint are kept; make room, then continue with `sbw run` and "
    "--resume."
)


def run_experiment(
    experiment: str | ExperimentSpec,
    out: str | Path | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    quick: bool = False,
    resume: bool = False,
    progress: bool = True,
    logger: Logger | None = None,
    train_units: TrainUnits = train_here,
) -> Run:
    """Run an experiment of the paper, or one of your own, as `sbw run` does.

    Args:
        experiment: the name of a built-in one (`sbw list`), or a spec.
        out: the run folder; a new one below `runs/` if left out.
        seed: everything random follows from it.
        device: where SAEs are trained; "auto" for a CUDA GPU if there is one, else the CPU.
        threads: CPU threads; PyTorch's own number if left out.
        quick: run it at a fiftieth of its budget, to see that everything works.
        resume: resume the run in `out`, or read it again where it is finished.
        progress: show progress bars.
        logger: as of `train_saes`; wandb takes that of one world only, since steps begin anew.
        train_units: what trains the SAEs; in this process if left out.
    Returns:
        the finished run: its `verdict`, its `table` (a row per SAE), its `saes` by id.
    Raises:
        ValueError: an unknown name, or a spec, folder or device that cannot be used.
        OSError: a folder that is not empty or not writable.
    """
    spec = get_experiment(experiment) if isinstance(experiment, str) else experiment
    path = fresh_path(Path("runs"), spec.name) if out is None else Path(out)
    device = str(usable_device(device))  # the manifest says which one "auto" was
    settings = RunSettings(seed, device, threads, progress, logger)
    with resume_run(path) if resume else start_run(spec, path, settings, quick=quick) as run:
        if resume:
            check_same(run.folder, spec, seed=seed, device=device, quick=quick)
            run.settings = settings
        return finish_run(run, train_units)


@contextmanager
def start_run(
    spec: ExperimentSpec, out: Path, settings: RunSettings, *, quick: bool = False
) -> Iterator[Run]:
    """A new run folder for a spec, with its manifest and its worlds, to be given to `finish_run`.

    No other process gets the folder while the block runs. Arguments as of `run_experiment`.

    Raises:
        ValueError: a world or SAEs that cannot be made or trained as asked, an analysis that
            cannot be done with them, or a device that is not there. Nothing is written then.
        OSError: the folder is not empty or not writable.
    """
    spec = spec.quick() if quick else spec
    usable_device(settings.device)
    _analysis(spec).check(spec)
    _check_factors(spec)
    worlds = {name: make_data(spec, name, settings.seed, settings.device) for name in spec.worlds}
    for name, world in worlds.items():  # so that a bad SAE is refused now
        try:
            if group := spec.of_world(name):
                make_training(spec, group, name, world, settings)
        except TypeError as error:  # a config value of the wrong type, which only sae_lens notices
            raise ValueError(f"the SAEs of the world {name!r} cannot be made: {error}") from error
    manifest = {
        "experiment": spec.name,
        "status": "unfinished",
        "quick": quick,
        "seed": settings.seed,
        "device": settings.device,
        "spec": spec.to_dict(),
        "provenance": provenance(),
        "timings": {},
    }
    with atomic.full_disk_named(out, _KEPT), RunFolder.create(out, manifest) as folder:
        for name, world in worlds.items():
            _save_world(folder, name, world)
        folder.write_manifest()
        yield Run(folder, spec, settings)


@contextmanager
def resume_run(path: Path) -> Iterator[Run]:
    """The run in a folder, as it was started, to be given to `finish_run`.

    No other process gets the folder while the block runs.

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
        yield Run(folder, spec, RunSettings(seed=manifest["seed"], device=manifest["device"]))


def check_same(folder: RunFolder, spec: ExperimentSpec, **options: object) -> None:
    """Refuse (ValueError) to resume, or to keep, a run that was started otherwise than is meant.

    Args:
        spec: the experiment as it is now, at full budget.
        options: `seed`, `device` and `quick` as they are meant now; None where nothing is said.
    """
    manifest = folder.manifest
    for option, meant in {"experiment": spec.name, **options}.items():
        if meant is not None and meant != manifest[option]:
            raise ValueError(
                f"The run in {folder.path} was started with {option} {manifest[option]}, not "
                f"{meant}. Give the same to continue it, or name another folder with --out."
            )
    if manifest["spec"] != (spec.quick() if manifest["quick"] else spec).to_dict():
        raise ValueError(
            f"the spec of {spec.name!r} has changed since the run in {folder.path} was started; "
            "undo the change to resume that run, or start a new one in another folder."
        )


def finish_run(run: Run, train_units: TrainUnits = train_here) -> Run:
    """Do whatever is left to do in a run folder: train, evaluate, judge, draw, report.

    Raises:
        ValueError: something in the folder is damaged.
        KeyboardInterrupt: on Ctrl-C, with a checkpoint written.
    """
    folder, manifest = run.folder, run.folder.manifest
    usable_device(run.settings.device)
    with atomic.full_disk_named(folder.path, _KEPT):
        atomic.remove_leftovers(folder.path)
        _check_what_is_there(run)
        train_all(run, train_units)
        started = time.perf_counter()
        _evaluate(run)
        _judge(run)
        evaluated = time.perf_counter()
        _draw(run)
        manifest["timings"] |= {
            "evaluation_seconds": evaluated - started,
            "figures_seconds": time.perf_counter() - evaluated,
        }
        manifest["status"] = "finished"
        write_report(folder)  # before the manifest says so: a finished run has its report
        folder.write_manifest()
    return run


def _check_what_is_there(run: Run) -> None:
    """Name what is damaged before hours of training, not after; make worlds that are missing."""
    folder = run.folder
    for name in run.spec.worlds:
        path = folder.world_path(name)
        if path.exists():
            load_data(folder.checked_world_path(name))
            folder.seal(path)
        else:  # killed right after the manifest was written, or deleted because it was damaged
            _save_world(folder, name, make_data(run.spec, name, run.settings.seed))
    for sae in run.spec.saes:
        places = (folder.sae_path(sae.sae_id), folder.log_path(sae.sae_id))
        if folder.has_sae(sae.sae_id):
            folder.load_sae(sae.sae_id)
            folder.read_log(sae.sae_id)
            folder.seal(*places)  # those of a run that was killed before its manifest was written
        else:
            folder.forget(*places)
            folder.manifest["status"] = "unfinished"
    folder.write_manifest()


def _save_world(folder: RunFolder, name: str, world: ToyWorld | StoredWorld) -> None:
    path = folder.world_path(name)
    world.save(path)
    # One that is made again must be what the SAEs were trained on.
    folder.check(path, "it is not the world that the run was started with; start a new run")
    folder.seal(path)


def _evaluate(run: Run) -> None:
    """Evaluate the SAEs of every world, all of a world on the same samples."""
    metrics: dict[str, dict[str, Any]] = {}
    projections: dict[str, np.ndarray] = {}
    for name in run.spec.worlds:
        world = load_data(run.folder.checked_world_path(name), run.settings.device)
        saes = {sae.sae_id: run.saes[sae.sae_id] for sae in run.spec.of_world(name)}
        if isinstance(world, StoredWorld):
            found, columns = evaluate(saes, world.held_out()), _STORED_METRICS
            run.evaluations += found
        else:
            activations, features = run.samples(name)
            run.true_l0[name] = (features > 0).sum(1).float().mean().item()
            found = evaluate(saes, activations, world.directions, features) if saes else ()
            columns = _TOY_METRICS
        for evaluation in found:
            row = evaluation.to_row()
            metrics[evaluation.name] = {column: row[column] for column in columns}
            projections[evaluation.name] = evaluation.projections.astype(float)
    rows, curves = [], []
    for sae in run.spec.saes:
        log = run.folder.read_log(sae.sae_id)
        rows.append(
            {
                **{name: getattr(sae, name) for name in _OF_SAE},
                **sae.factors,
                "diverged_at_step": log.diverged_at,
                "l0_change_at_end": l0_change_at_end(log.steps, log.columns["l0"]),
                **metrics[sae.sae_id],
            }
        )
        curves.append(pd.DataFrame({"sae_id": sae.sae_id, "step": log.steps, **log.columns}))
    run.table = pd.DataFrame(rows)
    run.projections = pd.DataFrame([projections[sae.sae_id] for sae in run.spec.saes])
    if rows:
        run.table = run.table.astype({"diverged_at_step": "Int64"})
        run.curves = pd.concat(curves, ignore_index=True)


def _judge(run: Run) -> None:
    """Let the experiment's analysis measure and judge; write the tables."""
    folder, manifest, analysis = run.folder, run.folder.manifest, _analysis(run.spec)
    if run.spec.saes:
        folder.write_table("results", join_projections(run.table, run.projections))
        folder.write_table("training_curves", run.curves)
    run.tables |= analysis.measure(run)
    for name, measured in run.tables.items():
        folder.write_table(name, measured.frame)
    run.verdict = analysis.judge(run)
    if run.spec.saes:
        if manifest["quick"]:
            why = "A quick run: everything works, and its numbers mean nothing."
            run.verdict = run.verdict.unjudged(why)
        more = training_remarks(run.spec.saes, run.table)
        run.verdict = Verdict(run.verdict.checks, (*run.verdict.remarks, *more))
    manifest["true_l0"] = run.true_l0
    manifest["verdict"] = run.verdict.to_dict()
    manifest["tables"] = {name: table.caption for name, table in run.tables.items()}


def _draw(run: Run) -> None:
    """Write the experiment's figures."""
    shown = []
    for name, drawn in _analysis(run.spec).draw(run).items():
        figure, caption = drawn if isinstance(drawn, tuple) else (drawn, "")
        save_figure(figure, run.folder.plots_path / name)
        if caption:
            shown.append({"name": name, "caption": caption})
    run.folder.manifest["shown_figures"] = shown


def _analysis(spec: ExperimentSpec) -> Analysis:
    if spec.analysis not in ANALYSES:
        raise ValueError(f"Unknown analysis {spec.analysis!r}. Available: {', '.join(ANALYSES)}.")
    return ANALYSES[spec.analysis]


def _check_factors(spec: ExperimentSpec) -> None:
    """Refuse factors that are named as a column of the results."""
    taken = {*_OF_SAE, *_OF_TRAINING, *_TOY_METRICS, *_STORED_METRICS}
    for sae in spec.saes:
        for name in sae.factors:
            if name in taken or re.fullmatch(r"s_\d+", name):
                raise ValueError(
                    f"SAE {sae.sae_id!r} has a factor {name!r}, which is a column of the results "
                    "already; give it another name."
                )
