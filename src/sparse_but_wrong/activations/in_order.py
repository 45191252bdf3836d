"""One pass over stored activations, in order, to measure on."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.activations.stored import StoredActivations


def contiguous_batches(
    stored: StoredActivations, batch_size: int, n_samples: int | None = None
) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Batches of consecutive samples, once.

    Samples of one document are alike. They lie side by side, and here mostly in the same batch, so
    that the spread of a figure over batches tells its standard error; over shuffled batches, which
    all hold a little of every document, it would come out too small.

    Args:
        stored: the activations.
        batch_size: samples per batch.
        n_samples: how many to read at most; all, if left out. Where this is fewer than there are,
            only whole batches are read, as many as fit in: the samples are cut into equal shares,
            one per batch, and each batch lies in the middle of its share.
    Returns:
        float32 batches [batch_size, d_in], in the order in which they are stored. Where all samples
        are read, the last batch has what is left.
    Raises:
        ValueError: batch_size below one, or n_samples below it although there are more.
        OSError: from the iterator, a part that cannot be read.
    """
    if batch_size < 1:
        raise ValueError(f"batches have at least one sample, not batch_size = {batch_size}.")
    if n_samples is None or n_samples >= stored.n_samples:
        starts = list(range(0, stored.n_samples, batch_size))
    elif n_samples < batch_size:
        raise ValueError(
            f"n_samples = {n_samples} is less than a batch of {batch_size}; read more, or lower "
            "batch_size."
        )
    else:
        n_batches = n_samples // batch_size
        spare = stored.n_samples - n_batches * batch_size
        starts = [i * batch_size + spare * (2 * i + 1) // (2 * n_batches) for i in range(n_batches)]
    return (
        stored.read(start, min(start + batch_size, stored.n_samples)).float() for start in starts
    )
