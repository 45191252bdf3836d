"""Rows of activations that lie one after the other in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class FilePart:
    """Rows in a file, read when they are asked for.

    They are not mapped into memory: a map that PyTorch takes is refused by the system where the
    file is larger than the memory, and a file that has become shorter would end the process.
    """

    path: Path
    name: str
    """What messages call it."""

    n_samples: int
    d_in: int
    dtype: torch.dtype
    offset: int
    """Of the first row, in bytes."""

    token_ids: tuple[int, torch.dtype] | None = None
    """Where in the file the ids of the rows' tokens begin, and what they are stored as."""

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d_in"]:
        """The rows from start up to stop.

        Raises:
            OSError: the file is gone, or shorter than it was when it was opened.
        """
        start_byte = self.offset + start * self.d_in * self.dtype.itemsize
        return self._read(start_byte, (stop - start, self.d_in), self.dtype)

    def read_token_ids(self, start: int, stop: int) -> Int64[Tensor, " rows"] | None:
        """The ids of the tokens of the rows from start up to stop, where there are any.

        Raises:
            OSError: as `read`.
        """
        if self.token_ids is None:
            return None
        offset, dtype = self.token_ids
        return self._read(offset + start * dtype.itemsize, (stop - start,), dtype).long()

    def _read(self, start_byte: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        values = torch.empty(shape, dtype=dtype)
        # NumPy knows no bfloat16, but both know bytes.
        numbers: Any = values.view(torch.uint8).numpy().reshape(-1)
        missing = memoryview(numbers)
        with self.path.open("rb", buffering=0) as file:
            file.seek(start_byte)
            while missing:
                n_read = file.readinto(missing)
                if not n_read:
                    raise OSError(f"it ends {len(missing)} bytes early")
                missing = missing[n_read:]
        return values
