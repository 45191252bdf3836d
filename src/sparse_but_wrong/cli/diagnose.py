"""`sbw diagnose`: evaluate SAEs on stored activations."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparse_but_wrong.cli.options import (
    AT_LEAST_0,
    AT_LEAST_1,
    NAME_OR_PATH,
    PATH,
    TEXT,
    column,
    device,
    out,
    quiet_libraries,
    results,
    short_name,
    threads,
)
from sparse_but_wrong.cli.probing import probing_options, task_activations
from sparse_but_wrong.untrusted import one_line

if TYPE_CHECKING:
    import sae_lens
    from torch import Tensor

    from sparse_but_wrong.activations.stored import Keep, StoredActivations
    from sparse_but_wrong.metrics.evaluation import Evaluations
    from sparse_but_wrong.metrics.evidence import Evidence
    from sparse_but_wrong.runs.folder import RunFolder

_ACTIVATIONS = (
    "A cache, a folder of shards, a .npy or .safetensors file, or a dataset of activations."
)
_BATCH_SIZE = (
    "Neighbouring samples per batch; standard errors are over batches. [default: a sixteenth of "
    "all samples, at most 4096]"
)
_TOKEN = "Leave out samples of the token with this id, for example BOS. Can be given several times."
_ANY_HOOK = "Evaluate also SAEs that were trained on another hook or layer than the activations."
_MODEL = "Language model that the activations come from. [default: as on record]"
_LOSS_TEXT = f"Text on which to measure the model's loss with reconstructions in it. {TEXT}"
_LOSS_TOKENS = "Tokens of --loss-text whose activations are replaced."
_EXAMPLES = (
    "Latents per SAE to show top examples of: the strongest, the densest, and some at random."
)
_OUTLIERS = "Leave out zero samples and those with more than 10 times the median norm."

_TO_CHOOSE_BY = 4096
"""Samples that tell which latents are the strongest."""


@click.command()
@click.argument("saes", nargs=-1, required=True, metavar="SAE...", type=NAME_OR_PATH)
@click.option("--activations", type=NAME_OR_PATH, required=True, help=_ACTIVATIONS)
@column
@click.option("--samples", type=AT_LEAST_1, help="Samples at most. [default: all]")
@click.option("--batch-size", type=AT_LEAST_1, help=_BATCH_SIZE)
@click.option("--exclude-token", "exclude_tokens", type=AT_LEAST_0, multiple=True, help=_TOKEN)
@click.option("--exclude-outliers", is_flag=True, help=_OUTLIERS)
@click.option("--any-hook", is_flag=True, help=_ANY_HOOK)
@probing_options
@click.option("--model", type=NAME_OR_PATH, help=_MODEL)
@click.option("--loss-text", type=PATH, multiple=True, help=_LOSS_TEXT)
@click.option("--loss-tokens", type=AT_LEAST_1, default=20_000, help=_LOSS_TOKENS)
@click.option("--examples", "n_latents", type=AT_LEAST_1, help=_EXAMPLES)
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
    any_hook: bool,
    loss_text: tuple[Path, ...],
    loss_tokens: int,
    n_latents: int | None,
    probing: Path | None,
    probing_cache: Path | None,
    probing_length: int,
    probing_texts: int,
    model: str | None,
    device: str,
    out: Path | None,
) -> None:
    """Evaluate SAEs on activations: L0, dead latents, s_n^dec for every n, similarity, and more.

    With --loss-text also the cross entropy of the model with their reconstructions in it, and with
    --examples the tokens on which some latents are most active.

    SAE is a folder of sae_lens, dictionary_learning or sparsify, RELEASE/SAE_ID of a published one,
    or the folder of a run, which stands for all of its SAEs. If one cannot be evaluated, the others
    still are, and the exit code is 1.
    """
    import torch

    from sparse_but_wrong.activations.stored import neighbours_per_batch, open_activations
    from sparse_but_wrong.l0.agreement import agreement_evidence
    from sparse_but_wrong.metrics.examples import choose_latents, top_examples
    from sparse_but_wrong.metrics.findings import of_other_activations, origin_of, remarks
    from sparse_but_wrong.metrics.model_loss import model_loss
    from sparse_but_wrong.metrics.probing import probe
    from sparse_but_wrong.report.evaluation import write_evaluation

    with results(out, "diagnose") as (place, made_how):
        stored = open_activations(activations, column)
        loaded, failed, runs = _load(saes, device, stored, any_hook)
        _tell(failed, loaded)
        text = decode = None
        with quiet_libraries():  # before the evaluation, which can take long
            if loss_text:
                from sparse_but_wrong.activations.loss_text import open_loss_text

                kinds = {"n_tokens": loss_tokens, "model": model, "device": device}
                text = open_loss_text(stored, loss_text, **kinds)
            if n_latents:
                from sparse_but_wrong.activations.tokens import open_decoder

                decode = open_decoder(stored, model)
        tasks = {}
        if probing is not None:
            options = probing, probing_cache, probing_length, probing_texts
            tasks = task_activations(
                *options, stored, model or stored.origin[0], stored.origin[1], device
            )
        n_samples = min(samples or stored.n_samples, stored.n_samples)
        batch_size = batch_size or neighbours_per_batch(n_samples)
        if n_samples < stored.n_samples:  # of which whole batches are read, if there is one
            n_samples = n_samples // batch_size * batch_size or n_samples
        click.echo(
            f"{len(loaded)} SAE{'s' if len(loaded) > 1 else ''} on {n_samples:,} of "
            f"{stored.n_samples:,} samples of {stored.name}, d_in {stored.d_in}"
        )
        evaluations, of_samples, keep = _evaluate(
            loaded, stored, batch_size, n_samples, exclude_tokens, exclude_outliers
        )
        _tell(evaluations.failed, evaluations)
        failed |= evaluations.failed
        origins = {name: origin_of(loaded[name]) for name in evaluations.names}
        said = [
            *remarks(evaluations, origins),
            *of_other_activations(origins, *stored.origin),
            *of_samples,
        ]
        click.echo(_table(evaluations))
        click.echo("\n".join(f"  - {remark}" for remark in said))
        evaluated = {name: loaded[name] for name in evaluations.names}
        agreement = agreement_evidence(evaluated, evaluations, runs)
        evidence, examples = [agreement] if agreement.table.notna().any(axis=None) else [], []
        if text:
            evidence.append(model_loss(evaluated, *text, progress=sys.stderr.isatty()))
        if tasks:
            evidence.append(probe(evaluated, tasks, progress=sys.stderr.isatty()))
        click.echo("".join(map(_evidence_table, evidence)), nl=False)
        if n_latents and decode:
            n = min(n_samples, _TO_CHOOSE_BY)
            some = torch.cat(list(stored.batches(neighbours_per_batch(n), n, keep=keep)))
            latents = {
                e.name: choose_latents(evaluated[e.name], e.densities, some, n_latents)
                for e in evaluations
            }
            looked_at = {"n_samples": n_samples, "batch_size": batch_size, "keep": keep}
            examples = top_examples(evaluated, latents, stored, decode, **looked_at)
        facts = {
            "Activations": activations,
            "Samples": f"{n_samples:,} in batches of {batch_size:,} in order",
            **made_how(),
        }
        reasons = {name: _reason(error) for name, error in failed.items()}
        written = stored.name, facts, said, reasons, evidence, examples, runs
        write_evaluation(evaluations, place, *written)
    if failed:
        raise click.exceptions.Exit(1)


def _load(
    names: Sequence[str], device: str, stored: StoredActivations, any_hook: bool
) -> tuple[dict[str, sae_lens.SAE[Any]], dict[str, Exception], dict[str, str]]:
    """The SAEs by name, for a run's folder all that it holds; what went wrong with others; and the
    run that each SAE is of."""
    from sparse_but_wrong.metrics.findings import hooks_differ, origin_of
    from sparse_but_wrong.runs.folder import RunFolder, is_run
    from sparse_but_wrong.saes.load import load_sae

    _, hook = stored.origin
    saes: dict[str, sae_lens.SAE[Any]] = {}
    failed: dict[str, Exception] = {}
    runs: dict[str, str] = {}
    for name in names:
        try:
            run = RunFolder.open(Path(name)) if is_run(Path(name)) else None
            inside = _places_in(run) if run else {short_name(name): name}
        except (ValueError, OSError) as error:
            failed[name] = error
            continue
        for short, where in inside.items():
            # Two folders of the same name, from two places, are told apart by their whole paths.
            key = str(where) if short in saes or short in failed else short
            try:
                sae = load_sae(run.checked_sae_path(short) if run else where, device)
                if sae.cfg.d_in != stored.d_in:
                    raise ValueError(
                        f"it reads activations of width {sae.cfg.d_in}, but those of {stored.name} "
                        f"have {stored.d_in}: they come from another model or hook."
                    )
                trained_at = origin_of(sae).hook
                if not any_hook and hooks_differ(trained_at, hook):
                    raise ValueError(
                        f"it reads {trained_at}, but {stored.name} holds activations of {hook}. "
                        "Evaluate it on those of its own hook, or with --any-hook on these."
                    )
                saes[key], runs[key] = sae, str(run.path) if run else ""
            # Anything: what others wrote can be wrong in more ways than a loader foresees.
            except Exception as error:
                failed[key] = error
    return saes, failed, runs


def _places_in(run: RunFolder) -> dict[str, Path]:
    """Where the SAEs of a run lie, by name; of a finished run, which had all, also those gone."""
    ids = [sae["sae_id"] for sae in run.manifest["spec"]["saes"]]
    if run.manifest["status"] != "finished":
        missing = [sae_id for sae_id in ids if not run.has_sae(sae_id)]
        if len(missing) == len(ids):
            raise ValueError(f"{run.path} is a run without a finished SAE; finish it first.")
        if missing:
            click.echo(
                f"sbw: {len(missing)} of {len(ids)} SAEs of {run.path} are not there and so not "
                f"evaluated: {', '.join(missing)}. `sbw run` with --resume trains them.",
                err=True,
            )
        ids = [sae_id for sae_id in ids if sae_id not in missing]
    return {sae_id: run.sae_path(sae_id) for sae_id in ids}


def _tell(failed: Mapping[str, Exception], others: Collection[object]) -> None:
    """Say on stderr what went wrong with some SAEs; ValueError if there are no others."""
    reasons = [f"{name}: {_reason(error)}" for name, error in failed.items()]
    if not others:
        raise ValueError(" ".join(["No SAE can be evaluated.", *reasons]))
    for reason in reasons:
        click.echo(f"sbw: not evaluated: {reason}", err=True)


def _reason(error: Exception) -> str:
    if isinstance(error, (ValueError, OSError)):
        return " ".join(str(error).split())
    return f"{type(error).__name__}: {one_line(error)}"


def _evaluate(
    saes: Mapping[str, sae_lens.SAE[Any]],
    stored: StoredActivations,
    batch_size: int,
    n_samples: int,
    exclude_tokens: Collection[int],
    exclude_outliers: bool,
) -> tuple[Evaluations, list[str], Keep | None]:
    """The evaluations, remarks on the samples, and what tells which were kept."""
    import torch
    from tqdm import tqdm

    from sparse_but_wrong.activations.stored import without_tokens
    from sparse_but_wrong.metrics.evaluate import evaluate
    from sparse_but_wrong.metrics.row_norms import OUTLIER, NormTally, WithoutOutliers

    of_tokens = without_tokens(exclude_tokens) if exclude_tokens else None

    def keeper(outliers: WithoutOutliers | None = None) -> Keep | None:
        def keep(rows: Tensor, token_ids: Tensor | None) -> Tensor:
            kept = of_tokens(rows, token_ids) if of_tokens else torch.ones(len(rows)).bool()
            return kept.masked_scatter(kept, outliers(rows[kept])) if outliers else kept

        return keep if of_tokens or outliers else None

    def batches(what: str, keep: Keep | None) -> Iterable[Tensor]:
        return tqdm(
            stored.batches(batch_size, n_samples, keep=keep),
            desc=what,
            unit=" batches",
            total=-(-n_samples // batch_size),
            disable=not sys.stderr.isatty(),
        )

    keep = keeper()
    norms = NormTally()
    if exclude_outliers:
        # Outliers are known only once the norms of all samples are.
        for batch in batches("Reading norms", keep):
            norms.add(batch)
        outliers = WithoutOutliers(norms)
        keep = keeper(outliers)
        evaluations = evaluate(saes, batches("Evaluating", keep), skip_failing=True)
        said = [
            f"Left out: {outliers.n_zero:,} samples of zeros and {outliers.n_outliers:,} with a "
            f"norm of more than {OUTLIER:g} times the median ({outliers.median:.3g})."
        ]
    else:
        evaluations = evaluate(saes, norms.watch(batches("Evaluating", keep)), skip_failing=True)
        said = norms.in_words()
    if exclude_tokens:
        n_of_tokens = n_samples - norms.n_samples
        said.insert(0, f"Left out: {n_of_tokens:,} samples of the tokens to exclude.")
    return evaluations, said, keep


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


def _evidence_table(evidence: Evidence) -> str:
    from sparse_but_wrong.metrics.evidence import STANDARD_ERROR

    table, shown = evidence.table, {}
    for name in table.columns[~table.columns.str.endswith(STANDARD_ERROR)]:
        errors = table.get(name + STANDARD_ERROR)
        shown[name] = [f"{value:.4g}" for value in table[name]]
        if errors is not None:
            pairs = zip(shown[name], errors, strict=True)
            shown[name] = [f"{value} ± {2 * error:.1g}" for value, error in pairs]
    shown = type(table)(shown, index=table.index.rename("SAE")).reset_index()
    return f"\n{evidence.title}\n{shown.to_string(index=False)}\n"
