"""An SAE that the engine does not stack, trained on the shared stream by sae_lens' own trainer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong import sae_lens_compat
from sparse_but_wrong.training.log import SAELog
from sparse_but_wrong.training.mean_norm import MeanNorm
from sparse_but_wrong.training.member import Member
from sparse_but_wrong.training.options import TrainOptions

if TYPE_CHECKING:
    import sae_lens


class LensMember(Member):
    """One SAE, stepped through the seams that sae_lens' trainer offers to coordinators."""

    n_tasks = 1
    step = "sae_lens"

    def __init__(self, sae: sae_lens.TrainingSAE[Any], options: TrainOptions) -> None:
        self.sae = sae
        self.options = options
        self.logs = [SAELog(trained_by="sae_lens")]
        self.trainer = sae_lens_compat.make_trainer(sae, options, iter(()))
        self.n_norm_batches = 0
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

    def advance(
        self,
        task: int,  # noqa: ARG002  (there is only one)
        batches: Sequence[Tensor],
        first_step: int,
        rates: Sequence[float],
        log_last: bool,
    ) -> None:
        """Train on some batches."""
        for i, batch in enumerate(batches):
            step = first_step + i
            self.trainer.maybe_reset_sparsity()
            coefficients = self.trainer.get_coefficients()  # the step moves them on
            output = self.trainer.step(batch)
            if step % self.options.log_every == 0 or (log_last and i == len(batches) - 1):
                figures = sae_lens_compat.step_figures(self.trainer, output, coefficients)
                self.logs[0].append(step, {**figures, "lr": rates[i]})
            self.trainer.n_training_steps += 1

    def write_back(self) -> None:
        """Nothing to do: sae_lens trains the caller's own object."""

    def finish(self, n_steps: int) -> None:  # noqa: ARG002  (the trainer counts for itself)
        """Fold the normalisation and record metadata as sae_lens' `fit` does."""
        sae_lens_compat.complete(self.trainer, self.sae)

    def snapshot(self, n_steps: int) -> list[sae_lens.TrainingSAE[Any]]:  # noqa: ARG002
        """A copy, finished."""
        sae = copy.deepcopy(self.sae)
        sae_lens_compat.complete(self.trainer, sae)
        return [sae]

    def state(self) -> dict[str, Tensor]:
        """Refuse: sae_lens' trainer can only be checkpointed as a pickle.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"{type(self.sae).__name__} is trained by sae_lens' own trainer, whose state cannot be "
            "checkpointed without pickles; train it without checkpoints."
        )

    def load_state(self, state: dict[str, Tensor]) -> None:  # noqa: ARG002
        """Refuse, like `state`."""
        self.state()
