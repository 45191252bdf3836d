"""SAEs that take their steps together, and those that sae_lens' own trainer steps.

Axes: B batch, D d_in.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong import sae_lens_compat
from sparse_but_wrong.training.log import SAELog
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stepper import Steps

if TYPE_CHECKING:
    import sae_lens

Step = Literal["compiled", "pytorch", "sae_lens"]
"""The compiled loops, PyTorch's operations, or sae_lens' own trainer."""


class MeanNorm:
    """The mean norm of activations, batch by batch (`expected_average_only_in`).

    Norms are summed in float32 within a batch and in float64 over batches, as sae_lens does.
    """

    def __init__(self) -> None:
        self._total = 0.0
        self._count = 0

    def observe(self, batch: Float[Tensor, "B D"]) -> None:
        """Take in one batch."""
        norms = batch.norm(dim=-1)
        self._total += norms.sum().item()
        self._count += norms.numel()

    def scaling_factor(self, d_in: int) -> float:
        """√d_in / mean norm.

        Raises:
            ValueError: the activations seen are all zero.
        """
        if self._total == 0:
            raise ValueError(
                "The activations are all zero, so they cannot be normalised "
                '(normalize_activations="expected_average_only_in"); fix the source.'
            )
        return math.sqrt(d_in) * self._count / self._total


class Group(ABC):
    """Some SAEs of a run, trained by the engine or by sae_lens' own trainer."""

    places: list[int]
    """Where its SAEs stand in the caller's list."""
    logs: list[SAELog]
    """A log per SAE."""
    step: Step
    """What takes their steps."""
    n_norm_batches: int = 0
    """Batches at the head of the stream that are looked at, not trained on."""
    n_chunks: int = 1
    """Independent pieces of each step; they may run at the same time."""
    n_steps: int = 0
    """Steps taken."""
    n_samples: int = 0
    """Samples trained on."""
    started: bool = False
    """Whether its normalisation is settled."""
    snapshot_step: int = 0
    """The last step of which a snapshot was taken."""

    @abstractmethod
    def observe(self, batch: Float[Tensor, "B D"]) -> None:
        """Look at one of the first `n_norm_batches` batches."""

    @abstractmethod
    def start(self) -> None:
        """Settle the normalisation, once the first `n_norm_batches` have been observed."""

    @abstractmethod
    def scaled(self, batches: Sequence[Tensor]) -> Sequence[Tensor]:
        """The batches as these SAEs read them; made once for all chunks."""

    @abstractmethod
    def advance(self, chunk: int, steps: Steps) -> None:
        """Train one chunk on scaled batches; the last step of the run is logged."""

    @abstractmethod
    def write_back(self) -> None:
        """Bring the caller's SAEs up to the last finished step."""

    @abstractmethod
    def finish(self) -> None:
        """After the last step: write back, fold the scale, record metadata."""

    @abstractmethod
    def snapshot(self) -> list[sae_lens.TrainingSAE[Any]]:
        """Copies of the SAEs, as `finish` would leave them now."""

    def state(self) -> dict[str, Tensor]:
        """All that a later process needs to continue from here, bit for bit."""
        raise NotImplementedError(
            "sae_lens' own trainer can only be checkpointed as a pickle; train without checkpoints."
        )

    def load_state(self, state: dict[str, Tensor]) -> None:  # noqa: ARG002
        """Continue from where `state` was taken."""
        Group.state(self)


class SAELensGroup(Group):
    """One SAE that the engine does not stack, stepped through the seams of sae_lens' trainer."""

    step = "sae_lens"

    def __init__(self, sae: sae_lens.TrainingSAE[Any], place: int, options: TrainOptions) -> None:
        self.sae = sae
        self.places = [place]
        self.options = options
        self.logs = [SAELog(trained_by="sae_lens")]
        self.trainer = sae_lens_compat.make_trainer(sae, options.trainer_settings())
        if sae.cfg.normalize_activations in ("expected_average_only_in", "covariance_whitening"):
            self.n_norm_batches = options.n_batches_for_norm_estimate
        self._mean_norm = MeanNorm()
        # sae_lens estimates a whitening from all batches in one go, so they must be kept till then.
        self._observed: list[Tensor] = []

    def observe(self, batch: Float[Tensor, "B D"]) -> None:
        """Take one of the first batches into the estimate."""
        if self.sae.cfg.normalize_activations == "covariance_whitening":
            self._observed.append(batch)
        else:
            self._mean_norm.observe(batch)

    def start(self) -> None:
        """Settle the normalisation."""
        if self._observed:
            sae_lens_compat.estimate_whitening(self.trainer, self._observed)
            self._observed.clear()
        elif self.n_norm_batches:
            factor = self._mean_norm.scaling_factor(self.sae.cfg.d_in)
            sae_lens_compat.set_scaling_factor(self.trainer, factor)

    def scaled(self, batches: Sequence[Tensor]) -> Sequence[Tensor]:
        """The batches as they are: sae_lens' trainer scales them itself."""
        return batches

    def advance(self, chunk: int, steps: Steps) -> None:  # noqa: ARG002
        """Train on some batches."""
        last = len(steps.batches) - 1
        for i, batch in enumerate(steps.batches):
            step = steps.first + i
            self.trainer.maybe_reset_sparsity()
            coefficients = self.trainer.get_coefficients()  # the step moves them on
            output = self.trainer.step(batch)
            if step % self.options.log_every == 0 or (steps.end_the_run and i == last):
                metrics = sae_lens_compat.step_metrics(self.trainer, output, coefficients)
                self.logs[0].append(step, {**metrics, "lr": steps.rates[i]})
            self.trainer.n_training_steps += 1

    def write_back(self) -> None:
        """Nothing to do: sae_lens trains the caller's own object."""

    def finish(self) -> None:
        """Fold the normalisation and record metadata as sae_lens' `fit` does."""
        sae_lens_compat.complete(self.trainer, self.sae)

    def snapshot(self) -> list[sae_lens.TrainingSAE[Any]]:
        """A copy, finished."""
        sae = copy.deepcopy(self.sae)
        sae_lens_compat.complete(self.trainer, sae)
        return [sae]
