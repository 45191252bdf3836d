"""The published import path of the toy model."""

from sparse_but_wrong.worlds.toy_model import (
    ToyModel,
)

__all__ = ["ToyModel"]
