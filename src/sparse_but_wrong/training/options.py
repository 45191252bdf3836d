"""What a training run may be told, validated once when made."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
    """Re-initialise dead latents on reconstruction residuals every this many steps, in the first
    two thirds of the run (`reinitialize`). sae_lens does not do this, so never if left out."""
    log_every: int = 100
    """Steps between two rows of the training log."""
    snapshot_steps: tuple[int, ...] = ()
    """Steps after which a copy of every SAE is handed to ``on_snapshot``."""
    threads: int | None = None
    """CPU threads to train on, one SAE per thread; PyTorch's own number if left out.
    The result does not depend on it."""
    autocast: bool = False
    """Take a step's matrix products in bfloat16, as sae_lens does; parameters, thresholds, Adam
    and all sums stay float32. It is PyTorch's step then, and faster on a GPU only."""
    compiled: bool = True
    """Use the compiled step where there is one (CPU only); same results to float32 rounding."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        def check(is_good: bool, name: str, wanted: str) -> None:
            if not is_good:
                value = getattr(self, name)
                raise ValueError(f"TrainOptions.{name} must {wanted}, got {value!r}.")

        positive = (
            *("total_training_samples", "train_batch_size_samples", "lr", "n_restart_cycles"),
            *("dead_feature_window", "feature_sampling_window", "n_batches_for_norm_estimate"),
            "log_every",
        )
        for name in positive:
            value = getattr(self, name)
            check(math.isfinite(value) and value > 0, name, "be positive")
        for name in ("lr_warm_up_steps", "lr_decay_steps"):
            check(getattr(self, name) >= 0, name, "not be negative")
        for name in ("adam_beta1", "adam_beta2"):
            check(0 <= getattr(self, name) < 1, name, "lie in [0, 1)")
        for name in ("reinit_dead_every", "threads"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, "be at least 1")
        is_good = self.lr_end is None or 0 <= self.lr_end <= self.lr
        check(is_good, "lr_end", f"lie in [0, lr = {self.lr}]")
        known = ("constant", "cosineannealing", "cosineannealingwarmrestarts")
        is_good = self.lr_scheduler_name in known
        check(is_good, "lr_scheduler_name", f"be one of {', '.join(known)}")
        for step in self.snapshot_steps:
            if not (isinstance(step, int) and 1 <= step <= self.n_steps):
                raise ValueError(
                    f"TrainOptions.snapshot_steps holds {step!r}, but the run has steps 1 to "
                    f"{self.n_steps}."
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

    @property
    def final_lr(self) -> float:
        """Where annealing ends; sae_lens' runners take a tenth where nothing is said."""
        return self.lr / 10 if self.lr_end is None else self.lr_end

    def trainer_settings(self) -> dict[str, Any]:
        """The fields of sae_lens' ``SAETrainerConfig``."""
        ours = ("reinit_dead_every", "log_every", "snapshot_steps", "threads", "compiled")
        fields_ = {k: v for k, v in vars(self).items() if k not in (*ours, "progress")}
        return {**fields_, "lr_end": self.final_lr}
