"""`sbw diagnose`: measure SAEs on stored activations."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch

from sparse_but_wrong.activations.dataset_part import DatasetPart
from sparse_but_wrong.activations.in_order import contiguous_batches, without_tokens
from sparse_but_wrong.activations.shards import MANIFEST
from sparse_but_wrong.activations.stored import StoredActivations, open_activations
from sparse_but_wrong.atomic import claimed, full_disk_named
from sparse_but_wrong.metrics.origin import of_other_activations, origin_of
from sparse_but_wrong.metrics.row_norms import OUTLIER, NormTally, WithoutOutliers
from sparse_but_wrong.metrics.stream import StreamScore, measure_each
from sparse_but_wrong.report.diagnosis import remarks, write_diagnosis
from sparse_but_wrong.runs.folder import RunFolder, fresh_path, is_run
from sparse_but_wrong.runs.provenance import provenance
from sparse_but_wrong.saes.load import load_sae
from sparse_but_wrong.untrusted import one_line, read_json

if TYPE_CHECKING:
    import sae_lens

RUNS = Path("runs")
N_BATCHES = 16
LARGEST_BATCH = 4096


def diagnose(
    names: Sequence[str],
    *,
    activations: str,
    column: str | None,
    samples: int | None,
    batch_size: int | None,
    device: str,
    threads: int | None,
    out: Path | None,
    exclude_tokens: Collection[int],
    exclude_outliers: bool,
) -> None:
    """Load SAEs, measure them in one pass, print a table and write a report.

    What is wrong with one SAE is said on stderr and in the report, and the others are measured; the
    command then ends with the exit code 1.

    Raises:
        ValueError, OSError: bad input, or not one SAE could be measured; the message is meant for
            the user.
    """
    path = out if out is not None else fresh_path(RUNS, "diagnose")
    if threads is not None:
        torch.set_num_threads(threads)
    advice = (
        "Nothing is kept there; the table printed above is all there is. Free space on it, or name "
        "a folder on another disk with --out, and run the command again."
    )
    # Before the work, which may take hours: what cannot be written to is better known now.
    with full_disk_named(path, advice), claimed(path) as place:
        started = time.monotonic()
        stored = open_activations(activations, column)
        saes, failed = _load(names, device)
        for name, sae in list(saes.items()):
            if sae.cfg.d_in != stored.d_in:
                failed[name] = ValueError(
                    f"{name} reads activations of width {sae.cfg.d_in}, but those of {stored.name} "
                    f"have {stored.d_in}; they are of another model or hook."
                )
                del saes[name]
        _say(failed, anything_left=bool(saes))
        n_samples = stored.n_samples if samples is None else min(samples, stored.n_samples)
        if batch_size is None:
            batch_size = max(1, min(LARGEST_BATCH, n_samples // N_BATCHES))
        click.echo(
            f"{len(saes)} SAE{'s' if len(saes) > 1 else ''} on {n_samples:,} of "
            f"{stored.n_samples:,} samples of {stored.name}, d_in {stored.d_in}"
        )
        scores, broken, of_samples = _measure(
            saes, stored, batch_size, samples, exclude_tokens, exclude_outliers
        )
        failed.update(broken)
        _say(broken if scores else failed, anything_left=bool(scores))
        origins = {name: origin_of(saes[name]) for name in scores}
        said = [
            *remarks(scores, origins),
            *of_other_activations(origins, *_recorded(stored, activations)),
            *of_samples,
        ]
        _print(scores, said)
        made = provenance()
        write_diagnosis(
            scores,
            place,
            stored.name,
            {
                "Activations": activations,
                "Samples": f"{n_samples:,} in batches of {batch_size:,} in order",
                "Time": f"{time.monotonic() - started:.0f} s",
                "Command": made["command"],
                "Started": made["created"],
                "Commit": made["commit"] or "–",
            },
            said,
            {name: _reason(error) for name, error in failed.items()},
        )
    click.echo(f"Tables and figures: {path}")
    click.echo(f"Report: {path / 'report.html'}")
    if failed:
        raise click.exceptions.Exit(1)


def _load(
    names: Sequence[str], device: str
) -> tuple[dict[str, sae_lens.SAE[Any]], dict[str, Exception]]:
    """The SAEs by name, of a run's folder all that it holds; and what went wrong with others."""
    saes: dict[str, sae_lens.SAE[Any]] = {}
    failed: dict[str, Exception] = {}
    for name in names:
        try:
            run = RunFolder.open(Path(name)) if is_run(Path(name)) else None
            inside = {_short(name): name} if run is None else _of_run(run)
        except (ValueError, OSError) as error:
            failed[name] = error
            continue
        for sae_id, place in inside.items():
            # Two folders of the same name, from two places, are told apart by the whole of it.
            key = str(place) if sae_id in saes or sae_id in failed else sae_id
            try:
                if run is not None:
                    run.checked_sae_path(sae_id)
                saes[key] = load_sae(place, device)
            # Anything: what others wrote can be wrong in more ways than a loader foresees.
            except Exception as error:
                failed[key] = error
    return saes, failed


def _of_run(folder: RunFolder) -> dict[str, Path]:
    """Where the SAEs of a run lie, by their names; of a finished run also those that are gone.

    Raises:
        ValueError: there is no finished SAE.
    """
    ids = [sae["sae_id"] for sae in folder.manifest["spec"]["saes"]]
    there = [sae_id for sae_id in ids if folder.has_sae(sae_id)]
    if not there:
        raise ValueError(f"{folder.path} is a run without a finished SAE; finish it first.")
    if missing := [sae_id for sae_id in ids if sae_id not in there]:
        click.echo(
            f"sbw: {len(missing)} of {len(ids)} SAEs of {folder.path} are not there and so not "
            f"measured: {', '.join(missing)}; `sbw run` with --resume trains them.",
            err=True,
        )
    # A run that is finished had all of them: those that are gone belong among what went wrong.
    asked = ids if folder.manifest["status"] == "finished" else there
    return {sae_id: folder.sae_path(sae_id) for sae_id in asked}


