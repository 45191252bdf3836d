"""How many threads PyTorch's operations take: on a busy machine, small ones should take one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads_per_operation(n: int | None) -> Iterator[None]:
    """While open, PyTorch's CPU operations run on n threads; on as many as before for None.

    Small operations gain nothing from more than one, and on a busy machine waiting for the others
    can take a hundred times as long as the work.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
