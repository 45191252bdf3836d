"""The published import path of near-orthogonal directions."""

from sparse_but_wrong.worlds.orthogonalize import (
    orthogonalize,
)

__all__ = ["orthogonalize"]
