"""A run in its middle: what it hands out at chosen steps, and what it can be resumed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    import sae_lens


@dataclass(frozen=True)
class Snapshot:
    """An SAE in the middle of its training, as it would be had the training ended there."""

    step: int
    """Steps it has taken."""
    index: int
    """Its place in the caller's list."""
    sae: sae_lens.TrainingSAE[Any]
    """A copy, in the units of the activations, its k or coefficient as of this step."""


@dataclass(frozen=True)
class TrainingState:
    """A run in the middle, as tensors and numbers only, so that nothing needs unpickling."""

    tensors: dict[str, Tensor]
    """Of every group and of the source, by name."""
    n_drawn: int
    """Batches drawn from the source."""
    n_steps: list[int]
    """Steps taken by each group."""
    n_samples: list[int]
    """Samples that each group was trained on."""
