"""Activations that are stored somewhere, in memory or on disk, and read piece by piece."""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparse_but_wrong.activations.dataset_part import (
    check_splits,
    is_dataset,
    load_dataset,
    open_dataset,
)
from sparse_but_wrong.activations.manifest import FORMAT, MANIFEST
from sparse_but_wrong.activations.part import Part, PartWithTokenIds, TensorPart
from sparse_but_wrong.activations.paths import user_path
from sparse_but_wrong.activations.shards import (
    SUFFIXES,
    open_file,
    open_shards,
    shard_files,
)
from sparse_but_wrong.untrusted import one_line, parse_json

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class NotFiniteError(ValueError):
    """Stored activations hold a value that is not finite; the message says in which part and row.

    It is met here, where that is still known, and not in a shuffled batch.
    """


@dataclass(frozen=True)
class StoredActivations:
    """Activations that lie in parts, one after the other; made by `open_activations` or `of`.

    Raises:
        ValueError: no samples at all, or parts of different widths.
    """

    name: str
    """What messages call it."""

    parts: tuple[Part, ...]
    """In order."""

    mean_norm: float | None = None
    """Mean of the samples' L2 norms, where a cache knows it."""

    def __post_init__(self) -> None:
        if self.n_samples == 0:
            raise ValueError(f"{self.name} holds no samples; name other activations.")
        first = self.parts[0]
        for part in self.parts:
            if part.d_in != first.d_in:
                raise ValueError(
                    f"{part.name} has d_in {part.d_in}, but {first.name} has {first.d_in}; keep "
                    "activations of different widths apart."
                )

    @classmethod
    def of(cls, activations: Tensor, name: str = "activations") -> StoredActivations:
        """Activations in memory.

        Args:
            activations: shape [samples, d_in]; not copied.
        Raises:
            ValueError: activations of another shape, or none, or no floating-point numbers.
        """
        return cls(name, (TensorPart(name, activations),))

    @functools.cached_property
    def n_samples(self) -> int:
        """Samples in all parts."""
        return sum(part.n_samples for part in self.parts)

    @property
    def d_in(self) -> int:
        """Numbers per sample."""
        return self.parts[0].d_in

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """What is read: the type of the parts, or the smallest that holds all theirs."""
        return functools.reduce(torch.promote_types, (part.dtype for part in self.parts))

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(part.n_samples for part in self.parts))

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d_in"]:
        """The samples from start up to stop, of `dtype`, in memory of their own.

        Raises:
            ValueError: they are not all there, or not all finite.
            OSError: a part cannot be read; the message names it.
        """
        pieces = [torch.empty(0, self.d_in, dtype=self.dtype)]
        pieces += [_read(*piece) for piece in self._pieces(start, stop)]
        return torch.cat(pieces).to(self.dtype)

    def read_token_ids(self, start: int, stop: int) -> Int64[Tensor, " rows"] | None:
        """The ids of the tokens of which the samples from start up to stop are.

        They are stored beside the activations in caches of `sbw cache-activations`, and in the
        column "token_ids" that sae_lens' CacheActivationsRunner writes.

        Returns:
            none, where they are not stored for all of these samples.
        Raises:
            ValueError: they are not all there.
            OSError: a part cannot be read; the message names it.
        """
        pieces = [torch.empty(0, dtype=torch.long)]
        for part, first, last in self._pieces(start, stop):
            ids = _read_token_ids(part, first, last)
            if ids is None:
                return None
            pieces.append(ids)
        return torch.cat(pieces)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Part, int, int]]:
        """Of which parts the samples from start up to stop are, and from where to where in each."""
        if not 0 <= start <= stop <= self.n_samples:
            raise ValueError(
                f"{self.name} has {self.n_samples} samples; there are none from {start} to {stop}."
            )
        while start < stop:
            i = bisect_right(self._ends, start)
            part, end = self.parts[i], self._ends[i]
            first = start - (end - part.n_samples)
            yield part, first, first + min(stop, end) - start
            start = min(stop, end)


