"""Activations in a .safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sparse_but_wrong.activations.file_part import FilePart
from sparse_but_wrong.activations.part import TOKEN_IDS, check_rows
from sparse_but_wrong.untrusted import one_line

TENSOR = "activations"
"""The tensor that is read where there is one of this name."""

_INTEGERS = {"I32": torch.int32, "I64": torch.int64}
_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def open_safetensors(path: Path) -> FilePart:
    """The tensor "activations" of a file, or else the only 2-D tensor of floating-point numbers.

    Raises:
        OSError: it cannot be opened.
        ValueError: a damaged file, or one that holds no such tensor, or several.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # Only to check the header: for PyTorch it would map the file as if it were to be changed,
        # which is refused where the file is larger than the memory.
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in sorted(file.keys())}
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({one_line(error)}); copy it again from its source."
        ) from error
    name = TENSOR if TENSOR in slices else _only_fitting(path, slices)
    shape, dtype = slices[name].get_shape(), str(slices[name].get_dtype())
    check_rows(f"{path}, tensor {name!r}", shape, _DTYPES.get(dtype, dtype))
    n_samples, d_in = shape
    ids = slices.get(TOKEN_IDS)
    beside = None
    if ids is not None and ids.get_shape() == [n_samples] and str(ids.get_dtype()) in _INTEGERS:
        beside = _offset(path, TOKEN_IDS), _INTEGERS[str(ids.get_dtype())]
    return FilePart(path, str(path), n_samples, d_in, _DTYPES[dtype], _offset(path, name), beside)


def _offset(path: Path, name: str) -> int:
    """Where a tensor begins in a file that is known to be sound."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length + json.loads(file.read(length))[name]["data_offsets"][0]


def _only_fitting(path: Path, slices: dict[str, Any]) -> str:
    fitting = [
        name
        for name, tensor in slices.items()
        if len(tensor.get_shape()) == 2 and tensor.get_dtype() in _DTYPES
    ]
    if len(fitting) > 1:
        raise ValueError(
            f"{path} holds {len(fitting)} tensors ({', '.join(fitting)}) that could be the "
            f"activations; call the one to read {TENSOR!r}."
        )
    if not fitting:
        there = ", ".join(
            f"{name} {tensor.get_dtype()} {tensor.get_shape()}" for name, tensor in slices.items()
        )
        raise ValueError(
            f"{path} holds no tensor of floating-point numbers [samples, d_in]; it holds: "
            f"{there or 'nothing'}."
        )
    return fitting[0]
