"""A part of a collection of activations: rows that lie together in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""What activations may be stored as."""

TOKEN_IDS = "token_ids"
"""The tensor or column with the ids of the samples' tokens, beside the activations."""


@runtime_checkable
class Part(Protocol):
    """Rows of activations that can be read piece by piece."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def n_samples(self) -> int:
        """How many rows there are."""
        ...

    @property
    def d_in(self) -> int:
        """How many numbers a row has."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What they are stored as; one of `DTYPES`."""
        ...

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d_in"]:
        """The rows from start up to stop, as stored, on the CPU; may be a view of what is stored.

        Several threads may read at once.
        """
        ...


@runtime_checkable
class PartWithTokenIds(Protocol):
    """A part that may have, beside each row, the id of its token."""

    def read_token_ids(self, start: int, stop: int) -> Int64[Tensor, " rows"] | None:
        """Of the rows from start up to stop; none where there are none."""
        ...


def check_rows(name: str, shape: Sequence[int], dtype: torch.dtype | str) -> None:
    """Refuse what cannot be activations.

    Args:
        dtype: the name that a file gives it, where it is none of `DTYPES`.
    Raises:
        ValueError: another shape than [samples, d_in], or numbers of another kind.
    """
    if len(shape) != 2 or shape[1] == 0:
        raise ValueError(
            f"{name}: activations have the shape [samples, d_in]; these have {list(shape)}."
        )
    if dtype not in DTYPES:
        kinds = ", ".join(str(kind).removeprefix("torch.") for kind in DTYPES)
        raise ValueError(
            f"{name}: activations are stored as one of {kinds}, not as "
            f"{str(dtype).removeprefix('torch.')}; convert them."
        )


@dataclass(frozen=True, eq=False)
class TensorPart:
    """Rows in memory.

    Args:
        name: what messages call it.
        activations: shape [samples, d_in]; not copied.
    Raises:
        ValueError: activations of another shape or kind.
    """

    name: str
    activations: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        check_rows(self.name, self.activations.shape, self.activations.dtype)

    @property
    def n_samples(self) -> int:
        """How many rows there are."""
        return self.activations.shape[0]

    @property
    def d_in(self) -> int:
        """How many numbers a row has."""
        return self.activations.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """What they are stored as."""
        return self.activations.dtype

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d_in"]:
        """The rows from start up to stop."""
        return self.activations[start:stop].detach().cpu()