def _say(failed: Mapping[str, Exception], anything_left: bool) -> None:
    """Say on stderr what went wrong.

    Raises:
        ValueError: there is nothing left to measure.
    """
    if anything_left:
        for name, error in failed.items():
            click.echo(f"sbw: not measured: {name}: {_reason(error)}", err=True)
    elif len(failed) == 1:
        (error,) = failed.values()
        raise ValueError(_reason(error)) from error
    else:
        reasons = " ".join(f"{name}: {_reason(error)}" for name, error in failed.items())
        raise ValueError(f"none of the {len(failed)} SAEs can be measured. {reasons}")


def _reason(error: Exception) -> str:
    if isinstance(error, (ValueError, OSError)):
        return " ".join(str(error).split())
    return f"{type(error).__name__}: {one_line(error)}"


def _recorded(stored: StoredActivations, activations: str) -> tuple[str | None, str | None]:
    """The model and the hook that activations are of, where that is on record."""
    with suppress(ValueError, OSError):
        manifest = read_json(Path(activations).expanduser() / MANIFEST)
        model, hook = (manifest.get(name) for name in ("model", "hook"))
        return model if isinstance(model, str) else None, hook if isinstance(hook, str) else None
    # sae_lens names the column after the hook.
    part = stored.parts[0]
    return None, part.rows.column_names[0] if isinstance(part, DatasetPart) else None


def _short(name: str) -> str:
    return Path(name).resolve().name if Path(name).exists() else name


class _Kept:
    """Which samples are measured, for `contiguous_batches`; counts what it leaves out."""

    def __init__(self, tokens: Collection[int], outliers: WithoutOutliers | None) -> None:
        self._tokens = without_tokens(tokens) if tokens else None
        self._outliers = outliers
        self.leaves_out = bool(tokens) or outliers is not None
        self.n_of_tokens = 0

    def __call__(self, rows: torch.Tensor, token_ids: torch.Tensor | None) -> torch.Tensor:
        kept = torch.ones(len(rows), dtype=torch.bool)
        if self._tokens is not None:
            kept &= self._tokens(rows, token_ids)
            self.n_of_tokens += int((~kept).sum())
        if self._outliers is not None:
            kept[kept.clone()] = self._outliers(rows[kept])
        return kept


def _measure(
    saes: Mapping[str, sae_lens.SAE[Any]],
    stored: StoredActivations,
    batch_size: int,
    samples: int | None,
    exclude_tokens: Collection[int],
    exclude_outliers: bool,
) -> tuple[dict[str, StreamScore], dict[str, Exception], list[str]]:
    """The scores, what went wrong, and what there is to say of the samples."""
    tally, outliers = NormTally(), None
    if exclude_outliers:
        # Which samples those are is known only once the norms of all are.
        kept = _Kept(exclude_tokens, None)
        for batch in _batches(stored, batch_size, samples, kept, "Reading norms"):
            tally.add(batch)
        outliers, tally = WithoutOutliers(tally.result()), NormTally()
    kept = _Kept(exclude_tokens, outliers)
    batches = tally.watch(_batches(stored, batch_size, samples, kept, "Measuring"))
    results = dict(zip(saes, measure_each(list(saes.values()), batches), strict=True))
    said = []
    if exclude_tokens:
        said.append(f"Left out: {kept.n_of_tokens:,} samples of the tokens to exclude.")
    if outliers is None:
        said += tally.result().in_words()
    else:
        said.append(
            f"Left out: {outliers.n_zero:,} samples of zeros and {outliers.n_outliers:,} with a "
            f"norm of more than {OUTLIER:g} times the median ({outliers.median:.3g})."
        )
    scores = {name: r for name, r in results.items() if isinstance(r, StreamScore)}
    failed = {name: r for name, r in results.items() if isinstance(r, Exception)}
    return scores, failed, said


def _batches(
    stored: StoredActivations, batch_size: int, samples: int | None, kept: _Kept, what: str
) -> Iterator[torch.Tensor]:
    from tqdm import tqdm

    n_samples = stored.n_samples if samples is None else min(samples, stored.n_samples)
    bar = tqdm(
        contiguous_batches(stored, batch_size, samples, keep=kept if kept.leaves_out else None),
        desc=what,
        unit=" batches",
        total=-(-n_samples // batch_size),
        disable=not sys.stderr.isatty(),
    )
    return iter(bar)


def _print(scores: Mapping[str, StreamScore], said: Sequence[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("SAE", no_wrap=True)
    heads = ("d_sae", "L0", "5 %–95 %", "dead", "dense", "var. expl.", "c_dec", "c_enc", "s at H/4")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name, score in scores.items():
        n = score.d_sae // 4
        table.add_row(
            escape(name),
            str(score.d_sae),
            f"{score.l0.value:.2f} ± {2 * score.l0.standard_error:.2g}",
            f"{score.l0_quantile(0.05)}–{score.l0_quantile(0.95)}",
            str(score.dead_latents),
            str(score.dense_latents),
            f"{score.variance_explained.value:.4f}",
            f"{score.c_dec:.4f}",
            f"{score.c_enc:.4f}",
            f"{score.projections.values[n]:.4g} ± {2 * score.projections.standard_errors[n]:.1g}",
        )
    console.print(table)
    console.print("± two standard errors over batches.", soft_wrap=True)
    for remark in said:
        console.print(f"  - {remark}", soft_wrap=True, markup=False)
