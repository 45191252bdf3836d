"""Rows of activations that lie one after the other in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
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

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d_in"]:
        """The rows from start up to stop.

        Raises:
            OSError: the file is gone, or shorter than it was when it was opened.
        """
        rows = torch.empty(stop - start, self.d_in, dtype=self.dtype)
        # NumPy knows no bfloat16, but both know bytes.
        numbers: Any = rows.view(torch.uint8).numpy().reshape(-1)
        missing = memoryview(numbers)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + start * self.d_in * self.dtype.itemsize)
            while missing:
                n_read = file.readinto(missing)
                if not n_read:
                    raise OSError(f"it ends {len(missing)} bytes early")
                missing = missing[n_read:]
        return rows