def open_activations(where: str | Path, column: str | None = None) -> StoredActivations:
    """Activations on disk, of which only what is asked for is read into memory.

    Args:
        where: one of these, in which a leading `~` is the home folder:

            - a .npy file: an array [samples, d_in];
            - a .safetensors file: the tensor "activations" [samples, d_in], or else the only one
              that is 2-D and floating;
            - a folder of such files, which are taken by name, or a cache that
              `sbw cache-activations` wrote, also an incomplete one;
            - a folder with a Hugging Face data set (`save_to_disk`, or what sae_lens'
              CacheActivationsRunner writes): a column of vectors [d_in] or matrices
              [context, d_in];
            - "user/name", where there is no folder "user": such a data set of the Hub, of which
              the split "train" is downloaded.
        column: of a data set; the only one that fits, if left out.
    Raises:
        FileNotFoundError: there is nothing of that name, or a file of a cache is missing.
        OSError: a file cannot be opened, or a data set of the Hub not loaded.
        ValueError: something else, something damaged, no samples at all, several tensors or
            columns, other numbers than floating-point ones, or files of different widths; the
            message says which and what to do.
    """
    path, name = user_path(where), str(where)
    if is_dataset(path):
        return StoredActivations(name, (open_dataset(path, column),))
    if is_hub_name(name):
        return StoredActivations(name, (load_dataset(name, column),))
    if not path.exists():
        kind = "file" if path.suffix else "file or folder"
        raise FileNotFoundError(f"there is no {kind} {path}.")
    check_splits(path)
    if column is not None:
        raise ValueError(f"{path} is no data set and has no columns; leave out column={column!r}.")
    if path.is_dir():
        parts, mean_norm = open_shards(path)
        return StoredActivations(name, tuple(parts), mean_norm)
    return StoredActivations(name, (open_file(path),))


def is_activations(where: str | Path) -> bool:
    """Whether a path names activations rather than something else.

    That is what ends like a file of activations, there or not, and folders that look like those
    `open_activations` takes; whether they can be read shows only when they are opened. Of data
    sets of the Hub, see `is_hub_name`. Raises nothing.
    """
    path = user_path(where)
    try:
        if not path.is_dir():
            return path.suffix in SUFFIXES
        if (path / MANIFEST).is_file():
            return _is_manifest((path / MANIFEST).read_text(encoding="utf-8", errors="replace"))
        return is_dataset(path) or bool(shard_files(path))
    except OSError:
        return False


def is_hub_name(where: str | Path) -> bool:
    """Whether a name can only be that of a data set of the Hub; it is not looked up.

    "runs/mine" is no such name where there is a folder "runs", in which it may have been misspelt.
    """
    path = Path(where)
    fits = _HUB_ID.fullmatch(str(where)) and path.suffix not in SUFFIXES
    return bool(fits) and not path.exists() and not path.parent.exists()


def _is_manifest(text: str) -> bool:
    try:
        manifest: Any = parse_json(text)
    except ValueError:
        # Damaged; but a damaged manifest of activations, if it says so.
        return FORMAT in text
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def _read(part: Part, start: int, stop: int) -> Float[Tensor, "rows d_in"]:
    with _named(part, start, stop):
        rows = part.read(start, stop)
    if rows.shape != (stop - start, part.d_in):
        raise OSError(
            f"{part.name} gives {list(rows.shape)} numbers for the samples from {start} to {stop}."
        )
    # A finite sum proves that all are; only otherwise (it may have overflowed) look closer.
    if not bool(rows.sum().isfinite()) and not bool(rows.isfinite().all()):
        row, column = (~rows.isfinite()).nonzero()[0].tolist()
        raise NotFiniteError(
            f"{part.name} holds {rows[row, column].item()} at sample {start + row}, dimension "
            f"{column}; make these activations anew, or leave that file out."
        )
    return rows


def _read_token_ids(part: Part, start: int, stop: int) -> Int64[Tensor, " rows"] | None:
    with _named(part, start, stop):
        return part.read_token_ids(start, stop) if isinstance(part, PartWithTokenIds) else None


@contextmanager
def _named(part: Part, start: int, stop: int) -> Iterator[None]:
    try:
        yield
    except NotFiniteError:  # of a part of a part, which has said where
        raise
    except Exception as error:
        # Every kind of file has errors of its own.
        raise OSError(
            f"{part.name} cannot be read from sample {start} to {stop} ({one_line(error)})."
        ) from error
