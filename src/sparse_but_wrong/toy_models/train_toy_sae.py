"""The published import path of training one SAE on a toy model."""

from sparse_but_wrong.training.toy_sae import (
    train_toy_sae,
)

__all__ = ["train_toy_sae"]
