"""Where the activations of a search come from, and what is drawn from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.activations.shuffled import ShuffledActivations
from sparse_but_wrong.activations.stored import StoredActivations, open_activations
from sparse_but_wrong.metrics.samples import check_activations
from sparse_but_wrong.training.batches import next_batch
from sparse_but_wrong.untrusted import user_path
from sparse_but_wrong.worlds.synthetic import SyntheticWorld
from sparse_but_wrong.worlds.world import ToyWorld

BATCH_SIZE = 1024

Activations = str | Path | Tensor | StoredActivations | ToyWorld | Iterable[Tensor]
"""What a search can be made on."""


def open_source(
    activations: Activations, column: str | None, n_samples: int, seed: int
) -> tuple[Iterator[Tensor], int, int | None]:
    """A stream that begins with samples to measure on which do not come again, if it can be had.

    Args:
        activations: as for `find_l0`.
        column: of a dataset.
        n_samples: to measure on; of stored activations at most a quarter is held out.
        seed: of the order.
    Returns:
        the stream, how many samples to measure on, and the number of features where it is known.
    """
    if isinstance(activations, str | Path) and SyntheticWorld.is_saved_in(user_path(activations)):
        activations = SyntheticWorld(activations)
    if isinstance(activations, ToyWorld):
        return activations.stream(BATCH_SIZE, seed), n_samples, activations.n_features
    if isinstance(activations, str | Path):
        activations = open_activations(str(activations), column)
    elif isinstance(activations, Tensor):
        activations = StoredActivations.of(activations)
    if not isinstance(activations, StoredActivations):
        return iter(activations), n_samples, None
    batch_size = max(1, min(BATCH_SIZE, activations.n_samples // 8))
    most = min(n_samples, activations.n_samples // 4)
    n_held_out = batch_size * max(1, most // batch_size)
    rest, held_out = activations.hold_out(n_held_out)
    first = in_random_order(held_out.batches(batch_size), seed)
    return chain(first, ShuffledActivations(rest, batch_size, seed)), n_held_out, None


def in_random_order(batches: Iterable[Tensor], seed: int) -> Iterator[Tensor]:
    """Batches of neighbours in random order: the first few of them come from all over the text,
    and samples of one document still lie side by side."""
    held = list(batches)
    order = torch.randperm(len(held), generator=torch.Generator().manual_seed(seed))
    return (held[i] for i in order.tolist())


def draw_samples(
    source: Iterator[Tensor], n_samples: int, device: torch.device | str = "cpu"
) -> Float[Tensor, "samples d_in"]:
    """The next samples of a stream, in float32.

    Raises:
        TypeError: as `draw_batch`.
        ValueError: the stream ends, a batch is not finite or of another shape, or all samples are
            the same.
    """
    drawn, held = 0, []
    while drawn < n_samples:
        held.append(draw_batch(source, held[0].shape[1] if held else None, device))
        drawn += len(held[-1])
    samples = torch.cat(held)[:n_samples]
    if bool((samples == samples[0]).all()):
        raise ValueError(
            f"the {len(samples)} samples drawn from the source are all the same, so that there is "
            "nothing to tell features by; check what they come from."
        )
    return samples


def draw_batch(
    source: Iterator[Tensor], d_in: int | None = None, device: torch.device | str = "cpu"
) -> Float[Tensor, "batch d_in"]:
    """The next batch of a stream, in float32, in memory of its own.

    Raises:
        TypeError, ValueError: as `next_batch`; ValueError also where it is not finite.
    """
    batch = next_batch(source, d_in, device)
    check_activations(batch, batch.shape[1])
    return batch
