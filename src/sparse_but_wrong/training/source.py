"""Where batches come from: any iterator of [batch, d_in] tensors will do."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class ResumableSource(Protocol):
    """A source whose place in the stream can be saved, so that a run can be taken up again."""

    def __next__(self) -> Tensor:
        """The next batch of activations, shape [batch, d_in]."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The place in the stream, as tensors."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go to a place in the stream that `state` gave."""
        ...
