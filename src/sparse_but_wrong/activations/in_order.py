"""One pass over stored activations, in order, to measure on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparse_but_wrong.activations.stored import StoredActivations

Keep = Callable[[Float[Tensor, "rows d_in"], Int64[Tensor, " rows"] | None], Bool[Tensor, " rows"]]
"""Which of some samples to keep: called with them, as float32, and with the ids of their tokens,
which are none where none are stored."""


def contiguous_batches(
    stored: StoredActivations,
    batch_size: int,
    n_samples: int | None = None,
    *,
    keep: Keep | None = None,
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
        keep: which samples to keep, batch by batch; all, if left out. A batch of which some are
            left out is smaller, and one of which all are is none.
    Returns:
        float32 batches [batch_size, d_in], in the order in which they are stored. Where all samples
        are read, the last batch has what is left.
    Raises:
        ValueError: batch_size below one, or n_samples below it although there are more. From the
            iterator, that `keep` keeps nothing at all.
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
    pieces = ((start, min(start + batch_size, stored.n_samples)) for start in starts)
    if keep is None:
        return (stored.read(start, stop).float() for start, stop in pieces)
    return _kept(stored, pieces, keep)


def without_tokens(token_ids: Iterable[int]) -> Keep:
    """Keeps what is not of these tokens, for `contiguous_batches`.

    Models park attention on BOS and other special tokens, with activations so large that they
    distort every measure. `sae_lens.util.get_special_token_ids` names those of a tokenizer.

    Args:
        token_ids: of the tokens to leave out.
    Returns:
        raises ValueError for activations beside which no ids of tokens are stored.
    """
    excluded = torch.tensor(sorted(token_ids), dtype=torch.long)

    def keep(rows: Tensor, of_rows: Tensor | None) -> Tensor:
        if of_rows is None:
            raise ValueError(
                f"beside these activations of d_in {rows.shape[1]} no token_ids are stored, by "
                "which tokens could be left out; leave out nothing, or cache them anew."
            )
        return ~torch.isin(of_rows, excluded)

    return keep


def _kept(
    stored: StoredActivations, pieces: Iterable[tuple[int, int]], keep: Keep
) -> Iterator[Float[Tensor, "batch d_in"]]:
    is_empty = True
    for start, stop in pieces:
        rows = stored.read(start, stop).float()
        rows = rows[keep(rows, stored.read_token_ids(start, stop))]
        if len(rows):
            is_empty = False
            yield rows
    if is_empty:
        raise ValueError(f"of {stored.name} no sample is kept; leave out fewer.")
