"""`sbw diagnose`: evaluate SAEs on stored activations."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparse_but_wrong.cli.options import (
    AT_LEAST_0,
    AT_LEAST_1,
    NAME_OR_PATH,
    RUNS,
    column,
    device,
    made_how,
    out,
    threads,
    use_threads,
)

if TYPE_CHECKING:
    import sae_lens
    import torch

    from sparse_but_wrong.activations.stored import StoredActivations
    from sparse_but_wrong.metrics.evaluation import Evaluations
    from sparse_but_wrong.runs.folder import RunFolder

N_BATCHES = 16
LARGEST_BATCH = 4096


@click.command()
@click.argument("saes", nargs=-1, required=True, metavar="SAE...", type=NAME_OR_PATH)
@click.option(
    "--activations",
    type=NAME_OR_PATH,
    required=True,
    help="A cache, a folder of shards, a .npy or .safetensors file, or a dataset of activations.",
)
@column
@click.option("--samples", type=AT_LEAST_1, help="Samples at most. [default: all]")
@click.option(
    "--batch-size",
    type=AT_LEAST_1,
    help="Neighbouring samples per batch; standard errors are over batches. [default: a sixteenth "
    "of all samples, at most 4096]",
)
@click.option(
    "--exclude-token",
    "exclude_tokens",
    type=AT_LEAST_0,
    multiple=True,
    help="Leave out samples of the token with this id, for example BOS. Can be given several "
    "times.",
)
@click.option(
    "--exclude-outliers",
    is_flag=True,
    help="Leave out zero samples and those with more than 10 times the median norm.",
)
@device("to evaluate")
@threads
@out("diagnose")
def diagnose(
    saes: tuple[str, ...],
    activations: str,
    column: str | None,
    samples: int | None,
    batch_size: int | None,
    exclude_tokens: tuple[int, ...],
    exclude_outliers: bool,
    device: str,
    threads: int | None,
    out: Path | None,
) -> None:
    """Evaluate SAEs on activations: L0, dead latents, s_n^dec for every n, similarity, and more.

    SAE is a folder of sae_lens, dictionary_learning or sparsify, RELEASE/SAE_ID of a published one,
    or the folder of a run, which stands for all of its SAEs. If one cannot be evaluated, the others
    still are, and the exit code is 1.
    """
    from sparse_but_wrong.activations.stored import open_activations
    from sparse_but_wrong.atomic import claimed, full_disk_named
    from sparse_but_wrong.metrics.findings import of_other_activations, origin_of, remarks
    from sparse_but_wrong.report.evaluation import write_evaluation
    from sparse_but_wrong.runs.folder import fresh_path

    path = out or fresh_path(RUNS, "diagnose")
    use_threads(threads)
    advice = (
        "Nothing is kept there except for the table printed above. Free some space, or name "
        "a folder on another disk with --out, and run the command again."
    )
    # Claimed before the work, which may take hours, so that a bad folder is refused at once.
    with full_disk_named(path, advice), claimed(path) as place:
        started = time.monotonic()
        stored = open_activations(activations, column)
        loaded, failed = _load(saes, device)
        for name, sae in list(loaded.items()):
            if sae.cfg.d_in != stored.d_in:
                failed[name] = ValueError(
                    f"{name} reads activations of width {sae.cfg.d_in}, but those of {stored.name} "
                    f"have {stored.d_in}: they come from another model or hook."
                )
                del loaded[name]
        _tell(failed, anything_left=bool(loaded))
        n_samples = stored.n_samples if samples is None else min(samples, stored.n_samples)
        batch_size = batch_size or max(1, min(LARGEST_BATCH, n_samples // N_BATCHES))
        click.echo(
            f"{len(loaded)} SAE{'s' if len(loaded) > 1 else ''} on {n_samples:,} of "
            f"{stored.n_samples:,} samples of {stored.name}, d_in {stored.d_in}"
        )
        evaluations, of_samples = _evaluate(
            loaded, stored, batch_size, samples, exclude_tokens, exclude_outliers
        )
        failed.update(evaluations.failed)
        some = bool(len(evaluations))
        _tell(evaluations.failed if some else failed, anything_left=some)
        origins = {name: origin_of(loaded[name]) for name in evaluations.names}
        said = [
            *remarks(evaluations, origins),
            *of_other_activations(origins, *_recorded(stored)),
            *of_samples,
        ]
        click.echo(_table(evaluations))
        click.echo("\n".join(f"  - {remark}" for remark in said))
        facts = {
            "Activations": activations,
            "Samples": f"{n_samples:,} in batches of {batch_size:,} in order",
            **made_how(started),
        }
        reasons = {name: _reason(error) for name, error in failed.items()}
        write_evaluation(evaluations, place, stored.name, facts, said, reasons)
    click.echo(f"Tables and figures: {path}\nReport: {path / 'report.html'}")
    if failed:
        raise click.exceptions.Exit(1)


def _load(
    names: Sequence[str], device: str
) -> tuple[dict[str, sae_lens.SAE[Any]], dict[str, Exception]]:
    """The SAEs by name, for a run's folder all that it holds; and what went wrong with others."""
    from sparse_but_wrong.runs.folder import RunFolder, is_run
    from sparse_but_wrong.saes.load import load_sae

    saes: dict[str, sae_lens.SAE[Any]] = {}
    failed: dict[str, Exception] = {}
    for name in names:
        try:
            run = RunFolder.open(Path(name)) if is_run(Path(name)) else None
            short = Path(name).resolve().name if Path(name).exists() else name
            inside = {short: name} if run is None else _of_run(run)
        except (ValueError, OSError) as error:
            failed[name] = error
            continue
        for sae_id, place in inside.items():
            # Two folders of the same name, from two places, are told apart by their whole paths.
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
            f"evaluated: {', '.join(missing)}. `sbw run` with --resume trains them.",
            err=True,
        )
    # A run that is finished had all of them: those that are gone count as failures.
    wanted = ids if folder.manifest["status"] == "finished" else there
    return {sae_id: folder.sae_path(sae_id) for sae_id in wanted}


