"""The threads that train on drawn blocks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparse_but_wrong.training.batches import Block
from sparse_but_wrong.training.group import Group
from sparse_but_wrong.training.stack import Steps


@dataclass
class PendingBlock:
    """A block that is drawn and not yet trained on by all."""

    block: Block
    source_state: dict[str, Tensor]
    """Where the source stood before the block was drawn."""
    groups: list[Group]
    """Those that train on it; the others have not begun, or are through."""
    futures: dict[tuple[Group, int], Future[None]] = field(default_factory=dict)
    """By group and chunk."""

    def wait(self) -> None:
        """Until every group is through with it, or has failed."""
        wait(self.futures.values())


def in_turn(before: Future[None] | None, group: Group, chunk: int, steps: Steps) -> None:
    """Take some steps once those before are taken.

    Work is taken up in the order it is submitted in, so those before have been taken up when this
    is, and waiting for them always ends.
    """
    if before is not None:
        before.result()
    group.advance(chunk, steps)


def make_workers(n_threads: int) -> Executor:
    """Some threads; with none, the calling thread does the work itself."""
    if n_threads == 0:
        return _AtOnce()
    return ThreadPoolExecutor(n_threads, "sae", initializer=torch.set_num_threads, initargs=(1,))


class _AtOnce(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
