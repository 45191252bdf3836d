"""What is drawn from a stream to measure on and to learn from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.metrics.samples import check_activations


def draw_samples(source: Iterator[Tensor], n_samples: int) -> Float[Tensor, "samples d_in"]:
    """The next samples of a stream, on the CPU, in float32.

    Raises:
        TypeError: as `draw_batch`.
        ValueError: the stream ends, a batch is not finite or of another shape, or all samples are
            the same.
    """
    drawn, held = 0, []
    while drawn < n_samples:
        held.append(draw_batch(source, held[0].shape[1] if held else None))
        drawn += len(held[-1])
    samples = torch.cat(held)[:n_samples]
    if bool((samples == samples[0]).all()):
        raise ValueError(
            f"the {len(samples)} samples drawn from the source are all the same, so that there is "
            "nothing to tell features by; mend the source."
        )
    return samples


def draw_batch(source: Iterator[Tensor], d_in: int | None = None) -> Float[Tensor, "batch d_in"]:
    """The next batch of a stream, on the CPU, in float32, in memory of its own.

    Raises:
        TypeError: a source that is no iterator, or one that yields something else than tensors.
        ValueError: the stream ends, or the batch is not finite or of another shape.
    """
    if not hasattr(source, "__next__"):
        raise TypeError(
            f"the source is a {type(source).__name__}, not an iterator; give iter(…) of it, or "
            "itertools.cycle(…) to go through it again and again."
        )
    try:
        batch = next(source)
    except StopIteration:
        raise ValueError(
            "the source ended before there was enough to learn from; give one that goes on, for "
            "example itertools.cycle(…) over batches, or lower the budgets."
        ) from None
    if not isinstance(batch, Tensor):
        raise TypeError(
            f"the source yields {type(batch).__name__} objects; give one that yields tensors of "
            "shape [batch, d_in]."
        )
    if batch.ndim != 2:
        raise ValueError(
            f"the source yields activations of shape {list(batch.shape)}; give one that yields "
            "tensors of shape [batch, d_in]."
        )
    check_activations(batch, batch.shape[1] if d_in is None else d_in)
    # A copy: a source may fill the same tensor anew.
    return batch.detach().to("cpu", torch.float32, copy=True)
