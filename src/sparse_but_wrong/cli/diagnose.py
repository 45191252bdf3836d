"""`sbw diagnose`: measure SAEs on stored activations."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch

from sparse_but_wrong.activations.in_order import contiguous_batches
from sparse_but_wrong.activations.stored import StoredActivations, open_activations
from sparse_but_wrong.atomic import is_free
from sparse_but_wrong.diagnostics.stream import StreamScore, measure_stream
from sparse_but_wrong.report.diagnosis import remarks, write_diagnosis
from sparse_but_wrong.runs.folder import RunFolder, fresh_path, is_run
from sparse_but_wrong.runs.provenance import provenance
from sparse_but_wrong.saes.load import load_sae

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
) -> None:
    """Load SAEs, measure them in one pass, print a table and write a report.

    Raises:
        ValueError, OSError: bad input; the message is meant for the user.
    """
    path = out if out is not None else fresh_path(RUNS, "diagnose")
    if not is_free(path):
        raise FileExistsError(f"{path} is not empty, and nothing is overwritten; choose another.")
    if threads is not None:
        torch.set_num_threads(threads)
    started = time.monotonic()
    stored = open_activations(activations, column)
    saes = _load(names, device)
    for name, sae in saes.items():
        if sae.cfg.d_in != stored.d_in:
            raise ValueError(
                f"{name} reads activations of width {sae.cfg.d_in}, but those of {stored.name} "
                f"have {stored.d_in}; they are of another model or hook."
            )
    n_samples = stored.n_samples if samples is None else min(samples, stored.n_samples)
    if batch_size is None:
        batch_size = max(1, min(LARGEST_BATCH, n_samples // N_BATCHES))
    click.echo(
        f"{len(saes)} SAE{'s' if len(saes) > 1 else ''} on {n_samples:,} of {stored.n_samples:,} "
        f"samples of {stored.name}, d_in {stored.d_in}"
    )
    scores = _measure(saes, stored, batch_size, samples)
    made = provenance()
    report = write_diagnosis(
        scores,
        path,
        stored.name,
        {
            "Activations": activations,
            "Samples": f"{n_samples:,} in batches of {batch_size:,} in order",
            "Time": f"{time.monotonic() - started:.0f} s",
            "Command": made["command"],
            "Started": made["created"],
            "Commit": made["commit"] or "–",
        },
    )
    _print(scores, path, report)


def _load(names: Sequence[str], device: str) -> dict[str, sae_lens.SAE[Any]]:
    """The SAEs by name; of a run's folder, all that it holds."""
    saes: dict[str, sae_lens.SAE[Any]] = {}
    for name in names:
        if is_run(Path(name)):
            folder = RunFolder.open(Path(name))
            ids = [sae["sae_id"] for sae in folder.manifest["spec"]["saes"]]
            inside = {sae_id: folder.sae_path(sae_id) for sae_id in ids if folder.has_sae(sae_id)}
            if not inside:
                raise ValueError(f"{name} is a run without a finished SAE; finish it first.")
        else:
            inside = {_short(name): name}
        for key, place in inside.items():
            # Two folders of the same name, from two places, are told apart by the whole of it.
            saes[str(place) if key in saes else key] = load_sae(place, device)
    return saes


def _short(name: str) -> str:
    return Path(name).resolve().name if Path(name).exists() else name


def _measure(
    saes: Mapping[str, sae_lens.SAE[Any]],
    stored: StoredActivations,
    batch_size: int,
    samples: int | None,
) -> dict[str, StreamScore]:
    from tqdm import tqdm

    batches = contiguous_batches(stored, batch_size, samples)
    n_samples = stored.n_samples if samples is None else min(samples, stored.n_samples)
    bar = tqdm(
        batches,
        desc="Measuring",
        unit=" batches",
        total=-(-n_samples // batch_size),
        disable=not sys.stderr.isatty(),
    )
    return dict(zip(saes, measure_stream(list(saes.values()), iter(bar)), strict=True))


def _print(scores: Mapping[str, StreamScore], path: Path, report: Path) -> None:
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
    for remark in remarks(scores):
        console.print(f"  - {remark}", soft_wrap=True, markup=False)
    console.print(f"Tables and figures: {path}", soft_wrap=True, markup=False)
    console.print(f"Report: {report}", soft_wrap=True, markup=False)
