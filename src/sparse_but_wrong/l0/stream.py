"""What is drawn from a stream to measure on and to learn from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.diagnostics.samples import check_activations


def draw_samples(source: Iterator[Tensor], n_samples: int) -> Float[Tensor, "samples d_in"]:
    """The next samples of a stream, on the CPU, in float32.

    Raises:
        ValueError: the stream ends, or a batch is not finite or of another shape.
    """
    drawn, held = 0, []
    while drawn < n_samples:
        held.append(draw_batch(source, held[0].shape[1] if held else None))
        drawn += len(held[-1])
    return torch.cat(held)[:n_samples]


def draw_batch(source: Iterator[Tensor], d_in: int | None = None) -> Float[Tensor, "batch d_in"]:
    """The next batch of a stream, on the CPU, in float32.

    Raises:
        TypeError: a source that is no iterator.
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
    check_activations(batch, d_in if d_in is not None else batch.shape[-1])
    return batch.detach().float().cpu()
