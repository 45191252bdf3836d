"""Activations as every metric reads them: checked, walked in chunks, in the SAE's own frame.

An SAE may normalise each sample itself while it runs (`normalize_activations` of "layer_norm" or
"constant_norm_rescale"). Metrics are in the units of the samples: a latent's direction is the one
that it adds to a reconstruction, and a sample is compared with what the SAE gives for it when no
latent is active, `b_dec` taken back to these units. For an SAE that does not normalise, these are
the decoder row and `b_dec` themselves, so one function written both ways has one result.

Axes: B samples, D d_in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    import sae_lens

_MAX_CHUNK_SAMPLES = 8192
_MAX_CHUNK_ELEMENTS = 2**25
_SMALL, _LARGE = 1e-13, 1e13


def check_activations(
    activations: Float[Tensor, "samples width"], d_in: int, first: int = 0
) -> None:
    """Refuse activations of another width than d_in, without a sample, or that are not finite.

    Args:
        first: number of the first sample, for messages.
    Raises:
        ValueError: for these; the message names the first value that is not finite.
    """
    if activations.ndim != 2 or activations.shape[1] != d_in or len(activations) == 0:
        raise ValueError(
            f"the SAE reads activations of shape [samples, {d_in}], at least one sample, but those "
            f"from sample {first} on have shape {list(activations.shape)}."
        )
    # A sum over anything infinite or NaN is not finite itself, and is much cheaper than a mask.
    # It can also overflow on finite values, so only the mask has the last word.
    if torch.isfinite(activations.sum()):
        return
    bad = (~torch.isfinite(activations)).nonzero()
    if len(bad):
        sample, column = bad[0].tolist()
        raise ValueError(
            f"the activations are not finite: {len(bad)} value(s), the first at sample "
            f"{first + sample}, dimension {column} ({activations[sample, column].item()}). "
            "Drop those samples, or look for the overflow that made them."
        )


def chunks(
    activations: Float[Tensor, "samples d_in"], sae: sae_lens.SAE[Any], first: int = 0
) -> Iterator[Float[Tensor, "chunk d_in"]]:
    """The samples in order, checked by `check_readable`, a few thousand at a time, on its device.

    Chunks shrink for wide SAEs, so that what an SAE makes of one stays within 2²⁵ values.
    """
    size = min(_MAX_CHUNK_SAMPLES, max(1, _MAX_CHUNK_ELEMENTS // max(sae.W_dec.shape)))
    for i, chunk in enumerate(activations.split(size)):
        check_readable(sae, chunk, first + i * size)
        yield chunk.to(sae.W_dec.device)


def encoder_inputs(
    activations: Float[Tensor, "samples d_in"], sae: sae_lens.SAE[Any]
) -> Iterator[Float[Tensor, "chunk d_in"]]:
    """The `chunks` in the SAE's own dtype, through float32: as it takes them for inference."""
    for chunk in chunks(activations, sae):
        yield at_least_float32(chunk).to(sae.W_dec.dtype)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The same values in float32, or in float64 if they were: sums in half precision go wrong."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def with_room_for_squares(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """The same values, at least float32, and float64 where float32 may not hold their squares.

    That is where a row's largest value is beyond 10¹³ or, unless it is 0, below 10⁻¹³.
    """
    rows = at_least_float32(rows)
    return rows.double() if bool(_extreme(rows, _SMALL).any()) else rows


def unit_rows(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """Rows of norm 1, at least float32, from rows of any scale; a row of zeros stays one."""
    rows = at_least_float32(rows)
    unit = torch.nn.functional.normalize(rows, dim=1)
    # Norms below 1e-12 are not divided by, and those of such rows overflow or vanish.
    extreme = _extreme(rows, 10 * _SMALL)
    if bool(extreme.any()):
        few = rows[extreme].double()
        # By the largest first, so that the square of nothing vanishes even then.
        few = few / few.abs().amax(1, keepdim=True)
        unit[extreme] = torch.nn.functional.normalize(few, dim=1).to(unit.dtype)
    return unit


def _extreme(rows: Float[Tensor, "rows width"], small: float) -> Bool[Tensor, " rows"]:
    largest = rows.abs().amax(1)
    return (largest > _LARGE) | ((largest > 0) & (largest < small))


class Frame(NamedTuple):
    """Samples, and where the decoder's rows start from: projections are (samples − bias)·row."""

    samples: Float[Tensor, "B D"]
    bias: Float[Tensor, " D"]
    unit: Float[Tensor, "B 1"] | None
    """What 1 in the SAE's own space is in the units of each sample; None where it is 1."""


