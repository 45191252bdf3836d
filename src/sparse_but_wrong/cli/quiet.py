"""Keep a search's sweeps from reporting on each of their SAEs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_training() -> Iterator[None]:
    """Leave out what the engine would say of single SAEs.

    Which of them missed the L0 that was asked of it does not matter to a search: each is measured.
    """
    training = logging.getLogger("sparse_but_wrong.training")
    level = training.level
    training.setLevel(logging.ERROR)
    try:
        yield
    finally:
        training.setLevel(level)
