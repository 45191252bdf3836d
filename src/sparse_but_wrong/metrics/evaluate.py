"""Everything that is measured of an SAE, in one pass over activations.

Axes: B samples of a batch, D d_in, H d_sae, S SAEs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from sparse_but_wrong.metrics.evaluation import DENSE, Evaluation, Evaluations
from sparse_but_wrong.metrics.projections import CountedProjections, SortedProjections
from sparse_but_wrong.metrics.reconstruction import ReconstructionTotals
from sparse_but_wrong.metrics.recovery import match_latents, pairwise_similarity
from sparse_but_wrong.metrics.samples import (
    BatchMoments,
    at_least_float32,
    check_activations,
    chunks,
    decoder_frame,
    unit_rows,
)
from sparse_but_wrong.sae_lens_compat import inference_copy

if TYPE_CHECKING:
    import sae_lens

EXACT_BELOW = 2**29
"""Projections (samples × latents) that are kept and sorted: 2 GiB, for one SAE at a time."""

_BATCH = 8192
_BARS = 200

_T = TypeVar("_T")


@overload
def evaluate(
    saes: sae_lens.SAE[Any],
    activations: Float[Tensor, "samples d_in"] | Iterable[Tensor],
    true_features: Float[Tensor, "d_in n_features"] | None = None,
    true_feature_acts: Shaped[Tensor, "_samples _features"] | None = None,
    *,
    exact_below: int = ...,
    batch_size: int | None = ...,
    as_trained: bool = ...,
    skip_failing: bool = ...,
) -> Evaluation: ...
@overload
def evaluate(
    saes: Sequence[sae_lens.SAE[Any]] | Mapping[str, sae_lens.SAE[Any]],
    activations: Float[Tensor, "samples d_in"] | Iterable[Tensor],
    true_features: Float[Tensor, "d_in n_features"] | None = None,
    true_feature_acts: Shaped[Tensor, "_samples _features"] | None = None,
    *,
    exact_below: int = ...,
    batch_size: int | None = ...,
    as_trained: bool = ...,
    skip_failing: bool = ...,
) -> Evaluations: ...
@torch.no_grad()
def evaluate(
    saes: Any,
    activations: Float[Tensor, "samples d_in"] | Iterable[Tensor],
    true_features: Float[Tensor, "d_in n_features"] | None = None,
    true_feature_acts: Shaped[Tensor, "_samples _features"] | None = None,
    *,
    exact_below: int = EXACT_BELOW,
    batch_size: int | None = None,
    as_trained: bool = False,
    skip_failing: bool = False,
) -> Evaluation | Evaluations:
    """Measure SAEs on the same samples: sparsity, reconstruction, similarity, s_n^dec, recovery.

    Training SAEs are evaluated as they are used: of a BatchTopK SAE, which in training picks its k
    per batch, the thresholded (JumpReLU) export that sae_lens writes. The SAEs given are left as
    they are. An SAE that diverged is evaluated too, with NaN.

    With Z = (x − b_dec)·W_decᵀ over all samples and latents, sorted from the largest value down,
    s_n^dec is the entry at index n·samples. Decoder rows are scaled to unit norm first: projections
    grow with the norms, which say nothing about the directions learned. For an SAE that normalises
    each sample itself, b_dec is taken back to the units of the sample first.

    At a low L0 a wrong SAE reconstructs *better* than the true features held to the same L0:
    `mse` and `variance_explained` say whether training went well, never which L0 is right.

    Args:
        saes: one sae_lens SAE, or several of one d_in: a sequence, or by name.
        activations: in the units the SAEs read. A tensor [samples, d_in]; a stream of batches
            [batch, d_in] that ends; or stored activations. Memory does not grow with a stream.
            Standard errors take batches to be independent: cut a stream of documents into batches
            of neighbours, so that what samples of one document share is within a batch.
        true_features: the true directions as columns, where they are known.
        true_feature_acts: what each feature is on each of these samples, shape [samples,
            n_features], above 0 where it fires (booleans will do); for F1, precision and recall.
        exact_below: up to so many projections (samples × latents) of a tensor are sorted; those
            beyond, and those of streams, are counted (see `projection_relative_error`).
        batch_size: samples per batch of a tensor (8,192 if left out) or of stored activations (a
            sixteenth of them, at most 4,096, if left out).
        as_trained: evaluate training SAEs as they are, BatchTopK SAEs with their k per batch.
        skip_failing: leave out SAEs that make an error, which `Evaluations.failed` then holds.
    Raises:
        ValueError: no SAEs, or SAEs of different d_in; activations of another width, none at all,
            or with values that are not finite (the message names the first) or that an SAE cannot
            normalise; true features as in `match_latents`; activations of features without their
            directions, of other samples or features, or with NaN.
    Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, for s_n^dec and c_dec;
        `sae_lens.synthetic` for uniqueness, F1, precision and recall.
    """
    is_single = hasattr(saes, "W_dec")
    if not isinstance(saes, Mapping):
        saes = {str(place): sae for place, sae in enumerate([saes] if is_single else saes)}
    named: dict[str, sae_lens.SAE[Any]] = dict(saes)
    widths = {sae.cfg.d_in for sae in named.values()}
    if len(widths) != 1:
        raise ValueError(
            f"the SAEs to evaluate read activations of {len(widths)} different widths "
            f"{sorted(widths)}; give at least one SAE, and those of one width at a time."
        )
    (d_in,) = widths
    fires = None if true_feature_acts is None else _firing(true_feature_acts, true_features)
    failed: dict[str, Exception] = {}

    def each(step: Callable[[str], _T]) -> dict[str, _T]:
        """Take a step for every SAE that has made no error so far."""
        done = {}
        for name in [name for name in named if name not in failed]:
            try:
                done[name] = step(name)
            # Anything: sae_lens checks little of a config before it runs, and others' SAEs have
            # code of their own.
            except Exception as error:
                if is_single or not skip_failing:
                    raise
                failed[name] = error
        return done

    def totals(name: str, n_exact: int | None = None) -> _Totals:
        sae = named[name] if as_trained else inference_copy(named[name])
        return _Totals(name, sae, true_features, fires, n_exact)

    def check_n_samples(there_are: int, *, or_more: bool = False) -> None:
        n_fires = there_are if fires is None else len(fires)
        if n_fires < there_are or (n_fires > there_are and not or_more):
            raise ValueError(
                f"true_feature_acts is of {n_fires:,} samples, but the activations are of "
                f"{there_are:,}{' or more' if or_more else ''}; give both of the same samples, in "
                "the same order."
            )

    if isinstance(activations, Tensor):
        check_activations(activations, d_in)
        n_samples = len(activations)
        check_n_samples(n_samples)

        def evaluated(name: str) -> Evaluation:
            is_exact = n_samples * named[name].W_dec.shape[0] <= exact_below
            found = totals(name, n_samples if is_exact else None)
            for batch in activations.split(batch_size or _BATCH):
                found.add(batch)
            return found.result()

        results = each(evaluated)
    else:
        in_batches = getattr(activations, "batches", None)
        if batch_size is not None and in_batches is not None:
            activations = in_batches(batch_size)
        running = each(totals)
        n_samples = 0
        for batch in activations:
            if len(failed) == len(named):
                break
            check_activations(batch, d_in, n_samples)
            check_n_samples(n_samples + len(batch), or_more=True)
            each(lambda name, batch=batch: running[name].add(batch))
            n_samples += len(batch)
            del batch
        if len(failed) < len(named):
            if n_samples == 0:
                raise ValueError("the stream held no batches; there is nothing to evaluate on.")
            check_n_samples(n_samples)
        results = each(lambda name: running[name].result())
    return results["0"] if is_single else Evaluations(results.values(), failed)


def _firing(
    true_feature_acts: Tensor, true_features: Tensor | None
) -> Bool[Tensor, "samples n_features"]:
    if true_features is None:
        raise ValueError("true_feature_acts says when features fire; give true_features as well.")
    shape, n_features = list(true_feature_acts.shape), true_features.shape[-1]
    if len(shape) != 2 or shape[1] != n_features:
        raise ValueError(
            f"true_feature_acts holds a column for each of the {n_features} true features, so its "
            f"shape is [samples, {n_features}], but it is {shape}."
        )
    if true_feature_acts.isnan().any():
        raise ValueError("true_feature_acts holds NaN, which neither fires nor does not.")
    return true_feature_acts > 0


class _Totals:
    """What is added up of one SAE; of `n_exact` samples projections are sorted, else counted."""

    def __init__(
        self,
        name: str,
        sae: sae_lens.SAE[Any],
        true_features: Tensor | None,
        fires: Bool[Tensor, "samples F"] | None,
        n_exact: int | None,
    ) -> None:
        self.name, self.sae, self.d_sae = name, sae, sae.W_dec.shape[0]
        self.match = None if true_features is None else match_latents(sae, true_features)
        rows = unit_rows(sae.W_dec)
        self.projections: SortedProjections | CountedProjections | None = None
        self.fires, self.detectors = fires, None
        # Where weights are not finite no order exists, and no nearest feature.
        if torch.isfinite(rows).all() and torch.isfinite(sae.b_dec).all():
            sorts = n_exact is not None
            self.projections = (
                SortedProjections(rows, n_exact) if sorts else CountedProjections(rows)
            )
            if fires is not None and true_features is not None:
                from sparse_but_wrong.sae_lens_compat import ClassificationMetricsCalculator

                directions = unit_rows(true_features.to(rows).T)
                self.detectors = ClassificationMetricsCalculator(rows, directions)
        self.n_samples = 0
        self.active = torch.zeros(self.d_sae, dtype=torch.int64)
        self.l0_counts = torch.zeros(self.d_sae + 1, dtype=torch.int64)
        self.has_nan = torch.zeros(self.d_sae, dtype=torch.bool)
        self.l0, self.s = BatchMoments(), BatchMoments()
        self.reconstruction = ReconstructionTotals(torch.float64 if n_exact is None else None)

    def add(self, batch: Float[Tensor, "B D"]) -> None:
        n_active, at = 0, self.n_samples
        for chunk in chunks(batch, self.sae, self.n_samples):
            inputs = at_least_float32(chunk)
            # TopK SAEs can return sparse ones, which `decode` takes as they are.
            latent_acts = self.sae.encode(inputs.to(self.sae.W_dec.dtype))
            # Not above zero: an AbsTopK SAE has latents that are active when negative.
            active = latent_acts.to_dense() != 0
            # In int32, in which a CPU adds up booleans several times as fast as in int64.
            per_sample = active.sum(1, dtype=torch.int32)
            n_active += int(per_sample.sum())
            self.active += active.sum(0, dtype=torch.int32).cpu()
            self.l0_counts += torch.bincount(per_sample, minlength=self.d_sae + 1).cpu()
            self.has_nan |= latent_acts.to_dense().sum(0).isnan().cpu()
            self.reconstruction.add(inputs, self.sae.decode(latent_acts))
            if self.fires is not None and self.detectors is not None:
                of_chunk = self.fires[at : at + len(chunk)].to(active.device)
                self.detectors.add_batch(active, of_chunk)
                at += len(chunk)
            if self.projections is not None:
                frame = decoder_frame(self.sae, inputs)
                self.projections.add(frame.samples, frame.bias)
        self.n_samples += len(batch)
        self.l0.add(torch.tensor(n_active / len(batch), dtype=torch.float64), len(batch))
        self.reconstruction.end_batch()
        if self.projections is not None:
            self.s.add(self.projections.end_batch(), len(batch))

    def result(self) -> Evaluation:
        densities = (self.active / self.n_samples).masked_fill(self.has_nan, torch.nan)
        # Whole numbers up to here, so that L0 is exact however many chunks there were.
        l0, error = int(self.active.sum()) / self.n_samples, float(self.l0.standard_error)
        diverged = bool(self.has_nan.any())
        return Evaluation(
            name=self.name,
            n_samples=self.n_samples,
            n_batches=self.l0.n_batches,
            d_sae=self.d_sae,
            l0=math.nan if diverged else l0,
            l0_standard_error=math.nan if diverged else error,
            l0_counts=self.l0_counts.numpy(),
            densities=densities.numpy(),
            dead_latents=int((self.active == 0).sum()),
            dense_latents=int((densities > DENSE).sum()),
            c_dec=pairwise_similarity(self.sae.W_dec),
            c_enc=pairwise_similarity(self.sae.W_enc.T),
            match=self.match,
            **self._detection(diverged),
            **vars(self.reconstruction.result()),
            **self._projections(),
        )

    def _detection(self, diverged: bool) -> dict[str, float]:
        if diverged or self.detectors is None:
            return {"f1": math.nan, "precision": math.nan, "recall": math.nan}
        found = self.detectors.compute()
        return {"f1": found.f1_score, "precision": found.precision, "recall": found.recall}

    def _projections(self) -> dict[str, Any]:
        if self.projections is None:
            unknown = np.full(self.d_sae, np.nan, np.float32)
            s, errors, relative = unknown, unknown, math.nan
            edges, counts = torch.linspace(-1, 1, _BARS + 1), torch.zeros(_BARS, dtype=torch.int64)
        else:
            last = self.n_samples * self.d_sae - 1
            # All but a ten-thousandth at either end: a few samples of huge norm would leave one
            # bar.
            tail = last // 10_000
            low, high = self.projections.entries(torch.tensor([last - tail, tail])).tolist()
            margin = 0.01 * ((high - low) or abs(high) or 100.0)
            edges = torch.linspace(low - margin, high + margin, _BARS + 1)
            counts = self.projections.histogram(edges)
            dtype = at_least_float32(self.sae.W_dec).dtype
            ranks = torch.arange(self.d_sae) * self.n_samples
            s = self.projections.entries(ranks).to(dtype).numpy()
            errors = self.s.standard_error.float().numpy()
            relative = self.projections.relative_error
        return {
            "projections": s,
            "projection_standard_errors": errors,
            "projection_relative_error": relative,
            "histogram_edges": edges.numpy(),
            "histogram_counts": counts.numpy(),
        }
