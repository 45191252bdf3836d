"""The published import path of near-orthogonal directions."""

from sparse_but_wrong.worlds.toy_model import (
    orthogonalize,
)

__all__ = ["orthogonalize"]
