"""Activations that lie in memory or in one file, read again and again in a new order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

SUFFIXES = (".npy", ".safetensors")


class StoredActivations(Iterator[Tensor]):
    """Batches of given activations, without end; every pass has an order of its own.

    Args:
        activations: shape [samples, d_in]. Not copied; a memory map is read as needed.
        batch_size: samples per batch. The last batch of a pass is left out where it is not full.
        seed: of the orders.
    Raises:
        ValueError: activations of another shape, or fewer than a batch.
    """

    def __init__(self, activations: Tensor, batch_size: int, seed: int) -> None:
        if activations.ndim != 2:
            raise ValueError(
                f"activations have the shape [samples, d_in]; these have {list(activations.shape)}."
            )
        if not 1 <= batch_size <= len(activations):
            raise ValueError(
                f"there are {len(activations)} samples, too few for batches of {batch_size}."
            )
        self.activations = activations
        self.batch_size = batch_size
        self.seed = seed
        self._pass, self._at = 0, 0
        self._order = self._draw_order()

    def _draw_order(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self._pass)
        return torch.randperm(len(self.activations), generator=generator)

    def __next__(self) -> Float[Tensor, "batch d_in"]:
        if self._at + self.batch_size > len(self._order):
            self._pass, self._at = self._pass + 1, 0
            self._order = self._draw_order()
        drawn = self._order[self._at : self._at + self.batch_size]
        self._at += self.batch_size
        return self.activations[drawn].float()

    def state(self) -> dict[str, Tensor]:
        """The pass and the place in it."""
        return {"place": torch.tensor([self._pass, self._at])}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a place that `state` gave."""
        self._pass, self._at = state["place"].tolist()
        self._order = self._draw_order()


def read_activations(path: Path) -> Float[Tensor, "samples d_in"]:
    """The activations in a .npy file, or in a .safetensors file that holds one tensor.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, a damaged one, or one with several tensors. Pickled
            arrays are not read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    if path.suffix == ".npy":
        return _read_npy(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise ValueError(f"{path} is neither a .npy nor a .safetensors file.")


def _read_npy(path: Path) -> Tensor:
    import numpy as np

    try:
        # Copied on write, so that PyTorch does not warn of memory that it must not touch.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        return torch.from_numpy(array)
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{path} holds no array of numbers ({error}).") from error


def _read_safetensors(path: Path) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}).") from error
    if len(tensors) != 1:
        raise ValueError(
            f"{path} holds {len(tensors)} tensors ({', '.join(sorted(tensors))}); activations are "
            "one tensor of shape [samples, d_in]."
        )
    return next(iter(tensors.values()))
