"""Seeds of the parts of a run or a world, from one."""

from __future__ import annotations

import hashlib


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
