"""Everything about SAEs that one pass over a stream of activations can tell.

For SAEs of tens of thousands of latents, and activations that do not fit in memory; what fits is
measured to the last digit by `score_sae`. Axes: B samples of a batch, D d_in, H d_sae.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_but_wrong.metrics.moments import BatchMoments, Estimate
from sparse_but_wrong.metrics.projection_counts import (
    RELATIVE_ERROR,
    count_projections,
    histogram,
    sorted_entries,
)
from sparse_but_wrong.metrics.recovery import decoder_similarity, encoder_similarity
from sparse_but_wrong.metrics.samples import (
    at_least_float32,
    check_activations,
    chunks,
    decoder_frame,
    dense,
    unit_rows,
    with_room_for_squares,
)

if TYPE_CHECKING:
    import sae_lens

DENSE = 0.1
"""A latent that is active on a larger share of the samples counts as dense."""

_BARS = 200

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class StreamedProjections:
    """s_n^dec of one SAE for every n, with unit-norm decoder rows."""

    values: Float[Tensor, " H"]
    """s_n^dec for n = 0 … H − 1, in the units of the activations."""

    standard_errors: Float[Tensor, " H"]
    """Of each, from how much batches differ; NaN where there was only one batch."""

    relative_error: float
    """Of the counting: each value is within this share of itself of what sorting would give."""

    edges: Float[Tensor, " edges"]
    """Of the bins of the histogram, ascending."""

    counts: Int[Tensor, " bars"]
    """Projections of samples on decoder rows in each bin; the outermost hold what lies beyond."""


@dataclass(frozen=True, eq=False)
class StreamScore:
    """All that was measured of one SAE over a stream. NaN throughout for one that diverged."""

    n_samples: int
    n_batches: int
    d_sae: int

    l0: Estimate
    """Active latents per sample."""

    l0_counts: Int[Tensor, " numbers"]
    """How many samples had 0, 1, … H active latents; shape [H + 1]."""

    densities: Float[Tensor, " H"]
    """The share of samples on which each latent was active."""

    dead_latents: int
    """Active on no sample. A rare latent looks dead on few samples."""

    dense_latents: int
    """Active on more than a tenth of the samples."""

    mse: Estimate
    """Squared error, summed over d_in and averaged over samples."""

    variance_explained: Estimate
    """1 − mean squared error / mean squared distance of the samples from their mean."""

    projections: StreamedProjections

    c_dec: float
    """Mean |cosine| between decoder rows."""

    c_enc: float
    """Mean |cosine| between encoder columns."""

    def l0_quantile(self, share: float) -> int:
        """The smallest number of active latents that a share of the samples does not exceed."""
        reached = self.l0_counts.cumsum(0)
        return int(torch.searchsorted(reached, math.ceil(share * self.n_samples)))

    def as_row(self) -> dict[str, float | int]:
        """The numbers as columns of a table; s_n^dec is left to `projections`."""
        return {
            "l0": self.l0.value,
            "l0_standard_error": self.l0.standard_error,
            "l0_p05": self.l0_quantile(0.05),
            "l0_median": self.l0_quantile(0.5),
            "l0_p95": self.l0_quantile(0.95),
            "dead_latents": self.dead_latents,
            "dense_latents": self.dense_latents,
            "mse": self.mse.value,
            "mse_standard_error": self.mse.standard_error,
            "variance_explained": self.variance_explained.value,
            "variance_explained_standard_error": self.variance_explained.standard_error,
            "c_dec": self.c_dec,
            "c_enc": self.c_enc,
            "d_sae": self.d_sae,
            "n_samples": self.n_samples,
            "n_batches": self.n_batches,
        }


@torch.no_grad()
def measure_stream(
    saes: Sequence[sae_lens.SAE[Any]], batches: Iterable[Float[Tensor, "_batch d_in"]]
) -> list[StreamScore]:
    """Measure SAEs in one pass over a stream: s_n^dec for all n, sparsity, reconstruction.

    Every batch is read once and shown to every SAE. Memory does not grow with the number of
    batches. Standard errors are those of independent batches: cut a stream of documents into
    batches of consecutive samples, so that what samples of one document share is within a batch.

    Decoder rows are scaled to unit norm for s_n^dec, as in `decoder_projection_curve`.

    Args:
        saes: sae_lens SAEs of one d_in, as they are used: of a BatchTopK SAE the thresholded
            export, since one in training picks its k per batch. They are left as they are.
        batches: each [batch, d_in], in the units the SAEs read; a stream that ends.
    Returns:
        one score per SAE, in their order.
    Raises:
        ValueError: no SAEs, SAEs of different d_in, no batches, or a batch of another width,
            with values that are not finite or samples that an SAE cannot normalise (the message
            names batch and place).
    """
    results = _measure(saes, batches, keep_going=False)
    return [result for result in results if isinstance(result, StreamScore)]


@torch.no_grad()
def measure_each(
    saes: Sequence[sae_lens.SAE[Any]], batches: Iterable[Float[Tensor, "_batch d_in"]]
) -> list[StreamScore | Exception]:
    """As `measure_stream`, but where an SAE cannot be measured the others still are.

    Returns:
        a score per SAE, in their order, or the error that it made. The stream is left where every
        SAE has made one.
    Raises:
        ValueError: as `measure_stream`, where it is not a single SAE that is at fault.
    """
    return _measure(saes, batches, keep_going=True)


def _measure(
    saes: Sequence[sae_lens.SAE[Any]], batches: Iterable[Tensor], keep_going: bool
) -> list[StreamScore | Exception]:
    if not saes:
        raise ValueError("there are no SAEs to measure; give at least one.")
    widths = {sae.cfg.d_in for sae in saes}
    if len(widths) > 1:
        raise ValueError(
            f"the SAEs read activations of different widths ({', '.join(map(str, sorted(widths)))})"
            "; measure those of one width at a time."
        )
    (d_in,) = widths
    failed: dict[int, Exception] = {}

    def each(step: Callable[[int], _T]) -> dict[int, _T]:
        done = {}
        for i in range(len(saes)):
            try:
                if i not in failed:
                    done[i] = step(i)
            # Anything: sae_lens checks little of a config before it runs, and others' SAEs have
            # code of their own.
            except Exception as error:
                if not keep_going:
                    raise
                failed[i] = error
        return done

    totals = each(lambda i: _Totals(saes[i]))
    n_batches = 0
    for batch in batches:
        if len(failed) == len(saes):
            break
        with _named(n_batches):
            check_activations(batch, d_in)
        each(lambda i, batch=batch, n=n_batches: totals[i].add(batch, n))
        n_batches += 1
        del batch
    if n_batches == 0 and len(failed) < len(saes):
        raise ValueError("the stream held no batches; there is nothing to measure on.")
    scores = each(lambda i: totals[i].result())
    return [failed[i] if i in failed else scores[i] for i in range(len(saes))]


@contextmanager
def _named(batch: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"batch {batch}: {error}") from error


class _Totals:
    """What is added up of one SAE."""

    def __init__(self, sae: sae_lens.SAE[Any]) -> None:
        self.sae = sae
        self.d_sae = sae.W_dec.shape[0]
        directions = unit_rows(sae.W_dec).float()
        # Where weights are not finite no order exists.
        finite = bool(torch.isfinite(directions).all() and torch.isfinite(sae.b_dec).all())
        self.directions = directions if finite else None
        self.n_samples = 0
        self.active = torch.zeros(self.d_sae, dtype=torch.int64)
        self.l0_counts = torch.zeros(self.d_sae + 1, dtype=torch.int64)
        self.has_nan = torch.zeros(self.d_sae, dtype=torch.bool)
        self.counts: Tensor | None = None
        self.l0, self.projections = BatchMoments(), BatchMoments()
        self.reconstruction = _Reconstruction()

    def add(self, batch: Tensor, number: int) -> None:
        with _named(number):
            self._add(batch)

    def _add(self, batch: Tensor) -> None:
        counts, active, squared_error = None, 0, 0.0
        for chunk in chunks(batch, self.sae):
            inputs = at_least_float32(chunk)
            latent_acts = self.sae.encode(inputs.to(self.sae.W_dec.dtype))
            per_sample = self._add_latents(dense(latent_acts))
            active += int(per_sample.sum())
            errors = inputs - at_least_float32(self.sae.decode(latent_acts))
            squares = with_room_for_squares(errors).square()
            squared_error += float(squares.sum(dtype=torch.float64))
            if self.directions is not None:
                frame = decoder_frame(self.sae, inputs)
                of_chunk = count_projections(frame.samples, self.directions, frame.bias)
                counts = of_chunk if counts is None else counts.add_(of_chunk)
        n = len(batch)
        self.n_samples += n
        self.l0.add(torch.tensor(active / n, dtype=torch.float64), n)
        self.reconstruction.add(batch, squared_error)
        if counts is not None:
            self.counts = counts if self.counts is None else self.counts + counts
            self.projections.add(self._entries(counts, n), n)

    def _add_latents(self, latent_acts: Float[Tensor, "chunk H"]) -> Int[Tensor, " chunk"]:
        active = latent_acts != 0
        per_sample = active.sum(1)
        self.active += active.sum(0).cpu()
        self.has_nan |= latent_acts.sum(0).isnan().cpu()
        self.l0_counts += torch.bincount(per_sample, minlength=self.d_sae + 1).cpu()
        return per_sample

    def _entries(self, counts: Tensor, n_samples: int) -> Float[Tensor, " H"]:
        return sorted_entries(counts, torch.arange(self.d_sae) * n_samples)

    def result(self) -> StreamScore:
        densities = (self.active / self.n_samples).masked_fill(self.has_nan, torch.nan)
        diverged = bool(self.has_nan.any())
        l0 = self.l0.estimate()
        mse, variance_explained = self.reconstruction.result()
        return StreamScore(
            n_samples=self.n_samples,
            n_batches=self.l0.n_batches,
            d_sae=self.d_sae,
            l0=Estimate(math.nan, math.nan) if diverged else l0,
            l0_counts=self.l0_counts,
            densities=densities,
            dead_latents=int((self.active == 0).sum()),
            dense_latents=int((densities > DENSE).sum()),
            mse=mse,
            variance_explained=variance_explained,
            projections=self._projections(),
            c_dec=decoder_similarity(self.sae),
            c_enc=encoder_similarity(self.sae),
        )

    def _projections(self) -> StreamedProjections:
        if self.counts is None:
            unknown = torch.full((self.d_sae,), torch.nan)
            edges = torch.linspace(-1, 1, _BARS + 1)
            none = torch.zeros(_BARS, dtype=torch.int64)
            return StreamedProjections(unknown, unknown, RELATIVE_ERROR, edges, none)
        values = self._entries(self.counts, self.n_samples).float()
        last = self.n_samples * self.d_sae - 1
        # All but a ten-thousandth at either end: a few samples of huge norm would leave one bar.
        tail = last // 10_000
        ends = sorted_entries(self.counts, torch.tensor([last - tail, tail]))
        low, high = (float(end) for end in ends)
        margin = 0.01 * ((high - low) or abs(high) or 100.0)
        edges = torch.linspace(low - margin, high + margin, _BARS + 1)
        return StreamedProjections(
            values=values,
            standard_errors=self.projections.standard_error.float(),
            relative_error=RELATIVE_ERROR,
            edges=edges,
            counts=histogram(self.counts, edges),
        )


class _Reconstruction:
    """Squared error and variance over batches, and how their ratio varies."""

    def __init__(self) -> None:
        self.error = BatchMoments()
        self.n_samples, self.n_batches = 0, 0
        self._origin: Tensor | None = None
        self._offsets = torch.zeros(0, dtype=torch.float64)
        self._sums = torch.zeros(5, dtype=torch.float64)

    def add(self, batch: Tensor, squared_error: float) -> None:
        inputs = with_room_for_squares(batch)
        if self._origin is None:
            # Any origin gives the same variance; one near the mean leaves nothing to cancel.
            self._origin = inputs.mean(0)
        off = inputs - self._origin
        distance = float(off.square().sum(dtype=torch.float64))
        self._offsets = off.sum(0, dtype=torch.float64).cpu() + (
            self._offsets if self.n_batches else 0.0
        )
        n = len(batch)
        self.error.add(torch.tensor(squared_error / n, dtype=torch.float64), n)
        self.n_samples += n
        self.n_batches += 1
        e, v = squared_error, distance
        self._sums += torch.tensor([e, v, e * e, e * v, v * v], dtype=torch.float64)

    def result(self) -> tuple[Estimate, Estimate]:
        """Mean squared error, and variance explained."""
        e, v, ee, ev, vv = self._sums.tolist()
        centre = float((self._offsets / self.n_samples).square().sum())
        variance = v - self.n_samples * centre
        # Samples that are all the same still differ from their computed mean by rounding.
        assert self._origin is not None
        scale = self.n_samples * float(self._origin.double().square().sum()) + v
        negligible = (16 * torch.finfo(torch.float32).eps) ** 2 * scale
        if not math.isfinite(e) or not math.isfinite(variance):
            return self.error.estimate(), Estimate(math.nan, math.nan)
        if variance <= negligible:
            return self.error.estimate(), Estimate(1.0 if e <= negligible else 0.0, math.nan)
        ratio = e / variance
        standard_error = math.nan
        if self.n_batches > 1:
            # Of a ratio of two sums: from Σ(e − ratio·v)² over batches.
            squares = max(0.0, ee - 2 * ratio * ev + ratio**2 * vv)
            standard_error = math.sqrt(squares * self.n_batches / (self.n_batches - 1)) / variance
        return self.error.estimate(), Estimate(1 - ratio, standard_error)
