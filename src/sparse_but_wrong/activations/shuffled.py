"""Stored activations as training batches, without end, in a new order every pass."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_but_wrong.activations.stored import StoredActivations

RUN = 64
"""Samples that are read together: few enough to mix well, enough for a disk to read in one go."""


class ShuffledActivations(Iterator[Tensor]):
    """Shuffled float32 batches [batch_size, d_in] of stored activations, read ahead of their use.

    Runs of 64 consecutive samples are put in a random order, across all files and again in every
    pass, and dealt into buffers of about equal size. The samples of a buffer are shuffled, and the
    buffers one after the other give the order of the pass. So a pass has every sample once, except
    the last n_samples % batch_size of its order, which are left out. If all samples fit in one
    buffer they are read only once, and the order of a pass is a random permutation of them.

    A thread reads the next buffer while this one is in use; it ends when its buffer is read, and
    sooner when the object or the program does. The same samples and arguments, in parts of any
    size, give the same batches.

    Args:
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
                f"batch_size must be from 1 to {stored.n_samples}, the samples of {stored.name}, "
                f"but is {batch_size}."
            )
        sample_bytes = stored.d_in * stored.dtype.itemsize
        self._order = _Order(stored, seed, 1)
        if stored.n_samples * sample_bytes > buffer_bytes:
            runs_per_buffer = buffer_bytes // (RUN * sample_bytes)
            if runs_per_buffer * RUN < batch_size:
                needed = -(-batch_size // RUN) * RUN * sample_bytes
                says = f"{buffer_bytes} bytes is too small for batches of {batch_size}"
                raise ValueError(f"a buffer of {says}; make buffer_bytes at least {needed}.")
            self._order = _Order(stored, seed, -(-self._order.n_runs // runs_per_buffer))
        self.stored, self.batch_size, self.seed = stored, batch_size, seed
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
        """Continue from a place that `state` gave; nothing is read before the next batch.

        Raises:
            ValueError: it is the state of other activations, or of other arguments.
        """
        if state["of"].tolist() != self._identity():
            raise ValueError(
                f"this place in the stream has [samples, d_in, batch_size, seed, buffers] "
                f"{state['of'].tolist()}, but the stream over {self.stored.name} has "
                f"{self._identity()}; use the same activations and arguments, or start again."
            )
        self._n_given = int(state["n_given"])

    def _identity(self) -> list[int]:
        stored, n_buffers = self.stored, self._order.n_buffers
        return [stored.n_samples, stored.d_in, self.batch_size, self.seed, n_buffers]

    def _buffer_with(self, pass_: int, at: int) -> _Buffer:
        """The buffer that holds a place in the order of a pass."""
        held, n_buffers = self._buffer, self._order.n_buffers
        if held is not None and held.pass_ != pass_ and n_buffers == 1:
            order = self._order.of_samples(len(held.order), pass_, 0)
            held = self._buffer = replace(held, pass_=pass_, order=order)
        if held is None or held.pass_ != pass_ or not held.first <= at < held.stop:
            follows = held is not None and (held.pass_, held.stop) == (pass_, at)
            index = held.index + 1 if held and follows else self._order.index_at(pass_, at)
            held = self._buffer = self._fetch(pass_, index)
            if n_buffers > 1:
                is_last = index + 1 == n_buffers
                following = (pass_ + 1, 0) if is_last else (pass_, index + 1)
                self._ahead = _Reading(self._order, *following)
        return held

    def _fetch(self, pass_: int, index: int) -> _Buffer:
        if self._ahead is None or self._ahead.place != (pass_, index):
            self._ahead = _Reading(self._order, pass_, index)
        try:
            buffer = self._ahead.future.result()
        except Exception:
            # The next call reads it again. After an interruption, reading continues.
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
        return self.first + len(self.order)

    def take(self, start: int, stop: int) -> Float[Tensor, "taken d_in"]:
        """What it has of a stretch of the pass, in float32."""
        return self.samples[self.order[start - self.first : stop - self.first]].float()


@dataclass(frozen=True)
class _Order:
    """The orders of all passes."""

    stored: StoredActivations
    seed: int
    n_buffers: int

    @property
    def n_runs(self) -> int:
        return -(-self.stored.n_samples // RUN)

    def deal(self, pass_: int) -> tuple[Int[Tensor, " runs"], ...]:
        """The runs of each buffer of a pass."""
        shuffled = torch.randperm(self.n_runs, generator=self._generator(pass_, 0))
        return shuffled.tensor_split(self.n_buffers)

    def of_samples(self, n_samples: int, pass_: int, index: int) -> Int[Tensor, " samples"]:
        """The order of the samples in a buffer."""
        return torch.randperm(n_samples, generator=self._generator(pass_, index + 1))

    def index_at(self, pass_: int, at: int) -> int:
        """Which buffer of a pass holds a place in its order."""
        stop = 0
        for index, runs in enumerate(self.deal(pass_)):
            stop += self._n_samples(runs)
            if at < stop:
                return index
        raise ValueError(f"a pass over {self.stored.name} has {stop} samples and no {at}-th.")

    def read(self, pass_: int, index: int, unwanted: threading.Event) -> _Buffer:
        """Read a buffer, unless nobody wants it any more."""
        dealt = self.deal(pass_)
        first = sum(map(self._n_samples, dealt[:index]))
        # By place, so that files are read from front to back.
        runs = dealt[index].sort().values
        stored = self.stored
        samples = torch.empty(self._n_samples(runs), stored.d_in, dtype=stored.dtype)
        at = 0
        for run in runs.tolist():
            # The main thread ends before the program waits for the others.
            if unwanted.is_set() or not threading.main_thread().is_alive():
                raise InterruptedError
            rows = stored.read(run * RUN, min((run + 1) * RUN, stored.n_samples))
            samples[at : at + len(rows)].copy_(rows)
            at += len(rows)
        return _Buffer(pass_, index, first, samples, self.of_samples(at, pass_, index))

    def _generator(self, pass_: int, use: int) -> torch.Generator:
        import numpy as np

        # Unlike sums of these numbers, no two of them give the same stream.
        mixed = np.random.SeedSequence([pass_, use, self.seed % 2**64]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(mixed[0]) >> 1)

    def _n_samples(self, runs: Int[Tensor, " runs"]) -> int:
        """Samples in some runs; all are full but the last of all."""
        last = self.n_runs - 1
        missing = (last + 1) * RUN - self.stored.n_samples
        return len(runs) * RUN - (missing if bool((runs == last).any()) else 0)


class _Reading:
    """A buffer that a thread is reading; once nobody wants it any more, the thread ends."""

    def __init__(self, order: _Order, pass_: int, index: int) -> None:
        self.place = pass_, index
        self.future: Future[_Buffer] = Future()
        unwanted = threading.Event()
        weakref.finalize(self, unwanted.set)
        future = self.future

        # Must not hold on to self, or it would never be unwanted.
        def work() -> None:
            try:
                future.set_result(order.read(pass_, index, unwanted))
            except BaseException as error:
                future.set_exception(error)

        # Not a daemon, which the end of the program would cut off in the midst of PyTorch.
        threading.Thread(target=work, name="read activations", daemon=False).start()
