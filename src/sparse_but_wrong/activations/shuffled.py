"""Stored activations as training batches, without end, in a new order every pass."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_but_wrong.activations.stored import StoredActivations

RUN = 64
"""Samples that are read together: few enough to mix well, enough for a disk to read in one go."""


class ShuffledActivations(Iterator[Tensor]):
    """Shuffled batches of stored activations, read ahead of their use.

    Runs of 64 consecutive samples are put in a random order, across all files and anew in every
    pass, and dealt into buffers of about equal size. The samples of a buffer are shuffled, and the
    buffers one after the other give the order of the pass. So a pass has every sample once, save
    the last n_samples % batch_size of its order, which are left out. Where all samples fit in one
    buffer they are read only once, and the order of a pass is a random permutation of them.

    A thread reads the next buffer while this one is in use; it ends when its buffer is read, and
    sooner when the object or the program does. The same samples and arguments, in parts of any
    size, give the same batches.

    Args:
        stored: the activations.
        batch_size: samples per batch.
        seed: of the orders.
        buffer_bytes: how large a buffer may be. Two are in memory, unless one holds everything.
    Raises:
        ValueError: fewer samples than a batch, or a buffer smaller than one.
        OSError: from `next`, a part that cannot be read. The next call tries again.
        NotFiniteError: from `next`, as soon as what is read ahead holds such a value.
    """

    def __init__(
        self,
        stored: StoredActivations,
        batch_size: int,
        seed: int,
        buffer_bytes: int = 256 * 2**20,
    ) -> None:
        if not 1 <= batch_size <= stored.n_samples:
            raise ValueError(
                f"{stored.name} has {stored.n_samples} samples, too few for batches of "
                f"{batch_size}."
                if batch_size > 0
                else f"batches have at least one sample, not batch_size = {batch_size}."
            )
        sample_bytes = stored.d_in * stored.dtype.itemsize
        n_buffers = 1
        if stored.n_samples * sample_bytes > buffer_bytes:
            runs_per_buffer = buffer_bytes // (RUN * sample_bytes)
            if runs_per_buffer * RUN < batch_size:
                needed = -(-batch_size // RUN) * RUN * sample_bytes
                raise ValueError(
                    f"a buffer of {buffer_bytes} bytes is too small for batches of {batch_size} "
                    f"samples of {stored.name}; make buffer_bytes at least {needed}."
                )
            n_buffers = -(-_n_runs(stored) // runs_per_buffer)
        self.stored = stored
        self.batch_size = batch_size
        self.seed = seed
        self._n_buffers = n_buffers
        self._n_given = 0
        self._buffer: _Buffer | None = None
        self._ahead: _Reading | None = None

    @property
    def d_in(self) -> int:
        """Numbers per sample."""
        return self.stored.d_in

    def __next__(self) -> Float[Tensor, "batch d_in"]:
        pass_, batch = divmod(self._n_given, self.stored.n_samples // self.batch_size)
        at, stop = batch * self.batch_size, (batch + 1) * self.batch_size
        pieces = []
        while at < stop:
            pieces.append(self._buffer_with(pass_, at).take(at, stop))
            at += len(pieces[-1])
        # Only now: a call that failed or was interrupted can be made again.
        self._n_given += 1
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def state(self) -> dict[str, Tensor]:
        """How many batches were given, and of what."""
        return {"n_given": torch.tensor(self._n_given), "of": torch.tensor(self._identity())}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a place that `state` gave; nothing is read before the next batch is asked for.

        Raises:
            ValueError: it is the state of other activations, or of other arguments.
        """
        if state["of"].tolist() != self._identity():
            raise ValueError(
                f"this place in the stream has [samples, d_in, batch_size, seed, buffers] "
                f"{state['of'].tolist()}, but the stream over {self.stored.name} has "
                f"{self._identity()}; go on with the same activations and arguments, or start anew."
            )
        self._n_given = int(state["n_given"])

    def _identity(self) -> list[int]:
        return [
            self.stored.n_samples,
            self.stored.d_in,
            self.batch_size,
            self.seed,
            self._n_buffers,
        ]

    def _buffer_with(self, pass_: int, at: int) -> _Buffer:
        """The buffer that holds a place in the order of a pass."""
        held = self._buffer
        if held is not None and held.pass_ != pass_ and self._n_buffers == 1:
            held = self._buffer = held.reordered(pass_, self.seed)
        if held is None or not held.holds(pass_, at):
            held = self._buffer = self._fetch(pass_, self._index_at(pass_, at))
            if self._n_buffers > 1:
                is_last = held.index + 1 == self._n_buffers
                following = (pass_ + 1, 0) if is_last else (pass_, held.index + 1)
                self._ahead = _Reading(self.stored, self.seed, self._n_buffers, *following)
        return held

    def _index_at(self, pass_: int, at: int) -> int:
        held = self._buffer
        if held is not None and (held.pass_, held.stop) == (pass_, at):
            return held.index + 1
        stop = 0
        for index, runs in enumerate(_deal(self.stored, self.seed, self._n_buffers, pass_)):
            stop += _n_samples(self.stored, runs)
            if at < stop:
                return index
        raise ValueError(f"a pass over {self.stored.name} has {stop} samples and no {at}-th.")

    def _fetch(self, pass_: int, index: int) -> _Buffer:
        if self._ahead is None or self._ahead.place != (pass_, index):
            self._ahead = _Reading(self.stored, self.seed, self._n_buffers, pass_, index)
        try:
            buffer = self._ahead.result()
        except Exception:
            # To be read again by the next call. After an interruption it goes on being read.
            self._ahead = None
            raise
        self._ahead = None
        return buffer


