"""Activations in a Hugging Face data set, as sae_lens' CacheActivationsRunner writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from sparse_but_wrong.activations.part import DTYPES, TOKEN_IDS, check_rows
from sparse_but_wrong.untrusted import one_line

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_FILES = ("dataset_info.json", "state.json")


@dataclass(frozen=True)
class DatasetPart:
    """A column of a data set: a vector [d_in] or a matrix [context, d_in] in each row.

    The samples of a matrix follow each other, row of the data set by row.
    """

    name: str
    n_samples: int
    d_in: int
    dtype: torch.dtype
    context: int
    """Samples per row of the data set."""

    rows: Dataset
    """Only that column, as Arrow tables."""

    token_ids: Dataset | None = None
    """Only the column with the ids of the samples' tokens, as Arrow tables, if it is there."""

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d_in"]:
        """The samples from start up to stop.

        Raises:
            ValueError: a row of the data set has another shape than the first, or misses numbers.
        """
        return self._read(self.rows, start, stop, [self.d_in])

    def read_token_ids(self, start: int, stop: int) -> Int64[Tensor, " rows"] | None:
        """The ids of the tokens of the samples from start up to stop, where there are any.

        Raises:
            ValueError: a row of the data set has another number of them than samples.
        """
        if self.token_ids is None:
            return None
        return self._read(self.token_ids, start, stop, []).long()

    def _read(self, rows: Dataset, start: int, stop: int, shape: list[int]) -> Tensor:
        """What a column has for some samples, of that shape each."""
        first = start // self.context
        table: Any = rows[first : -(-stop // self.context)]
        chunks = [_flat(chunk, [self.context, *shape]) for chunk in table.column(0).chunks]
        samples = torch.cat(chunks).view(-1, *shape)
        return samples[start - first * self.context : stop - first * self.context]


def is_dataset(path: Path) -> bool:
    """Whether a folder holds a data set that was saved to disk."""
    return all((path / file).is_file() for file in _FILES)


def check_splits(path: Path) -> None:
    """Refuse a folder that holds several data sets.

    Raises:
        ValueError: it does.
    """
    if (path / "dataset_dict.json").is_file():
        splits = sorted(folder.name for folder in path.iterdir() if is_dataset(folder))
        raise ValueError(
            f"{path} holds a data set in splits ({', '.join(splits)}); name the folder of one, for "
            f"example {path / (splits or ['train'])[0]}."
        )


def open_dataset(path: Path, column: str | None) -> DatasetPart:
    """A data set that was saved to disk.

    Args:
        column: holds the activations; the only column that can, if left out.
    Raises:
        ValueError: a damaged data set, or no such column, or several.
    """
    import datasets

    try:
        # Empty ones have no files, and datasets fails over them.
        has_files = json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]
        dataset = datasets.Dataset.load_from_disk(str(path)) if has_files else None
    except Exception as error:
        # What is raised depends on which of its files is damaged, and how.
        raise ValueError(
            f"the data set in {path} is damaged or not finished ({one_line(error)}); make it anew."
        ) from error
    if dataset is None:
        raise _empty(str(path))
    return _open_column(str(path), dataset, column)


def load_dataset(name: str, column: str | None) -> DatasetPart:
    """The split "train" of a data set of the Hugging Face Hub.

    Args:
        name: "user/name".
        column: holds the activations; the only column that can, if left out.
    Raises:
        OSError: it cannot be loaded: there is none of this name, or no connection.
        ValueError: no such column, or several.
    """
    import datasets

    try:
        dataset = datasets.load_dataset(name, split="train")
    except Exception as error:
        raise OSError(
            f"there is no file or folder {name}, and no data set {name!r} of the Hugging Face Hub "
            f"could be loaded ({type(error).__name__}: "
            f"{one_line(error)}); check the name and the connection."
        ) from error
    return _open_column(name, dataset, column)


def _open_column(name: str, dataset: Dataset, column: str | None) -> DatasetPart:
    schema = dataset.features.arrow_schema
    types = {field.name: _nested(field.type) for field in schema}
    if column is None:
        fitting = [
            key for key, (depth, kind) in types.items() if depth in (1, 2) and kind in DTYPES
        ]
        if len(fitting) != 1:
            problem = "several columns" if fitting else "no column"
            raise ValueError(
                f"{name} has {problem} of floating-point vectors [d_in] or matrices [context, "
                f"d_in]; its columns: {_describe(schema)}. "
                + ("Say which holds the activations." if fitting else "Name other activations.")
            )
        column = str(fitting[0])
    elif column not in types:
        raise ValueError(f"{name} has no column {column!r}; its columns: {_describe(schema)}.")
    depth, dtype = types[column]
    if depth not in (1, 2) or dtype not in DTYPES:
        raise ValueError(
            f"column {column!r} of {name} holds no floating-point vectors [d_in] or matrices "
            f"[context, d_in]; its columns: {_describe(schema)}."
        )
    if len(dataset) == 0:
        raise _empty(name)
    rows = dataset.select_columns([column]).with_format("arrow")
    label = f"{name}, column {column!r}"
    first: Any = rows[0:1]
    shape = _shape(label, first.column(0).chunk(0), depth)
    check_rows(label, shape, dtype)
    context, d_in = shape
    token_ids = None
    # A list of them beside a matrix, and one beside a vector.
    if types.get(TOKEN_IDS) in ((depth - 1, torch.int32), (depth - 1, torch.int64)):
        token_ids = dataset.select_columns([TOKEN_IDS]).with_format("arrow")
    return DatasetPart(label, len(dataset) * context, d_in, dtype, context, rows, token_ids)


def _empty(name: str) -> ValueError:
    return ValueError(f"the data set {name} is empty; name other activations.")


def _nested(kind: pa.DataType) -> tuple[int, torch.dtype | None]:
    """How many lists lie in each other, and what numbers the innermost has, if torch has them."""
    import pyarrow as pa

    depth = 0
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif _is_list(kind):
            kind = kind.value_type
            depth += 1
        else:
            break
    dtypes = {
        pa.float16(): torch.float16,
        pa.float32(): torch.float32,
        pa.float64(): torch.float64,
        pa.int32(): torch.int32,
        pa.int64(): torch.int64,
    }
    return depth, dtypes.get(kind)


def _is_list(kind: pa.DataType) -> bool:
    from pyarrow.types import is_fixed_size_list, is_large_list, is_list

    return is_list(kind) or is_large_list(kind) or is_fixed_size_list(kind)


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"


def _shape(label: str, row: pa.Array, depth: int) -> list[int]:
    """[context, d_in] of a column's first row; a vector is a context of one."""
    lists = _without_extension(row)
    shape = [] if depth == 2 else [1]
    for _ in range(depth):
        if lists.null_count or len(lists) == 0:
            raise ValueError(f"{label}: the first row is empty; leave such rows out.")
        shape.append(len(lists[0]))
        lists = lists.flatten()
    return shape


def _flat(chunk: pa.Array, shape: Sequence[int]) -> Shaped[Tensor, " numbers"]:
    """The numbers of a column; each row holds those of a shape, of which ones may lead."""
    import pyarrow.compute

    pc: Any = pyarrow.compute  # its functions are made at import, unseen by type checkers
    lists = _without_extension(chunk)
    depth, _ = _nested(lists.type)
    for length in shape[len(shape) - depth :]:
        if lists.null_count or not pc.all(pc.equal(pc.list_value_length(lists), length)).as_py():
            raise ValueError(
                f"not every row holds {' × '.join(map(str, shape))} numbers, as the first does; "
                "leave the others out."
            )
        lists = lists.flatten()
    if lists.null_count:
        raise ValueError("some numbers are missing; leave those rows out.")
    # Not by way of NumPy: PyTorch would warn of memory that it must not write to.
    return torch.from_dlpack(lists)


def _without_extension(array: Any) -> Any:
    return getattr(array, "storage", array)
