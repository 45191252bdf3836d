"""Activations that are stored somewhere, in memory or on disk, and read piece by piece."""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sparse_but_wrong.activations.manifest import (
    FORMAT,
    MANIFEST,
    Cache,
    open_shards,
    read_cache,
)
from sparse_but_wrong.activations.parts import (
    SUFFIXES,
    Part,
    files_in,
    is_dataset,
    open_dataset,
    open_file,
    tensor_part,
)
from sparse_but_wrong.untrusted import user_path

BLOCKS = 16
"""Into which held-out samples are cut."""

LARGEST_BATCH = 4096
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

Keep = Callable[[Float[Tensor, "rows d_in"], Int64[Tensor, " rows"] | None], Bool[Tensor, " rows"]]
"""Which samples to keep: called with them, as float32, and with the ids of their tokens, or None
where none are stored."""


def neighbours_per_batch(n_samples: int) -> int:
    """A sixteenth of the samples, at most 4,096: enough batches for a standard error over them."""
    return max(1, min(LARGEST_BATCH, n_samples // 16))


@dataclass(frozen=True, repr=False)
class StoredActivations:
    """Activations that lie in parts, one after the other; made by `open_activations` or `of`.

    Iterating gives float32 batches [batch, d_in] of neighbours, in order (see `batches`).
    ValueError for no samples at all, or parts of different widths.
    """

    name: str
    """What messages call it."""

    parts: tuple[Part, ...]
    cache: Cache | None = None
    """What is on record about them, where `cache_activations` wrote them."""

    def __post_init__(self) -> None:
        if self.n_samples == 0:
            raise ValueError(f"{self.name} holds no samples; name other activations.")
        first = self.parts[0]
        for part in self.parts:
            if part.d_in != first.d_in:
                widths = f"d_in {part.d_in}, but {first.name} has {first.d_in}"
                raise ValueError(f"{part.name} has {widths}; keep those of one width.")

    @classmethod
    def of(cls, activations: Tensor, name: str = "activations") -> StoredActivations:
        """Floating-point activations in memory, [samples, d_in], which are not copied."""
        return cls(name, (tensor_part(name, activations),))

    def __repr__(self) -> str:
        norm = f", mean norm {self.mean_norm:.4g}" if self.mean_norm is not None else ""
        size = f"{self.n_samples:,} samples, d_in {self.d_in}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"StoredActivations({self.name!r}: {size}, {dtype}{norm})"

    def __iter__(self) -> Iterator[Float[Tensor, "batch d_in"]]:
        return self.batches(neighbours_per_batch(self.n_samples))

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
        """The type of what is read: that of the parts, or the smallest that holds all theirs."""
        return functools.reduce(torch.promote_types, (part.dtype for part in self.parts))

    @property
    def mean_norm(self) -> float | None:
        """Mean of the samples' L2 norms, where a cache knows it."""
        return self.cache.mean_norm if self.cache else None

    @property
    def origin(self) -> tuple[str | None, str | None]:
        """The model and the hook that they come from, where that is on record."""
        if self.cache is not None:
            return self.cache.model, self.cache.hook
        # sae_lens names the column after the hook.
        return None, self.parts[0].column

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(part.n_samples for part in self.parts))

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d_in"]:
        """The samples from start up to stop, of `dtype`, in memory of their own.

        ValueError if they are not all there, or not all finite; OSError if they cannot be read.
        """
        pieces = [torch.empty(0, self.d_in, dtype=self.dtype)]
        pieces += [part.read(*ends) for part, *ends in self._pieces(start, stop)]
        return torch.cat(pieces).to(self.dtype)

    def read_token_ids(self, start: int, stop: int) -> Int64[Tensor, " rows"] | None:
        """The ids of the tokens of these samples, or None where they are not stored for all.

        Our caches store them, and sae_lens' CacheActivationsRunner in the column "token_ids".
        Raises as `read`.
        """
        found = [torch.empty(0, dtype=torch.long)]
        for part, first, last in self._pieces(start, stop):
            ids = part.read_token_ids(first, last)
            if ids is None:
                return None
            found.append(ids)
        return torch.cat(found)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[Part, int, int]]:
        """The parts that the samples from start up to stop lie in, with the range in each."""
        if not 0 <= start <= stop <= self.n_samples:
            says = f"{self.n_samples} samples, and none from {start} to {stop}"
            raise ValueError(f"{self.name} has {says}.")
        while start < stop:
            i = bisect_right(self._ends, start)
            part, end = self.parts[i], self._ends[i]
            first = start - (end - part.n_samples)
            yield part, first, first + min(stop, end) - start
            start = min(stop, end)

    def batches(
        self, batch_size: int, n_samples: int | None = None, *, keep: Keep | None = None
    ) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Float32 batches [batch_size, d_in] of consecutive samples, once, in stored order.

        Samples of one document are alike. Here they lie mostly in the same batch, so that the
        spread of a metric over batches tells its standard error; over shuffled batches, which all
        hold a little of every document, it would come out too small.

        Args:
            n_samples: read at most this many; all by default. If there are more, only whole batches
                are read: the samples are cut into equal shares, and a batch is the middle of one.
            keep: which samples to keep, batch by batch; all by default. Batches become smaller by
                what is left out, and empty ones are skipped.
        Raises:
            ValueError: batch_size below one, or n_samples below it although there are more samples;
                from the iterator, where `keep` keeps nothing at all, and as `read`.
            OSError: from the iterator, a part that cannot be read.
        """
        return self._batches(self.starts(batch_size, n_samples), batch_size, keep)

    def starts(self, batch_size: int, n_samples: int | None = None) -> Iterable[int]:
        """Where the batches of `batches` begin; ValueError as there."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, but is {batch_size}.")
        if n_samples is None or n_samples >= self.n_samples:
            return range(0, self.n_samples, batch_size)
        if n_samples < batch_size:
            raise ValueError(f"n_samples = {n_samples} is less than a batch of {batch_size}.")
        n = n_samples // batch_size
        spare = self.n_samples - n * batch_size
        return [i * batch_size + spare * (2 * i + 1) // (2 * n) for i in range(n)]

    def neighbours(self, sample: int, reach: int) -> tuple[int, int, bool]:
        """From where to where the samples around one are, at most `reach` before and behind it.

        They are of one part, and end where its sequence does if that is on record, which the last
        value says.
        """
        i = bisect_right(self._ends, sample)
        part = self.parts[i]
        first = self._ends[i] - part.n_samples
        start, stop = part.neighbours(sample - first, reach)
        return first + start, first + stop, part.sequence_ends is not None

    def _batches(
        self, starts: Iterable[int], batch_size: int, keep: Keep | None
    ) -> Iterator[Float[Tensor, "batch d_in"]]:
        is_empty = True
        for start in starts:
            stop = min(start + batch_size, self.n_samples)
            rows = self.read(start, stop).float()
            if keep is not None:
                rows = rows[keep(rows, self.read_token_ids(start, stop))]
            if len(rows):
                is_empty = False
                yield rows
        if is_empty:
            raise ValueError(f"no sample of {self.name} is kept; leave out fewer.")

    def hold_out(self, n_samples: int) -> tuple[StoredActivations, StoredActivations]:
        """Split into samples to train on and `n_samples` held-out ones.

        These are blocks of neighbours, a part each, spread evenly: neighbours are from one text and
        alike, so single samples between those that are trained on would be half known. ValueError
        for less than one or more than half of all.
        """
        if not 1 <= n_samples <= self.n_samples // 2:
            raise ValueError(
                f"{n_samples:,} cannot be held out of the {self.n_samples:,} samples of "
                f"{self.name}; choose 1 to {self.n_samples // 2:,}."
            )
        n_blocks = min(BLOCKS, n_samples)
        # The middle of each share: the rounding of the ends leaves no two blocks overlapping.
        cuts = [0]
        for i in range(n_blocks):
            size = n_samples * (i + 1) // n_blocks - n_samples * i // n_blocks
            shares = self.n_samples * i // n_blocks + self.n_samples * (i + 1) // n_blocks
            start = (shares - size) // 2
            cuts += [start, start + size]
        sections = []
        for start, stop in pairwise([*cuts, self.n_samples]):
            name = f"samples {start} to {stop} of {self.name}"
            size, reads = (stop - start, self.d_in, self.dtype), (self.read, self.read_token_ids)
            sections.append(_Section(name, *size, *reads, first=start))
        return (
            StoredActivations(self.name, tuple(part for part in sections[::2] if part.n_samples)),
            StoredActivations(f"the held-out part of {self.name}", tuple(sections[1::2])),
        )


@dataclass(frozen=True, eq=False)
class _Section(Part):
    """Some neighbours, as a part of their own; the parts they lie in name and check them."""

    first: int = 0

    def read(self, start: int, stop: int) -> Float[Tensor, "rows d_in"]:
        return self.rows(self.first + start, self.first + stop)

    def read_token_ids(self, start: int, stop: int) -> Int64[Tensor, " rows"] | None:
        return self.token_ids and self.token_ids(self.first + start, self.first + stop)


def without_tokens(token_ids: Iterable[int]) -> Keep:
    """A `keep` for `StoredActivations.batches` that leaves out samples of these tokens.

    Models park attention on BOS and other special tokens, with activations so large that they
    distort every metric. It raises ValueError where no token ids are stored.
    """
    excluded = torch.tensor(sorted(token_ids), dtype=torch.long)

    def keep(rows: Tensor, of_rows: Tensor | None) -> Tensor:
        del rows
        if of_rows is None:
            raise ValueError("no token_ids are stored beside these activations to leave out any.")
        return ~torch.isin(of_rows, excluded)

    return keep


def open_activations(where: str | Path, column: str | None = None) -> StoredActivations:
    """Open activations on disk; samples are read into memory only when they are asked for.

    Args:
        where: one of these, with a leading `~` for the home folder:

            - a .npy file: an array [samples, d_in];
            - a .safetensors file: the tensor "activations" [samples, d_in], or else the only one
              that is 2-D and floating;
            - a folder of such files, taken by name, or a cache that `sbw cache-activations` wrote,
              finished or not;
            - a folder with a Hugging Face dataset (from `save_to_disk` or sae_lens'
              CacheActivationsRunner): a column of vectors [d_in] or matrices [context, d_in], in
              the split "train" where there are several;
            - "user/name", where there is no folder "user": such a dataset on the Hub, which is
              downloaded.
        column: of a dataset; may be left out where only one fits.
    Raises:
        OSError: a file is not there or cannot be opened, or a dataset not loaded from the Hub.
        ValueError: something else, something damaged, no samples, several tensors or columns,
            other numbers than floating-point ones, or files of different widths.
    """
    path, name = user_path(where), str(where)
    if is_dataset(path):
        return StoredActivations(name, (open_dataset(path, column),))
    if is_hub_name(name):
        return StoredActivations(name, (open_dataset(name, column),))
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {'file' if path.suffix else 'file or folder'} {path}."
        )
    if column is not None:
        raise ValueError(f"{path} is no dataset and has no columns; leave out column={column!r}.")
    if (path / MANIFEST).is_file():
        cache = read_cache(path)
        return StoredActivations(name, open_shards(path, cache), cache)
    return StoredActivations(name, _open_folder(path) if path.is_dir() else (open_file(path),))