def _tell(failed: Mapping[str, Exception], anything_left: bool) -> None:
    """Say on stderr what went wrong.

    Raises:
        ValueError: no SAE is left.
    """
    if anything_left:
        for name, error in failed.items():
            click.echo(f"sbw: not evaluated: {name}: {_reason(error)}", err=True)
    elif len(failed) == 1:
        (error,) = failed.values()
        raise ValueError(_reason(error)) from error
    else:
        reasons = " ".join(f"{name}: {_reason(error)}" for name, error in failed.items())
        raise ValueError(f"None of the {len(failed)} SAEs can be evaluated. {reasons}")


def _reason(error: Exception) -> str:
    from sparse_but_wrong.untrusted import one_line

    if isinstance(error, (ValueError, OSError)):
        return " ".join(str(error).split())
    return f"{type(error).__name__}: {one_line(error)}"


def _recorded(stored: StoredActivations) -> tuple[str | None, str | None]:
    """The model and the hook of stored activations, where that is on record."""
    if stored.cache is not None:
        return stored.cache.model, stored.cache.hook
    # sae_lens names the column after the hook.
    return None, stored.parts[0].column


def _evaluate(
    saes: Mapping[str, sae_lens.SAE[Any]],
    stored: StoredActivations,
    batch_size: int,
    samples: int | None,
    exclude_tokens: Collection[int],
    exclude_outliers: bool,
) -> tuple[Evaluations, list[str]]:
    """The evaluations, and remarks on the samples."""
    import torch

    from sparse_but_wrong.activations.stored import without_tokens
    from sparse_but_wrong.metrics.evaluate import evaluate
    from sparse_but_wrong.metrics.row_norms import OUTLIER, NormTally, WithoutOutliers

    outliers: WithoutOutliers | None = None
    n_of_tokens = 0
    tokens = without_tokens(exclude_tokens) if exclude_tokens else None

    def keep(rows: torch.Tensor, token_ids: torch.Tensor | None) -> torch.Tensor:
        nonlocal n_of_tokens
        kept = torch.ones(len(rows), dtype=torch.bool)
        if tokens is not None:
            kept &= tokens(rows, token_ids)
            n_of_tokens += int((~kept).sum())
        if outliers is not None:
            kept[kept.clone()] = outliers(rows[kept])
        return kept

    def batches(what: str) -> Iterator[torch.Tensor]:
        from tqdm import tqdm

        n_samples = stored.n_samples if samples is None else min(samples, stored.n_samples)
        leaves_out = tokens is not None or outliers is not None
        bar = tqdm(
            stored.batches(batch_size, samples, keep=keep if leaves_out else None),
            desc=what,
            unit=" batches",
            total=-(-n_samples // batch_size),
            disable=not sys.stderr.isatty(),
        )
        return iter(bar)

    tally = NormTally()
    if exclude_outliers:
        # Outliers are known only once the norms of all samples are.
        for batch in batches("Reading norms"):
            tally.add(batch)
        outliers, tally, n_of_tokens = WithoutOutliers(tally), NormTally(), 0
    evaluations = evaluate(saes, tally.watch(batches("Evaluating")), skip_failing=True)
    said = []
    if exclude_tokens:
        said.append(f"Left out: {n_of_tokens:,} samples of the tokens to exclude.")
    if outliers is None:
        said += tally.in_words()
    else:
        said.append(
            f"Left out: {outliers.n_zero:,} samples of zeros and {outliers.n_outliers:,} with a "
            f"norm of more than {OUTLIER:g} times the median ({outliers.median:.3g})."
        )
    return evaluations, said


def _table(evaluations: Evaluations) -> str:
    import pandas as pd

    rows = []
    for found in evaluations:
        n = found.d_sae // 4
        s_n, error = found.projections[n], found.projection_standard_errors[n]
        rows.append(
            {
                "SAE": found.name,
                "d_sae": found.d_sae,
                "L0": f"{found.l0:.2f} ± {2 * found.l0_standard_error:.2g}",
                "5 %–95 %": f"{found.l0_quantile(0.05)}–{found.l0_quantile(0.95)}",
                "dead": found.dead_latents,
                "dense": found.dense_latents,
                "var. expl.": f"{found.variance_explained:.4f}",
                "c_dec": f"{found.c_dec:.4f}",
                "c_enc": f"{found.c_enc:.4f}",
                "s at H/4": f"{s_n:.4g} ± {2 * error:.1g}",
            }
        )
    table = pd.DataFrame(rows).to_string(index=False)
    return f"\n{table}\n\n± two standard errors over batches."
