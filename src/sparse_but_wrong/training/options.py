"""What a training run may be told, validated once when made."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run, with the names and meanings of sae_lens' ``SAETrainerConfig``.

    Raises:
        ValueError: a value that cannot be trained with; the message names the field.
    """

    total_training_samples: int = 15_000_000
    """Samples each SAE is trained on; the last batch may go past it, as in sae_lens."""

    train_batch_size_samples: int = 1024
    """Samples per batch; it sets the length of the learning-rate schedule."""

    lr: float = 3e-4
    """Adam's learning rate, after warm-up and before decay."""

    lr_end: float | None = None
    """Where the annealing schedulers end; a tenth of ``lr`` if left out."""

    lr_scheduler_name: str = "constant"
    """``constant``, ``cosineannealing`` or ``cosineannealingwarmrestarts``."""

    lr_warm_up_steps: int = 0
    """Steps over which the learning rate rises linearly to ``lr``."""

    lr_decay_steps: int = 0
    """Steps at the end over which the learning rate falls linearly to 0."""

    n_restart_cycles: int = 1
    """Cycles of ``cosineannealingwarmrestarts``."""

    adam_beta1: float = 0.9
    """Decay of Adam's mean gradient."""

    adam_beta2: float = 0.999
    """Decay of Adam's mean squared gradient."""

    dead_feature_window: int = 1000
    """A latent is dead once it has not fired for more than this many steps."""

    feature_sampling_window: int = 2000
    """Steps over which the L0 that sae_lens records in an SAE's metadata is counted."""

    n_batches_for_norm_estimate: int = 1000
    """Batches drawn first to estimate the mean norm (``expected_average_only_in`` only)."""

    reinit_dead_every: int | None = None
    """Every so many steps give latents that have not fired since, a new start on what their SAE
    leaves over (`reinitialize`); during the first two thirds of the run. sae_lens does not do
    this, so never if left out."""

    log_every: int = 100
    """Steps between two rows of the training log."""

    snapshot_steps: tuple[int, ...] = ()
    """Steps after which a copy of every SAE is handed to ``on_snapshot``."""

    threads: int | None = None
    """CPU threads to train on, one SAE per thread; PyTorch's own number if left out.
    The result does not depend on it."""

    compiled: bool = True
    """Step with loops compiled on this machine where they can be had (CPU only); to the same end,
    to float32 rounding, as without."""

    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        positive = (
            "total_training_samples",
            "train_batch_size_samples",
            "lr",
            "n_restart_cycles",
            "dead_feature_window",
            "feature_sampling_window",
            "n_batches_for_norm_estimate",
            "log_every",
        )
        for name in positive:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"TrainOptions.{name} must be positive, got {value}.")
        for name in ("lr_warm_up_steps", "lr_decay_steps"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"TrainOptions.{name} must not be negative, got {getattr(self, name)}."
                )
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"TrainOptions.{name} must lie in [0, 1), got {getattr(self, name)}."
                )
        for step in self.snapshot_steps:
            if not (isinstance(step, int) and 1 <= step <= self.n_steps):
                raise ValueError(
                    f"TrainOptions.snapshot_steps holds {step!r}, but the run has steps 1 to "
                    f"{self.n_steps}."
                )
        if self.reinit_dead_every is not None and self.reinit_dead_every < 1:
            raise ValueError(
                "TrainOptions.reinit_dead_every must be at least 1, or None for never; got "
                f"{self.reinit_dead_every}."
            )
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"TrainOptions.threads must be at least 1, got {self.threads}.")
        if self.lr_end is not None and not 0 <= self.lr_end <= self.lr:
            raise ValueError(
                f"TrainOptions.lr_end must lie in [0, lr = {self.lr}], got {self.lr_end}."
            )
        known = ("constant", "cosineannealing", "cosineannealingwarmrestarts")
        if self.lr_scheduler_name not in known:
            raise ValueError(
                f"TrainOptions.lr_scheduler_name must be one of {', '.join(known)}; "
                f"got {self.lr_scheduler_name!r}."
            )
        if self.lr_warm_up_steps + self.lr_decay_steps > self.total_training_steps:
            raise ValueError(
                f"TrainOptions: {self.lr_warm_up_steps} warm-up and {self.lr_decay_steps} decay "
                f"steps do not fit in the run's {self.total_training_steps} steps; shorten them or "
                "raise total_training_samples."
            )

    @property
    def n_steps(self) -> int:
        """Batches in the run, the last one included that is not full."""
        return -(-self.total_training_samples // self.train_batch_size_samples)

    @property
    def total_training_steps(self) -> int:
        """Full batches in the run: the length of the learning-rate schedule, as in sae_lens."""
        return self.total_training_samples // self.train_batch_size_samples

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON-ready values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "snapshot_steps": list(self.snapshot_steps)}