def _open_folder(folder: Path) -> tuple[Part, ...]:
    files = files_in(folder, SUFFIXES)
    if not files:
        kinds = f"no {' or '.join(SUFFIXES)} files, no {MANIFEST} of a cache, no dataset"
        raise FileNotFoundError(f"{folder} holds no activations: {kinds}.")
    parts = []
    for file in files:
        try:
            parts.append(open_file(file))
        except ValueError as error:
            rest = f" Move it away to use the {len(files) - 1} other files."
            raise ValueError(f"{error}{rest if len(files) > 1 else ''}") from error
    return tuple(parts)


def is_activations(where: str | Path) -> bool:
    """Whether a path names activations rather than something else, without opening them.

    True for names that end like a file of activations, there or not, and for folders that look like
    those that `open_activations` takes. For datasets on the Hub see `is_hub_name`.
    """
    path = user_path(where)
    try:
        if not path.is_dir():
            return path.suffix in SUFFIXES
        if not (path / MANIFEST).is_file():
            return is_dataset(path) or bool(files_in(path, SUFFIXES))
        # Not parsed, because it may be damaged.
        manifest = (path / MANIFEST).read_text(encoding="utf-8", errors="replace")
        return re.search(rf'"format":\s*"{FORMAT}"', manifest) is not None
    except OSError:
        return False


def is_hub_name(where: str | Path) -> bool:
    """Whether a name can only be that of a dataset on the Hub; it is not looked up.

    "runs/mine" is no such name where there is a folder "runs", in which it may be misspelt.
    """
    path = Path(where)
    fits = _HUB_ID.fullmatch(str(where)) and path.suffix not in SUFFIXES
    return bool(fits) and not path.exists() and not path.parent.exists()
