"""What every diagnostic does with a batch of activations: check it, then walk it in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.metrics.working_space import check_readable

if TYPE_CHECKING:
    import sae_lens

_MAX_CHUNK_SAMPLES = 8192
_MAX_CHUNK_ELEMENTS = 2**25


def check_activations(activations: Float[Tensor, "samples width"], d_in: int) -> None:
    """Refuse activations that no diagnostic can measure.

    Args:
        activations: shape [samples, width].
        d_in: the width the SAE reads.
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


_SMALL, _LARGE = 1e-13, 1e13


def with_room_for_squares(tensor: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """The same values, at least float32, and float64 where float32 may not hold their squares.

    That is where a row's largest value is beyond 10¹³ or, unless it is 0, below 10⁻¹³: sums of
    squares would be infinite or lose what they are made of. All else stays as it is, to the bit.
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
