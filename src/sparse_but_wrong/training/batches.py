"""Batches from a source, checked one by one and handed on in small blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from sparse_but_wrong.training.group import Group

_BLOCK_BYTES = 4 * 2**20
_MAX_BLOCK = 16


@runtime_checkable
class ResumableSource(Protocol):
    """A source whose place in the stream can be saved, so that a run can be resumed."""

    def __next__(self) -> Tensor:
        """The next batch of activations, shape [batch, d_in]."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The place in the stream, as tensors."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go to a place in the stream that `state` gave."""
        ...


@dataclass
class Block:
    """A few batches that follow each other in the stream, until every SAE is through with them."""

    first: int
    """Index in the stream of the first batch."""
    source_state: dict[str, Tensor]
    """Where the source stood before the block was drawn."""
    groups: list[Group]
    """Those that train on it; the others have not begun, or are through."""
    batches: list[Tensor] = field(default_factory=list)
    """Each [B, d_in] float32, finite, on the training device."""
    error: Exception | None = None
    """Why the stream cannot go on after these batches; they themselves are good, once settled."""
    are_finite: Callable[[], list[bool]] = list
    futures: dict[tuple[Group, int], Future[None]] = field(default_factory=dict)
    """The work on it, by group and chunk."""

    def settle(self) -> None:
        """Drop what is not finite, and all after it; only then may the batches be trained on."""
        for i, is_finite in enumerate(self.are_finite()):
            # The sum of a batch may have overflowed.
            if not is_finite and not bool(torch.isfinite(self.batches[i]).all()):
                self.error = _non_finite(self.first + i, self.batches[i])
                del self.batches[i:]
                return

    @property
    def n_samples(self) -> int:
        """Samples in all batches."""
        return sum(batch.shape[0] for batch in self.batches)

    def wait(self) -> None:
        """Until every group is through with it, or has failed."""
        wait(self.futures.values())


class BatchReader:
    """Reads the stream of activations that all SAEs of a run share.

    Blocks let an SAE take several steps while its parameters are in cache; how the stream is cut
    into them has no influence on any result.
    """

    def __init__(self, source: Iterator[Tensor], d_in: int, device: torch.device) -> None:
        self.source = source
        self.d_in = d_in
        self.device = device
        self.n_drawn = 0

    def draw(self, block: Block, n_samples: int | float, n_batches: int | float) -> None:
        """Fill a block with at most so many batches; it ends once it has so many samples.

        An exception of the source is kept as its `error`, so that the good batches before it still
        count. The block has to be settled before use.
        """
        room = min(n_batches, _MAX_BLOCK)
        while len(block.batches) < room and block.n_samples < n_samples:
            try:
                what = f"batch {self.n_drawn}"
                batch = next_batch(self.source, self.d_in, self.device, what)
            except Exception as error:
                block.error = error
                break
            block.batches.append(batch)
            self.n_drawn += 1
            room = min(room, max(1, _BLOCK_BYTES // (batch.numel() * batch.element_size())))
        if block.batches:
            block.are_finite = _ask_whether_finite(block.batches)


def next_batch(
    source: Iterator[Tensor], d_in: int | None, device: torch.device | str, what: str = "a batch"
) -> Float[Tensor, "B D"]:
    """The next batch of a source, in float32, in memory of its own; not yet checked to be finite.

    Args:
        d_in: its width; any for None.
        what: it is, for messages.
    Raises:
        TypeError: something else than a tensor.
        ValueError: the stream ends, or the batch has another shape.
    """
    try:
        batch = next(source)
    except StopIteration:
        raise ValueError(
            f"the source of activations ran out before {what}; give one that goes on "
            "(itertools.cycle repeats a finite one) or lower the number of samples or steps."
        ) from None
    if not isinstance(batch, Tensor):
        raise TypeError(
            f"{what} of the source is a {type(batch).__name__}; the source must yield tensors of "
            "shape [batch, d_in]."
        )
    if batch.ndim != 2 or batch.shape[1] != (d_in or batch.shape[1]) or batch.shape[0] == 0:
        width = "" if d_in is None else f" = {d_in}"
        raise ValueError(
            f"{what} of the source has shape {list(batch.shape)}, but the SAEs take "
            f"activations of shape [batch, d_in{width}]."
        )
    given = batch.detach()
    if given.device.type == "cpu" and torch.device(device).type == "cuda":
        # From memory that is pinned, a GPU copies while it is busy with the steps before, and
        # nobody waits. The memory is ours: a source may fill its own anew before that is done.
        pinned = torch.empty(given.shape, dtype=given.dtype, pin_memory=True).copy_(given)
        return pinned.to(device, non_blocking=True).to(torch.float32)
    batch = given.to(device, torch.float32)
    # Several batches are held at a time, and a source may fill the same tensor anew.
    return batch.clone() if batch.data_ptr() == given.data_ptr() else batch


def _ask_whether_finite(batches: list[Tensor]) -> Callable[[], list[bool]]:
    """Ask the device now whether each batch has a finite sum, and so finite entries; read it later.

    By then a GPU has other work queued, so that it does not wait for the host.
    """
    on_device = torch.isfinite(torch.stack([batch.sum() for batch in batches]))
    flags = on_device.to("cpu", non_blocking=True)
    copied = torch.cuda.Event() if on_device.is_cuda else None
    if copied is not None:
        copied.record()

    def read() -> list[bool]:
        if copied is not None:
            copied.synchronize()
        return flags.tolist()

    return read


def _non_finite(index: int, batch: Float[Tensor, "B D"]) -> ValueError:
    row, column = (~torch.isfinite(batch)).nonzero()[0].tolist()
    return ValueError(
        f"batch {index} of the source holds {batch[row, column].item()} at sample {row}, "
        f"dimension {column}; no SAE has been trained on it. Fix the source of activations."
    )
