"""The places that activations lie in, each as a `Part`: samples that are read piece by piece.

Files are read with plain reads, not mapped into memory: PyTorch's maps are refused where a file is
larger than the memory, and a mapped file that becomes shorter ends the process.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparse_but_wrong.untrusted import damaged, one_line, quiet

TENSOR, TOKEN_IDS, LENGTHS = "activations", "token_ids", "sequence_lengths"
"""The tensors of a .safetensors file: samples, the ids of their tokens, and how many samples each
sequence has, one after the other."""

SUFFIXES = (".npy", ".safetensors")
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _FLOATS}
_SAFETENSORS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_INTEGERS = {"I32": torch.int32, "I64": torch.int64}


@dataclass(frozen=True, eq=False)
class Part:
    """Samples that lie together in one place; several threads may read at once."""

    name: str
    """What messages call it."""

    n_samples: int
    d_in: int
    dtype: torch.dtype
    rows: Callable[[int, int], Tensor] = field(repr=False)
    """Gives the samples from start up to stop, as stored."""

    token_ids: Callable[[int, int], Tensor | None] | None = field(default=None, repr=False)
    """Gives the ids of their tokens, where these are stored."""

    files: tuple[Path, ...] = ()
    """Where it lies, unless it is in memory."""

    column: str | None = None
    """The column of a dataset that it is."""

    sequence_ends: Sequence[int] | None = field(default=None, repr=False)
    """Behind which samples a sequence of tokens ends, ascending, where that is known."""

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d_in"]:
        """The samples from start up to stop, as stored.

        OSError if they cannot be read, ValueError if they are not all finite; both name them.
        """
        with self._named(start, stop):
            rows = self.rows(start, stop)
            if rows.shape != (stop - start, self.d_in):
                raise ValueError(f"it gives numbers of shape {list(rows.shape)}")
        # A finite sum proves that all are; only otherwise (it may have overflowed) look closer.
        if not bool(rows.sum().isfinite()) and not bool(rows.isfinite().all()):
            row, column = (~rows.isfinite()).nonzero()[0].tolist()
            where = f"at sample {start + row}, dimension {column}"
            raise ValueError(f"{self.name} holds {rows[row, column].item()} {where}.")
        return rows

    def read_token_ids(self, start: int, stop: int) -> Int64[Tensor, " rows"] | None:
        """The ids of their tokens, or None where none are stored; OSError as `read`."""
        with self._named(start, stop):
            return self.token_ids(start, stop) if self.token_ids is not None else None

    def neighbours(self, sample: int, reach: int) -> tuple[int, int]:
        """From where to where the samples around one are, which end where its sequence does."""
        start, stop = max(0, sample - reach), min(self.n_samples, sample + reach + 1)
        if self.sequence_ends is None:
            return start, stop
        i = bisect_right(self.sequence_ends, sample)
        first = self.sequence_ends[i - 1] if i else 0
        return max(start, first), min(stop, self.sequence_ends[i])

    @contextmanager
    def _named(self, start: int, stop: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every kind of file has errors of its own
            where = f"from sample {start} to {stop} ({one_line(error)})"
            raise OSError(f"{self.name} cannot be read {where}.") from error


def _checked(name: str, shape: Sequence[int], dtype: str) -> tuple[str, int, int, torch.dtype]:
    """The name, number, width and type of samples, once they can be activations."""
    if len(shape) != 2 or shape[1] == 0:
        raise ValueError(f"{name}: activations have shape [samples, d_in], not {list(shape)}.")
    if dtype not in _DTYPES:
        known = ", ".join(_DTYPES)
        raise ValueError(f"{name}: activations are {known}, not {dtype}; convert them.")
    return name, shape[0], shape[1], _DTYPES[dtype]


def tensor_part(name: str, activations: Tensor) -> Part:
    """A tensor [samples, d_in] in memory, which is not copied; ValueError for any other."""
    dtype = str(activations.dtype).removeprefix("torch.")
    checked = _checked(name, activations.shape, dtype)
    return Part(*checked, lambda start, stop: activations[start:stop].detach().cpu())


def open_file(path: Path) -> Part:
    """The activations in a .npy or .safetensors file, of which only the header is read here.

    ValueError for another kind of file, a damaged one, or one without activations.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise ValueError(f"{path} is no regular file.")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is neither a .npy nor a .safetensors file.")
    return _open_npy(path) if path.suffix == ".npy" else _open_safetensors(path)


