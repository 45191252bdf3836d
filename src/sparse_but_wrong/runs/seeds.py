"""Seeds of the parts of a run, from the run's own."""

from __future__ import annotations

import hashlib

from sparse_but_wrong.runs.spec import ONLY_WORLD


def derive_seed(seed: int, *purpose: str) -> int:
    """A seed for one purpose: stable, and unrelated to those of other purposes.

    Each part of a run has its own, so that an SAE's initial weights do not change when another is
    added to the sweep.

    Args:
        seed: of the run.
        purpose: what the seed is for, for example ``("sae", "l0_coefficient_0.5")``.
    Returns:
        an integer in [0, 2⁶³).
    """
    text = "/".join((str(seed), *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def world_seed(seed: int, purpose: str, world: str) -> int:
    """The seed of a world's directions, stream or evaluation samples.

    Args:
        seed: of the run.
        purpose: ``world``, ``stream`` or ``evaluation``.
        world: its name. That of a world that is the only one does not enter.
    """
    return derive_seed(seed, purpose, *(() if world == ONLY_WORLD else (world,)))
