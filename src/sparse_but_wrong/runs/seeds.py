"""Seeds of the parts of a run, from the run's own."""

from __future__ import annotations

from sparse_but_wrong.runs.spec import ONLY_WORLD
from sparse_but_wrong.seeds import derive_seed


def world_seed(seed: int, purpose: str, world: str) -> int:
    """The seed of a world's directions, stream or evaluation samples.

    Args:
        seed: of the run.
        purpose: ``world``, ``stream`` or ``evaluation``.
        world: its name. That of a world that is the only one does not enter.
    """
    return derive_seed(seed, purpose, *(() if world == ONLY_WORLD else (world,)))
