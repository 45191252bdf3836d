"""Threads that take the steps of SAEs, each chunk of SAEs in turn."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import torch

from sparse_but_wrong.training.group import Group
from sparse_but_wrong.training.stack import Steps


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
