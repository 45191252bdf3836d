"""One thread per operation, for work that many threads would only slow down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread_per_operation() -> Iterator[None]:
    """While open, PyTorch's CPU operations run on the thread that calls them.

    Small operations gain nothing from more, and on a busy machine waiting for the others can take
    a hundred times as long as the work.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
