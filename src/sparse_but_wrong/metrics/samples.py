"""Activations as every metric reads them: checked, walked in chunks, in the SAE's own frame.

An SAE may normalise each sample itself while it runs (`normalize_activations` of "layer_norm" or
"constant_norm_rescale"). Its weights then belong to normalised samples, and its reconstruction is
taken back to the sample's units at the end. Metrics are in those units: a latent's direction is the
one that it adds to a reconstruction, and a sample is compared with what the SAE gives for it when
no latent is active, which is `b_dec` taken back. For an SAE that does not normalise, these are the
decoder row and `b_dec` themselves, so one function written both ways has one result.

Axes: B samples, D d_in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    import sae_lens

_MAX_CHUNK_SAMPLES = 8192
_MAX_CHUNK_ELEMENTS = 2**25
_SMALL, _LARGE = 1e-13, 1e13


def check_activations(activations: Float[Tensor, "samples width"], d_in: int) -> None:
    """Refuse activations that cannot be measured by an SAE of width d_in.

    Raises:
        ValueError: activations that are not two-dimensional, of another width, without a sample,
            or with a value that is not finite (the message names the first).
    """
    if activations.ndim != 2 or activations.shape[1] != d_in:
        raise ValueError(
            f"the SAE reads activations of shape [samples, {d_in}], "
            f"but these have shape {list(activations.shape)}."
        )
    if activations.shape[0] == 0:
        raise ValueError("the activations hold no samples: pass at least one.")
    # A sum over anything infinite or NaN is not finite itself, and is much cheaper than a mask.
    # It can also overflow on finite values, so only the mask has the last word.
    if torch.isfinite(activations.sum()):
        return
    bad = (~torch.isfinite(activations)).nonzero()
    if bad.shape[0] > 0:
        sample, column = bad[0].tolist()
        raise ValueError(
            f"the activations are not finite: {bad.shape[0]} value(s), the first at sample "
            f"{sample}, dimension {column} ({activations[sample, column].item()}). "
            "Drop those samples, or look for the overflow that made them."
        )


def chunks(
    activations: Float[Tensor, "samples d_in"], sae: sae_lens.SAE[Any], first: int = 0
) -> Iterator[Float[Tensor, "chunk d_in"]]:
    """The samples in order, a few thousand at a time, on the device of the SAE.

    Chunks shrink for wide SAEs, so that what an SAE makes of one stays within 2²⁵ values.

    Args:
        first: number of the first sample, for messages.
    Raises:
        ValueError: as `check_readable`.
    """
    size = min(_MAX_CHUNK_SAMPLES, max(1, _MAX_CHUNK_ELEMENTS // max(sae.W_dec.shape)))
    for i, chunk in enumerate(activations.split(size)):
        check_readable(sae, chunk, first + i * size)
        yield chunk.to(sae.W_dec.device)


def dense(latent_acts: Tensor) -> Tensor:
    """Latent activations as a dense tensor: TopK SAEs can return sparse ones."""
    return latent_acts.to_dense() if latent_acts.is_sparse else latent_acts


def at_least_float32(tensor: Tensor) -> Tensor:
    """The same values in float32, or in float64 if they were: sums in half precision go wrong."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def with_room_for_squares(tensor: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """The same values, at least float32, and float64 where float32 may not hold their squares.

    That is where a row's largest value is beyond 10¹³ or, unless it is 0, below 10⁻¹³. All else
    stays as it is, to the bit.
    """
    tensor = at_least_float32(tensor)
    largest = tensor.abs().amax(1) if tensor.shape[1] else tensor.new_zeros(1)
    extreme = (largest > _LARGE) | ((largest > 0) & (largest < _SMALL))
    return tensor.double() if bool(extreme.any()) else tensor


def unit_rows(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """Rows of norm 1, at least float32, from rows of any scale; a row of zeros stays one."""
    rows = at_least_float32(rows)
    unit = torch.nn.functional.normalize(rows, dim=1)
    largest = rows.abs().amax(1)
    # Norms below 1e-12 are not divided by, and those of such rows overflow or vanish.
    extreme = (largest > _LARGE) | ((largest > 0) & (largest < 10 * _SMALL))
    if bool(extreme.any()):
        few = rows[extreme].double()
        # By the largest first, so that the square of nothing vanishes even then.
        few = few / few.abs().amax(1, keepdim=True)
        unit[extreme] = torch.nn.functional.normalize(few, dim=1).to(unit.dtype)
    return unit


class Frame(NamedTuple):
    """Samples, and where the decoder's rows start from: projections are (samples − bias)·row."""

    samples: Float[Tensor, "B D"]
    bias: Float[Tensor, " D"]
    unit: Float[Tensor, "B 1"] | None
    """What 1 in the SAE's own space is in the units of each sample; None where it is 1."""


def decoder_frame(sae: sae_lens.SAE[Any], samples: Float[Tensor, "B D"]) -> Frame:
    """The frame in which projections on an SAE's decoder rows are measured.

    Raises:
        ValueError: as `check_readable`.
    """
    check_readable(sae, samples)
    if not _normalises(sae, samples):
        return Frame(samples, sae.b_dec, None)
    own = samples.to(sae.b_dec.device, torch.promote_types(samples.dtype, torch.float32))
    nothing = _taken_back(sae, own, torch.zeros_like)
    unit = _taken_back(sae, own, torch.ones_like) - nothing
    bias = _taken_back(sae, own, sae.b_dec.to(own.dtype).expand_as)
    # Zeros, and NaN where the bias is not finite.
    return Frame(own - bias, sae.b_dec * 0, unit[:, :1])


def check_readable(sae: sae_lens.SAE[Any], samples: Float[Tensor, "B D"], first: int = 0) -> None:
    """Refuse samples that an SAE cannot bring into the space in which it works.

    Args:
        first: number of the first sample, for messages.
    Raises:
        ValueError: the SAE expects the heads of a hook_z apart, or its own normalisation gives no
            finite number for a sample, as a rescaling to one norm does for a sample of zeros; the
            message names the first such sample.
    """
    if sae.hook_z_reshaping_mode:
        raise ValueError(
            "the SAE reads activations head by head, as [..., n_heads, d_head], and here they are "
            "flat; call sae.turn_off_forward_pass_hook_z_reshaping() first."
        )
    if not _normalises(sae, samples):
        return
    own = samples.to(sae.b_dec.device, sae.b_dec.dtype)
    # There and back again: a norm of 0, or one that overflows, shows one way or the other.
    there_and_back = _taken_back(sae, own, lambda normalised: normalised)
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


def _normalises(sae: sae_lens.SAE[Any], samples: Tensor) -> bool:
    # The config may say otherwise: folding a factor into weights rewrites it, not what is run.
    few = samples[:1].to(sae.b_dec.device, sae.b_dec.dtype)
    normalised = sae.run_time_activation_norm_fn_in(few)
    if normalised is few:
        return False
    sae.run_time_activation_norm_fn_out(normalised)  # forgets the sample
    return True


def _taken_back(
    sae: sae_lens.SAE[Any], samples: Float[Tensor, "B D"], point: Callable[[Tensor], Tensor]
) -> Float[Tensor, "B D"]:
    """A point of the SAE's own space, which may depend on the sample, in each sample's units."""
    return sae.run_time_activation_norm_fn_out(point(sae.run_time_activation_norm_fn_in(samples)))
