"""Everything that is measured of an SAE, in one pass over activations.

Axes: B samples of a batch, D d_in, H d_sae, S SAEs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.metrics.evaluation import DENSE, Evaluation, Evaluations
from sparse_but_wrong.metrics.moments import BatchMoments
from sparse_but_wrong.metrics.projections import CountedProjections, SortedProjections
from sparse_but_wrong.metrics.reconstruction import ReconstructionTotals
from sparse_but_wrong.metrics.recovery import (
    decoder_similarity,
    encoder_similarity,
    match_latents,
)
from sparse_but_wrong.metrics.samples import (
    at_least_float32,
    check_activations,
    chunks,
    decoder_frame,
    dense,
    unit_rows,
)
from sparse_but_wrong.sae_lens_compat import inference_copy

if TYPE_CHECKING:
    import sae_lens

EXACT_BELOW = 2**29
"""Projections (samples × latents) that are kept and sorted: 2 GiB, for one SAE at a time."""

_BATCH = 8192
_LARGEST_STORED_BATCH, _STORED_BATCHES = 4096, 16
_BARS = 200

_T = TypeVar("_T")


@runtime_checkable
class HasBatches(Protocol):
    """Stored activations: something that yields its samples in order, batch by batch."""

    @property
    def n_samples(self) -> int: ...

    def batches(self, batch_size: int) -> Iterable[Tensor]: ...


@overload
def evaluate(
    saes: sae_lens.SAE[Any],
    activations: Float[Tensor, "samples d_in"] | Iterable[Tensor] | HasBatches,
    true_features: Float[Tensor, "d_in n_features"] | None = None,
    *,
    exact_below: int = ...,
    batch_size: int | None = ...,
    as_trained: bool = ...,
    skip_failing: bool = ...,
) -> Evaluation: ...
@overload
def evaluate(
    saes: Sequence[sae_lens.SAE[Any]] | Mapping[str, sae_lens.SAE[Any]],
    activations: Float[Tensor, "samples d_in"] | Iterable[Tensor] | HasBatches,
    true_features: Float[Tensor, "d_in n_features"] | None = None,
    *,
    exact_below: int = ...,
    batch_size: int | None = ...,
    as_trained: bool = ...,
    skip_failing: bool = ...,
) -> Evaluations: ...
@torch.no_grad()
def evaluate(
    saes: Any,
    activations: Float[Tensor, "samples d_in"] | Iterable[Tensor] | HasBatches,
    true_features: Float[Tensor, "d_in n_features"] | None = None,
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
    grow with the norms, which say nothing about the directions learned. A row of zeros projects
    everything to 0. For an SAE that normalises each sample itself, b_dec is taken back to the units
    of the sample first.

    At a low L0 a wrong SAE reconstructs *better* than the true features held to the same L0, by
    mixing them: `mse` and `variance_explained` say whether training went well, never which L0 is
    right.

    Args:
        saes: one sae_lens SAE, or several of one d_in: a sequence, or by name.
        activations: in the units the SAEs read. A tensor [samples, d_in]; a stream of batches
            [batch, d_in] that ends; or stored activations. Memory does not grow with a stream.
            Standard errors take batches to be independent: cut a stream of documents into batches
            of neighbours, so that what samples of one document share is within a batch.
        true_features: the true directions as columns, where they are known.
        exact_below: up to so many projections (samples × latents) of a tensor are sorted; those
            beyond, and those of streams, are counted (see `projection_relative_error`).
        batch_size: samples per batch of a tensor (8,192 if left out) or of stored activations (a
            sixteenth of them, at most 4,096).
        as_trained: evaluate training SAEs as they are, BatchTopK SAEs with their k per batch.
        skip_failing: leave out SAEs that make an error, which `Evaluations.failed` then holds.
    Returns:
        an `Evaluation` of a single SAE, `Evaluations` of several.
    Raises:
        ValueError: no SAEs, or SAEs of different d_in; activations of another width, none at all,
            or with values that are not finite (the message names the first) or that an SAE cannot
            normalise; true features as in `match_latents`.
    Source: Chanin & Garriga-Alonso 2025, arXiv:2508.16560, for s_n^dec and c_dec.
    """
    is_single = hasattr(saes, "W_dec")
    several = [saes] if is_single else saes
    if not isinstance(several, Mapping):
        several = {str(place): sae for place, sae in enumerate(several)}
    named: dict[str, sae_lens.SAE[Any]] = dict(several)
    if not named:
        raise ValueError("there are no SAEs to evaluate; give at least one.")
    widths = sorted({sae.cfg.d_in for sae in named.values()})
    if len(widths) > 1:
        raise ValueError(
            f"the SAEs read activations of different widths ({', '.join(map(str, widths))}); "
            "evaluate those of one width at a time."
        )
    (d_in,) = widths
    each = _Each(named, skip_failing)

    def totals(name: str, n_exact: int | None = None) -> _Totals:
        sae = named[name] if as_trained else inference_copy(named[name])
        return _Totals(name, sae, true_features, n_exact)

    if isinstance(activations, Tensor):
        check_activations(activations, d_in)
        n_samples, size = len(activations), batch_size or _BATCH

        def evaluated(name: str) -> Evaluation:
            exact = n_samples * named[name].W_dec.shape[0] <= exact_below
            of_sae = totals(name, n_samples if exact else None)
            for i, batch in enumerate(activations.split(size)):
                of_sae.add(batch, i * size)
            return of_sae.result()

        results = each(evaluated)
    else:
        if isinstance(activations, HasBatches):
            share = max(1, activations.n_samples // _STORED_BATCHES)
            activations = activations.batches(batch_size or min(share, _LARGEST_STORED_BATCH))
        running = each(totals)
        n_batches = 0
        for batch in activations:
            if not each.left:
                break
            with _naming_batch(n_batches):
                check_activations(batch, d_in)
            each(lambda name, batch=batch, n=n_batches: running[name].add_batch(batch, n))
            n_batches += 1
            del batch
        if n_batches == 0 and each.left:
            raise ValueError("the stream held no batches; there is nothing to evaluate on.")
        results = each(lambda name: running[name].result())
    if is_single:
        for error in each.failed.values():
            raise error
        return results["0"]
    return Evaluations(results.values(), each.failed)


class _Each:
    """Takes a step for every SAE that has made no error so far."""

    def __init__(self, names: Iterable[str], skip_failing: bool) -> None:
        self.left, self._skip = list(names), skip_failing
        self.failed: dict[str, Exception] = {}

    def __call__(self, step: Callable[[str], _T]) -> dict[str, _T]:
        done = {}
        for name in tuple(self.left):
            try:
                done[name] = step(name)
            # Anything: sae_lens checks little of a config before it runs, and others' SAEs have
            # code of their own.
            except Exception as error:
                if not self._skip:
                    raise
                self.failed[name] = error
                self.left.remove(name)
        return done


@contextmanager
def _naming_batch(number: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"batch {number}: {error}") from error


class _Totals:
    """What is added up of one SAE.

    Args:
        n_exact: how many samples there will be, if their projections are to be sorted.
    """

    def __init__(
        self,
        name: str,
        sae: sae_lens.SAE[Any],
        true_features: Tensor | None,
        n_exact: int | None,
    ) -> None:
        self.name, self.sae, self.d_sae = name, sae, sae.W_dec.shape[0]
        self.match = None if true_features is None else match_latents(sae, true_features)
        directions = unit_rows(sae.W_dec)
        self.projections: SortedProjections | CountedProjections | None = None
        # Where weights are not finite no order exists.
        if bool(torch.isfinite(directions).all() and torch.isfinite(sae.b_dec).all()):
            self.projections = (
                CountedProjections(directions)
                if n_exact is None
                else SortedProjections(directions, n_exact)
            )
        self.n_samples = 0
        self.active = torch.zeros(self.d_sae, dtype=torch.int64)
        self.l0_counts = torch.zeros(self.d_sae + 1, dtype=torch.int64)
        self.has_nan = torch.zeros(self.d_sae, dtype=torch.bool)
        self.l0, self.s = BatchMoments(), BatchMoments()
        self.reconstruction = ReconstructionTotals(torch.float64 if n_exact is None else None)

    def add_batch(self, batch: Tensor, number: int) -> None:
        with _naming_batch(number):
            self.add(batch)

    def add(self, batch: Float[Tensor, "B D"], first: int = 0) -> None:
        """Add a batch, the first sample of which has a number."""
        n_active = 0
        for chunk in chunks(batch, self.sae, first):
            inputs = at_least_float32(chunk)
            latent_acts = self.sae.encode(inputs.to(self.sae.W_dec.dtype))
            n_active += self._add_latents(dense(latent_acts))
            self.reconstruction.add(inputs, self.sae.decode(latent_acts))
            if self.projections is not None:
                frame = decoder_frame(self.sae, inputs)
                self.projections.add(frame.samples, frame.bias)
        self.n_samples += len(batch)
        self.l0.add(torch.tensor(n_active / len(batch), dtype=torch.float64), len(batch))
        self.reconstruction.end_batch()
        if self.projections is not None:
            self.s.add(self.projections.end_batch(), len(batch))

    def _add_latents(self, latent_acts: Float[Tensor, "chunk H"]) -> int:
        # Not zero rather than positive: an AbsTopK SAE has latents that are active when negative.
        active = latent_acts != 0
        per_sample = active.sum(1)
        self.active += active.sum(0).cpu()
        self.has_nan |= latent_acts.sum(0).isnan().cpu()
        self.l0_counts += torch.bincount(per_sample, minlength=self.d_sae + 1).cpu()
        return int(per_sample.sum())

    def result(self) -> Evaluation:
        densities = (self.active / self.n_samples).masked_fill(self.has_nan, torch.nan)
        diverged = bool(self.has_nan.any())
        reconstruction = self.reconstruction.result()
        s, standard_errors, edges, counts = self._projections()
        return Evaluation(
            name=self.name,
            n_samples=self.n_samples,
            n_batches=self.l0.n_batches,
            d_sae=self.d_sae,
            # Whole numbers up to here, so that L0 is exact however many chunks there were.
            l0=math.nan if diverged else int(self.active.sum()) / self.n_samples,
            l0_standard_error=math.nan if diverged else float(self.l0.standard_error),
            l0_counts=self.l0_counts.numpy(),
            densities=densities.numpy(),
            dead_latents=int((self.active == 0).sum()),
            dense_latents=int((densities > DENSE).sum()),
            mse=reconstruction.mse,
            mse_standard_error=reconstruction.mse_standard_error,
            variance_explained=reconstruction.variance_explained,
            variance_explained_standard_error=reconstruction.variance_explained_standard_error,
            shrinkage=reconstruction.shrinkage,
            c_dec=decoder_similarity(self.sae),
            c_enc=encoder_similarity(self.sae),
            match=self.match,
            projections=s.numpy(),
            projection_standard_errors=standard_errors.numpy(),
            projection_relative_error=getattr(self.projections, "relative_error", math.nan),
            histogram_edges=edges.numpy(),
            histogram_counts=counts.numpy(),
        )

    def _projections(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """s_n, their standard errors, and edges and counts of the histogram."""
        if self.projections is None:
            unknown = torch.full((self.d_sae,), torch.nan)
            none = torch.zeros(_BARS, dtype=torch.int64)
            return unknown, unknown, torch.linspace(-1, 1, _BARS + 1), none
        values = self.projections.entries(torch.arange(self.d_sae) * self.n_samples)
        values = values.to(at_least_float32(self.sae.W_dec).dtype)
        last = self.n_samples * self.d_sae - 1
        # All but a ten-thousandth at either end: a few samples of huge norm would leave one bar.
        tail = last // 10_000
        low, high = self.projections.entries(torch.tensor([last - tail, tail])).tolist()
        margin = 0.01 * ((high - low) or abs(high) or 100.0)
        edges = torch.linspace(low - margin, high + margin, _BARS + 1)
        return values, self.s.standard_error.float(), edges, self.projections.histogram(edges)
