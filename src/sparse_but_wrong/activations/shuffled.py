"""Stored activations as training batches, without end, in a new order every pass."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

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
            From `next`, a value that is not finite, as soon as it is among what is read ahead.
        OSError: from `next`, a part that cannot be read. The next call tries again.
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
        run_bytes, n_buffers = RUN * stored.d_in * stored.dtype.itemsize, 1
        if stored.n_samples * run_bytes > buffer_bytes * RUN:
            runs_per_buffer, least = buffer_bytes // run_bytes, -(-batch_size // RUN)
            if runs_per_buffer < least:
                says = f"{buffer_bytes} bytes is too small for batches of {batch_size}"
                needed = least * run_bytes
                raise ValueError(f"a buffer of {says}; make buffer_bytes at least {needed}.")
            n_buffers = -(-_n_runs(stored) // runs_per_buffer)
        self._order = _Order(stored, batch_size, seed, n_buffers)
        self._batches: Iterator[Tensor] | None = None
        self._n_given = 0

    @property
    def d_in(self) -> int:
        """Numbers per sample."""
        return self._order.stored.d_in

    def __next__(self) -> Float[Tensor, "batch d_in"]:
        batches = self._batches or self._order.batches(self._n_given)
        self._batches = None
        batch = next(batches)
        # Only now: after an error or an interruption, the next call starts anew at this batch.
        self._batches, self._n_given = batches, self._n_given + 1
        return batch

    def state(self) -> dict[str, Tensor]:
        """How many batches were given, and of what."""
        of = torch.tensor(self._order.identity())
        return {"n_given": torch.tensor(self._n_given), "of": of}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from a place that `state` gave; nothing is read before the next batch.

        ValueError for the state of other activations, or of other arguments.
        """
        identity = self._order.identity()
        if state["of"].tolist() != identity:
            raise ValueError(
                f"this place in the stream has [samples, d_in, batch_size, seed, buffers] "
                f"{state['of'].tolist()}, but the stream over {self._order.stored.name} has "
                f"{identity}; use the same activations and arguments, or start again."
            )
        self._n_given, self._batches = int(state["n_given"]), None


@dataclass(frozen=True)
class _Order:
    """The order of all batches."""

    stored: StoredActivations
    batch_size: int
    seed: int
    n_buffers: int

    def identity(self) -> list[int]:
        """What two streams of the same batches have in common."""
        size = [self.stored.n_samples, self.stored.d_in]
        return [*size, self.batch_size, self.seed, self.n_buffers]

    def batches(self, n_given: int) -> Iterator[Float[Tensor, "batch d_in"]]:
        """The batches behind the first `n_given`; reading ahead ends when it is closed."""
        size, unwanted = self.batch_size, threading.Event()
        per_pass = self.stored.n_samples // size * size
        pass_, at = divmod(n_given * size, per_pass)
        left = per_pass - at
        starts = [0, *accumulate(map(self._n_samples, self._dealt(pass_)))]
        index = bisect_right(starts, at) - 1
        at -= starts[index]
        pieces: list[Tensor] = []
        try:
            buffer = self._reading(pass_, index, unwanted)
            while True:
                samples = buffer.result()
                # Behind the last whole batch, the rest of the pass is left out.
                rows = self._permutation(len(samples), pass_, index + 1)[at:][:left]
                at, index, left = 0, index + 1, left - len(rows)
                if not left:
                    pass_, index, left = pass_ + 1, 0, per_pass
                if self.n_buffers > 1:
                    buffer = self._reading(pass_, index, unwanted)
                first = size - sum(map(len, pieces))
                for ends in pairwise(chain([0], range(first, len(rows), size), [len(rows)])):
                    pieces.append(samples[rows[slice(*ends)]].float())
                    if sum(map(len, pieces)) == size:
                        yield pieces[0] if len(pieces) == 1 else torch.cat(pieces)
                        pieces = []
        finally:
            unwanted.set()

    def _reading(self, pass_: int, index: int, unwanted: threading.Event) -> Future[Tensor]:
        """The samples of a buffer, by place, which a thread reads unless nobody wants them."""
        future: Future[Tensor] = Future()

        def work() -> None:
            try:
                future.set_result(self._read(pass_, index, unwanted))
            except BaseException as error:
                future.set_exception(error)

        # Not a daemon, which the end of the program would cut off in the midst of PyTorch.
        threading.Thread(target=work, name="read activations", daemon=False).start()
        return future

    def _read(self, pass_: int, index: int, unwanted: threading.Event) -> Tensor:
        stored, at = self.stored, 0
        # By place, so that files are read from front to back.
        runs = self._dealt(pass_)[index].sort().values
        samples = torch.empty(self._n_samples(runs), stored.d_in, dtype=stored.dtype)
        for run in runs.tolist():
            # The main thread ends before the program waits for the others.
            if unwanted.is_set() or not threading.main_thread().is_alive():
                raise InterruptedError
            rows = stored.read(run * RUN, min((run + 1) * RUN, stored.n_samples))
            samples[at : at + len(rows)] = rows
            at += len(rows)
        return samples

    def _dealt(self, pass_: int) -> tuple[Int[Tensor, " runs"], ...]:
        """The runs of each buffer of a pass."""
        return self._permutation(_n_runs(self.stored), pass_, 0).tensor_split(self.n_buffers)

    def _n_samples(self, runs: Int[Tensor, " runs"]) -> int:
        """Samples in some runs; all are full but the last of all."""
        return int((((runs + 1) * RUN).clamp(max=self.stored.n_samples) - runs * RUN).sum())

    def _permutation(self, n: int, pass_: int, use: int) -> Int[Tensor, " n"]:
        import numpy as np

        # Unlike sums of these numbers, no two of them give the same stream.
        mixed = np.random.SeedSequence([pass_, use, self.seed % 2**64]).generate_state(1, np.uint64)
        return torch.randperm(n, generator=torch.Generator().manual_seed(int(mixed[0]) >> 1))


def _n_runs(stored: StoredActivations) -> int:
    return -(-stored.n_samples // RUN)
