"""What the training loop drives: some SAEs that take their steps on the shared stream.

Axes: B batch, D d_in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.training.log import SAELog

if TYPE_CHECKING:
    import sae_lens


Step = Literal["compiled", "pytorch", "sae_lens"]
"""The compiled loops, PyTorch's operations, or sae_lens' own trainer."""


class Member(ABC):
    """Some SAEs of a run, trained by the engine or by sae_lens' own trainer."""

    logs: list[SAELog]
    """A log per SAE."""

    step: Step
    """What takes their steps."""

    n_norm_batches: int
    """Batches at the head of the stream that are looked at, not trained on."""

    n_tasks: int
    """Independent pieces of each step; they may run at the same time."""

    @abstractmethod
    def observe(self, batch: Float[Tensor, "B D"]) -> None:
        """Look at one of the first `n_norm_batches` batches."""

    @abstractmethod
    def start(self) -> None:
        """Settle the normalisation, once the first `n_norm_batches` have been observed."""

    @abstractmethod
    def scaled(self, batches: Sequence[Tensor]) -> Sequence[Tensor]:
        """The batches as these SAEs read them; made once for all tasks."""

    @abstractmethod
    def advance(
        self,
        task: int,
        batches: Sequence[Tensor],
        first_step: int,
        rates: Sequence[float],
        log_last: bool,
    ) -> None:
        """Train one piece on some scaled batches.

        Args:
            task: which piece, below `n_tasks`.
            batches: as `scaled` gave them.
            first_step: steps taken before these.
            rates: the learning rate of each of these steps.
            log_last: log the last of them whatever its number, because the run ends with it.
        """

    @abstractmethod
    def write_back(self) -> None:
        """Bring the caller's SAEs up to the last finished step."""

    @abstractmethod
    def finish(self, n_steps: int) -> None:
        """After the last of `n_steps` steps: write back, fold the scale, record metadata."""

    @abstractmethod
    def snapshot(self, n_steps: int) -> list[sae_lens.TrainingSAE[Any]]:
        """Copies of the SAEs, as `finish` would leave them after `n_steps` steps."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that a later process needs to go on from here, bit for bit."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from where `state` was taken."""