def decoder_frame(sae: sae_lens.SAE[Any], samples: Float[Tensor, "B D"]) -> Frame:
    """That in which projections on decoder rows are measured, of samples that are readable."""
    own = at_least_float32(samples.to(sae.b_dec.device))
    # The config may say otherwise: folding a factor into weights rewrites it, not what is run.
    if _taken_back(sae, own, lambda normalised: normalised) is own:
        return Frame(samples, sae.b_dec, None)
    nothing = _taken_back(sae, own, torch.zeros_like)
    unit = _taken_back(sae, own, torch.ones_like) - nothing
    bias = _taken_back(sae, own, sae.b_dec.to(own.dtype).expand_as)
    # Zeros, and NaN where the bias is not finite.
    return Frame(own - bias, sae.b_dec * 0, unit[:, :1])


def check_readable(sae: sae_lens.SAE[Any], samples: Float[Tensor, "B D"], first: int = 0) -> None:
    """Refuse samples that an SAE cannot bring into the space in which it works.

    Raises:
        ValueError: the SAE expects the heads of a hook_z apart, or its own normalisation gives no
            finite number for a sample, as a rescaling to one norm does for a sample of zeros.
    """
    if sae.hook_z_reshaping_mode:
        raise ValueError(
            "the SAE reads activations head by head, as [..., n_heads, d_head], and here they are "
            "flat; call sae.turn_off_forward_pass_hook_z_reshaping() first."
        )
    own = samples.to(sae.b_dec.device, sae.b_dec.dtype)
    # There and back again: a norm of 0, or one that overflows, shows one way or the other.
    there_and_back = _taken_back(sae, own, lambda normalised: normalised)
    if there_and_back is own:
        return
    bad = (~torch.isfinite(there_and_back)).any(1).nonzero()
    if len(bad):
        sample = int(bad[0])
        norm = torch.linalg.vector_norm(samples[sample].double()).item()
        raise ValueError(
            f"sample {first + sample} has the norm {norm:g}, which the SAE's own normalisation "
            f"({sae.cfg.normalize_activations}) cannot bring to a finite number, and so "
            f"{len(bad)} of {len(samples)} samples; leave them out"
            f"{' (--exclude-outliers does)' if norm == 0 else ''}."
        )


def _taken_back(
    sae: sae_lens.SAE[Any], samples: Float[Tensor, "B D"], point: Callable[[Tensor], Tensor]
) -> Float[Tensor, "B D"]:
    """A point of the SAE's own space, which may depend on the sample, in each sample's units."""
    return sae.run_time_activation_norm_fn_out(point(sae.run_time_activation_norm_fn_in(samples)))


class BatchMoments:
    """The standard error of a mean over batches, in memory that does not grow with them.

    Batches are weighted by their samples and taken to be independent of each other; samples within
    one need not be. √(m/(m−1) · Σ w²(x − x̄)²) / Σw over m batches, in float64.
    """

    def __init__(self) -> None:
        self.n_batches = 0
        self._origin = torch.zeros(())

    def add(self, values: Tensor, weight: int | float) -> None:
        """Add what was measured on a batch of as many samples; of one shape for every batch."""
        values = values.double().cpu()
        if self.n_batches == 0:
            # Differences to the first batch: sums of squares of large numbers would lose digits.
            self._origin, self._weight, self._square_weight = values.clone(), 0.0, 0.0
            self._sums = torch.zeros(3, *values.shape, dtype=torch.float64)
        off = values - self._origin
        self.n_batches += 1
        self._weight += weight
        self._square_weight += weight**2
        self._sums += torch.stack([weight * off, weight**2 * off, weight**2 * off**2])

    @property
    def standard_error(self) -> Tensor:
        """Of the mean; NaN after one batch."""
        if self.n_batches < 2:
            return torch.full_like(self._origin, torch.nan)
        first, weighted, squared = self._sums
        mean = first / self._weight
        squares = squared - 2 * mean * weighted + mean**2 * self._square_weight
        factor = self.n_batches / (self.n_batches - 1)
        return (factor * squares.clamp_min(0)).sqrt() / self._weight