def _open_npy(path: Path) -> Part:
    import numpy as np

    try:
        # Reads the header only, refuses pickles, and compares the size with that of the file.
        with quiet():
            array: Any = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # a Python parser and numpy have many kinds
        raise damaged(path, error, "save the activations alone, with np.save") from error
    checked = _checked(str(path), array.shape, array.dtype.name)
    if not (array.flags.c_contiguous and array.dtype.isnative):
        raise ValueError(
            f"{path} is not stored row by row in this machine's byte order; save "
            f"np.ascontiguousarray(x, dtype=np.{array.dtype.name}) instead."
        )
    rows = partial(_of_file, path, array.offset, array.shape[1:], checked[-1])
    return Part(*checked, rows, files=(path,))


def _open_safetensors(path: Path) -> Part:
    """The tensor "activations", or else the only 2-D one of floating-point numbers."""
    from safetensors import SafetensorError, safe_open

    try:
        # Checks the header; for PyTorch it would map the file as one that is going to change.
        with safe_open(path, framework="numpy"), path.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            header: dict[str, Any] = json.loads(content.read(length))
    except (SafetensorError, ValueError) as error:
        raise damaged(path, error) from error
    header.pop("__metadata__", None)
    fitting = [
        name
        for name, info in header.items()
        if len(info["shape"]) == 2 and info["dtype"] in _SAFETENSORS
    ]
    fitting = [TENSOR] if TENSOR in header else fitting
    if len(fitting) != 1:
        there = (f"{name} {info['dtype']} {info['shape']}" for name, info in sorted(header.items()))
        raise ValueError(
            f"{path} needs one tensor [samples, d_in] of floating-point numbers, or one named "
            f"{TENSOR!r}, but holds {len(fitting)} of them: {', '.join(there) or 'nothing'}."
        )
    found, ids = header[fitting[0]], header.get(TOKEN_IDS, {})
    kind, data = found["dtype"], 8 + length
    name = f"{path}, tensor {fitting[0]!r}"
    _, n_samples, d_in, dtype = _checked(name, found["shape"], _SAFETENSORS.get(kind) or kind)
    rows = partial(_of_file, path, data + found["data_offsets"][0], (d_in,), dtype)
    token_ids = None
    if ids.get("shape") == [n_samples] and ids["dtype"] in _INTEGERS:
        offset, dtype_of_ids = data + ids["data_offsets"][0], _INTEGERS[ids["dtype"]]
        token_ids = partial(_of_file, path, offset, (), dtype_of_ids)
    ends = None
    if (lengths := header.get(LENGTHS, {})).get("dtype") == "I32" and len(lengths["shape"]) == 1:
        offset, n = data + lengths["data_offsets"][0], lengths["shape"][0]
        ends = list(accumulate(_of_file(path, offset, (), torch.int32, 0, n).tolist()))
        is_sound = ends == sorted(ends) and ends[-1:] == [n_samples]
        ends = ends if is_sound else None
    return Part(str(path), n_samples, d_in, dtype, rows, token_ids, (path,), sequence_ends=ends)


def _of_file(
    path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype, start: int, stop: int
) -> Tensor:
    """Numbers [stop - start, *shape] of a file; ids of tokens, which are whole, as int64."""
    values = torch.empty((stop - start, *shape), dtype=dtype)
    # NumPy knows no bfloat16, but both know bytes.
    numbers: Any = values.view(torch.uint8).numpy().reshape(-1)
    missing = memoryview(numbers)
    with path.open("rb", buffering=0) as file:
        file.seek(offset + start * values[:1].nbytes)
        while missing:
            n_read = file.readinto(missing)
            if not n_read:
                raise OSError(f"it ends {len(missing)} bytes early")
            missing = missing[n_read:]
    return values if dtype.is_floating_point else values.long()