@dataclass(frozen=True)
class _Buffer:
    """A stretch of the order of a pass."""

    pass_: int
    index: int
    first: int
    """Where in the order of the pass it begins."""

    samples: Float[Tensor, "samples d_in"]
    """As stored, by place."""

    order: Int[Tensor, " samples"]

    @property
    def stop(self) -> int:
        """Where in the order of the pass it ends."""
        return self.first + len(self.order)

    def holds(self, pass_: int, at: int) -> bool:
        """Whether a place in the order of a pass is in it."""
        return self.pass_ == pass_ and self.first <= at < self.stop

    def take(self, start: int, stop: int) -> Float[Tensor, "taken d_in"]:
        """What it has of a stretch of the pass, in float32."""
        return self.samples[self.order[start - self.first : stop - self.first]].float()

    def reordered(self, pass_: int, seed: int) -> _Buffer:
        """The same samples as another pass has them; only of the one buffer that holds all."""
        return _Buffer(pass_, 0, 0, self.samples, _order(len(self.order), seed, pass_, 0))


class _Reading:
    """A buffer that a thread is reading; once nobody wants it any more, the thread ends."""

    def __init__(
        self, stored: StoredActivations, seed: int, n_buffers: int, pass_: int, index: int
    ) -> None:
        self.place = pass_, index
        self._future: Future[_Buffer] = Future()
        unwanted = threading.Event()
        weakref.finalize(self, unwanted.set)
        future = self._future

        # Must not hold on to self, or it would never be unwanted.
        def work() -> None:
            try:
                future.set_result(_read(stored, seed, n_buffers, pass_, index, unwanted))
            except BaseException as error:
                future.set_exception(error)

        # Not a daemon, which the end of the program would cut off in the midst of PyTorch.
        threading.Thread(target=work, name="read activations", daemon=False).start()

    def result(self) -> _Buffer:
        """The buffer, once it is read.

        Raises:
            OSError: a part cannot be read.
            NotFiniteError: a part holds a value that is not finite.
        """
        return self._future.result()


class _UnwantedError(Exception):
    """Nobody is waiting for a buffer any more."""


def _read(
    stored: StoredActivations,
    seed: int,
    n_buffers: int,
    pass_: int,
    index: int,
    unwanted: threading.Event,
) -> _Buffer:
    dealt = _deal(stored, seed, n_buffers, pass_)
    first = sum(_n_samples(stored, runs) for runs in dealt[:index])
    # By place, so that files are read from front to back.
    runs = dealt[index].sort().values
    samples = torch.empty(_n_samples(stored, runs), stored.d_in, dtype=stored.dtype)
    at = 0
    for run in runs.tolist():
        # The main thread ends before the program waits for the others.
        if unwanted.is_set() or not threading.main_thread().is_alive():
            raise _UnwantedError
        rows = stored.read(run * RUN, min((run + 1) * RUN, stored.n_samples))
        samples[at : at + len(rows)].copy_(rows)
        at += len(rows)
    return _Buffer(pass_, index, first, samples, _order(at, seed, pass_, index))


def _deal(
    stored: StoredActivations, seed: int, n_buffers: int, pass_: int
) -> tuple[Int[Tensor, " runs"], ...]:
    """The runs of each buffer of a pass."""
    generator = _generator(seed, pass_, 0)
    return torch.randperm(_n_runs(stored), generator=generator).tensor_split(n_buffers)


def _order(n_samples: int, seed: int, pass_: int, index: int) -> Int[Tensor, " samples"]:
    """The order of the samples in a buffer."""
    return torch.randperm(n_samples, generator=_generator(seed, pass_, index + 1))


def _generator(seed: int, pass_: int, use: int) -> torch.Generator:
    import numpy as np

    # Unlike sums of these numbers, no two of them give the same stream.
    mixed = np.random.SeedSequence([pass_, use, seed % 2**64]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]) >> 1)


def _n_runs(stored: StoredActivations) -> int:
    return -(-stored.n_samples // RUN)


def _n_samples(stored: StoredActivations, runs: Int[Tensor, " runs"]) -> int:
    """Samples in some runs; all are full but the last of all."""
    last = _n_runs(stored) - 1
    missing = (last + 1) * RUN - stored.n_samples
    return len(runs) * RUN - (missing if bool((runs == last).any()) else 0)
