"""The published import path (spelt so) of the BatchTopK variant whose k may move."""

from __future__ import annotations

from sparse_but_wrong.training.enhanced_batchtopk_sae import (
    EnchancedBatchTopKTrainingSAE,
    EnhancedBatchTopKTrainingSAEConfig,
)

__all__ = ["EnchancedBatchTopKTrainingSAE", "EnhancedBatchTopKTrainingSAEConfig"]