def files_in(folder: Path, suffixes: Container[str]) -> list[Path]:
    """The files with one of these suffixes in a folder, by name; hidden ones are left out."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix in suffixes and not file.name.startswith(".") and file.is_file()
    )


def is_dataset(path: Path) -> bool:
    """Whether a folder holds a dataset, or several splits of one, that was saved to disk."""
    one, several = ("dataset_info.json", "state.json"), ("dataset_dict.json",)
    return any(all((path / file).is_file() for file in files) for files in (one, several))


def open_dataset(where: Path | str, column: str | None) -> Part:
    """The activations in a dataset, a folder or one of the Hub (see `load_dataset`).

    It is as sae_lens' CacheActivationsRunner writes it: each row holds a vector [d_in] or a matrix
    [context, d_in], and beside it perhaps the ids of its tokens.

    Args:
        column: holds the activations; may be left out where only one can.
    Raises:
        OSError: it cannot be loaded from the Hub.
        ValueError: a damaged or empty dataset, or no such column, or several.
    """
    dataset: Any = load_dataset(where)
    if not dataset:
        raise ValueError(f"the dataset {where} is empty; name other activations.")
    kinds = {name: _kind(feature) for name, feature in dataset.features.items()}
    fits = [n for n, (depth, dtype) in kinds.items() if depth in (1, 2) and dtype in _DTYPES]
    fits = [name for name in fits if column in (None, name)]
    if len(fits) != 1:
        said = f"no column {column!r}" if column else "several columns" if fits else "no column"
        there = ", ".join(f"{name} ({feature})" for name, feature in dataset.features.items())
        raise ValueError(
            f"{where} has {said} of floating-point vectors [d_in] or matrices [context, d_in]; "
            f"name the column that holds the activations. Its columns: {there}."
        )
    depth, kind = kinds[fits[0]]
    rows = dataset.select_columns(fits).with_format("torch", dtype=_DTYPES[kind])
    name = f"{where}, column {fits[0]!r}"
    (first,) = rows[0:1].values()
    if not isinstance(first, Tensor) or first.ndim != depth + 1 or not first.numel():
        raise ValueError(f"{name}: the first row is empty; leave such rows out.")
    context, d_in = first.shape[1:] if depth == 2 else (1, first.shape[1])
    token_ids = None
    # A list of ids beside a matrix, and one id beside a vector.
    if kinds.get(TOKEN_IDS) in ((depth - 1, "int32"), (depth - 1, "int64")):
        ids = dataset.select_columns([TOKEN_IDS]).with_format("torch", dtype=torch.int64)
        token_ids = partial(_of_dataset, ids, [context])
    return Part(
        name,
        len(dataset) * context,
        d_in,
        _DTYPES[kind],
        partial(_of_dataset, rows, [context, d_in]),
        token_ids,
        tuple(Path(file["filename"]) for file in dataset.cache_files),
        fits[0],
        range(context, len(dataset) * context + 1, context) if depth == 2 else None,
    )


def _of_dataset(rows: Any, shape: list[int], start: int, stop: int) -> Tensor:
    """Samples, or ids of tokens, of a dataset whose rows have this shape, [context, …]."""
    context, *of_sample = shape
    first = start // context
    (values,) = rows[first : -(-stop // context)].values()
    if not isinstance(values, Tensor) or [*values.shape[1:]] not in (shape, of_sample):
        says = " × ".join(map(str, shape))
        raise ValueError(f"not every row holds {says} numbers, as the first does")
    samples = values.reshape(-1, *of_sample)[start - first * context : stop - first * context]
    if not of_sample and (samples < 0).any():
        raise ValueError("some token ids are missing or negative")
    return samples


def load_dataset(where: Path | str, config: str | None = None, *, streaming: bool = False) -> Any:
    """A dataset in a folder that `save_to_disk` wrote, or of the Hub; of several splits, "train".

    Raises:
        OSError: it cannot be loaded from the Hub.
        ValueError: no such folder, or a damaged or empty one, or splits without "train".
    """
    import datasets

    try:
        if isinstance(where, str):
            return datasets.load_dataset(where, config, split="train", streaming=streaming)
        found = datasets.load_from_disk(str(where))
    except Exception as error:  # each damaged file and each failing connection has its own
        says = f"({type(error).__name__}: {one_line(error)})"
        if isinstance(where, Path):
            raise ValueError(
                f"{where} is no dataset that `save_to_disk` wrote, or empty or damaged {says}."
            ) from error
        raise OSError(
            f"there is no file or folder {where}, and no dataset {where!r} could be loaded from "
            f"the Hugging Face Hub {says}; check the name and the connection."
        ) from error
    if not isinstance(found, dict):
        return found
    if "train" not in found:
        there = ", ".join(map(str, found))
        raise ValueError(f"{where} holds a dataset in splits ({there}); name the folder of one.")
    return found["train"]


def _kind(feature: Any) -> tuple[int, str]:
    """How many lists lie in each other, and the type of the innermost values."""
    depth = 0
    while type(feature).__name__ in ("List", "LargeList", "Sequence"):
        feature, depth = feature.feature, depth + 1
    return depth + len(getattr(feature, "shape", ())), str(getattr(feature, "dtype", ""))
