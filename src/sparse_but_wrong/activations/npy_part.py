"""Activations in a .npy file."""

from __future__ import annotations

from pathlib import Path

import torch

from sparse_but_wrong.activations.file_part import FilePart
from sparse_but_wrong.activations.part import check_rows

_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def open_npy(path: Path) -> FilePart:
    """The 2-D array in a .npy file, of which only the header is read here.

    Raises:
        OSError: it cannot be opened.
        ValueError: a damaged file, or another array than one of floating-point numbers [samples,
            d_in]. Pickled arrays are not read.
    """
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} holds no array of numbers ({error}).") from error
    if not isinstance(array, np.memmap):
        array.close()
        raise ValueError(f"{path} holds several arrays; save the activations alone, as one.")
    # Without its byte order.
    dtype = str(array.dtype.name)
    check_rows(str(path), array.shape, _DTYPES.get(dtype, dtype))
    if not (array.flags.c_contiguous and array.dtype.isnative):
        raise ValueError(
            f"{path} is not stored row by row in this machine's byte order; save "
            f"np.ascontiguousarray(x, dtype=np.{dtype}) instead."
        )
    n_samples, d_in = array.shape
    return FilePart(path, str(path), n_samples, d_in, _DTYPES[dtype], array.offset)
