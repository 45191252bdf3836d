"""Activations in a .npy file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import torch

from sparse_but_wrong.activations.file_part import FilePart
from sparse_but_wrong.activations.part import check_rows
from sparse_but_wrong.untrusted import one_line, quiet

if TYPE_CHECKING:
    import numpy as np

_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def open_npy(path: Path) -> FilePart:
    """The 2-D array in a .npy file, of which only the header is read here.

    Raises:
        OSError: it cannot be opened.
        ValueError: a damaged file, or another array than one of floating-point numbers [samples,
            d_in]. Pickled arrays are not read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            raise ValueError(f"{path} holds several arrays; save the activations alone, as one.")
        file.seek(0)
        try:
            # What numpy warns of here it also raises, or it does not matter.
            with quiet():
                shape, in_columns, dtype = _header(file)
        except OSError:
            raise
        except Exception as error:
            # Of the many kinds that a Python parser and numpy have.
            raise ValueError(f"{path} holds no array of numbers ({one_line(error)}).") from error
        offset = file.tell()
    # Without its byte order.
    name = str(dtype.name)
    check_rows(str(path), shape, _DTYPES.get(name, name))
    n_samples, d_in = shape
    if (in_columns and min(shape) > 1) or not dtype.isnative:
        raise ValueError(
            f"{path} is not stored row by row in this machine's byte order; save "
            f"np.ascontiguousarray(x, dtype=np.{name}) instead."
        )
    if offset + n_samples * d_in * dtype.itemsize > size:
        raise ValueError(
            f"{path} holds no array of numbers {list(shape)}, as it says, but ends before; copy it "
            "again from its source."
        )
    return FilePart(path, str(path), n_samples, d_in, _DTYPES[name], offset)


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether column by column, and type of the array in a .npy file."""
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        # Of structured arrays with names that are not Latin.
        raise ValueError(f"format version {version} is not for plain numbers")
    shape, in_columns, dtype = readers[version](file)
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"it has the shape {shape}")
    if dtype.hasobject:
        raise ValueError("it is pickled, and pickles are not opened")
    return shape, in_columns, dtype
