"""The queue of drawn blocks, and the threads that train on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from sparse_but_wrong.sae_lens_compat import LearningRates
from sparse_but_wrong.training.batches import Block
from sparse_but_wrong.training.group import Group
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stepper import Steps


@dataclass
class PendingBlock:
    """A block that is drawn and not yet trained on by all."""

    block: Block
    source_state: dict[str, Tensor]
    """Where the source stood before the block was drawn."""
    groups: list[int]
    """Which groups train on it; the others have not begun, or are through."""
    futures: dict[tuple[int, int], Future[None]] = field(default_factory=dict)
    """By group and chunk."""
    is_handed_out: bool = False

    def wait(self) -> None:
        """Until every group is through with it, or has failed."""
        wait(self.futures.values())


class PendingBlocks:
    """Every block that is drawn, until all its groups are through with it.

    What is drawn, and what is handed out to the workers, follows from it and from the groups' own
    counters; and a resumed run reads on from the first block in it.
    """

    def __init__(self, groups: Sequence[Group], options: TrainOptions) -> None:
        self.groups = groups
        self.options = options
        self._blocks: deque[PendingBlock] = deque()
        self._learning_rates = LearningRates(
            options.lr_scheduler_name,
            options.lr,
            training_steps=options.total_training_steps,
            warm_up_steps=options.lr_warm_up_steps,
            decay_steps=options.lr_decay_steps,
            lr_end=options.final_lr,
            num_cycles=options.n_restart_cycles,
        )

    @property
    def first(self) -> PendingBlock | None:
        """The block that was drawn before all others that are left."""
        return self._blocks[0] if self._blocks else None

    @property
    def n_handed_out(self) -> int:
        """Blocks at work."""
        return sum(pending.is_handed_out for pending in self._blocks)

    def append(self, pending: PendingBlock) -> None:
        """Take in a block that is about to be drawn."""
        self._blocks.append(pending)

    def steps_of(self, group: int, only_handed_out: bool = False) -> tuple[int, int]:
        """Steps and samples of a group once all blocks, or those at work, are finished."""
        blocks = [
            pending.block
            for pending in self._blocks
            if group in pending.groups and (pending.is_handed_out or not only_handed_out)
        ]
        own = self.groups[group]
        return (
            own.n_steps + sum(len(block.batches) for block in blocks),
            own.n_samples + sum(block.n_samples for block in blocks),
        )

    def hand_out(self, pending: PendingBlock, workers: Workers) -> None:
        """Start to train on a block, each SAE once it is through with the block before."""
        block = pending.block
        earlier = [p.futures for p in self._blocks if p.is_handed_out]
        for group in self.groups:
            for batch in block.batches if block.first < group.n_norm_batches else ():
                group.observe(batch)
        for i in pending.groups if block.batches else ():
            group = self.groups[i]
            if not group.started:
                group.start()
                group.started = True
            first, n_samples = self.steps_of(i, only_handed_out=True)
            rates = self._learning_rates.between(first, first + len(block.batches))
            is_last = n_samples + block.n_samples >= self.options.total_training_samples
            steps = Steps(group.scaled(block.batches), first, rates, is_last)
            for chunk in range(group.n_chunks):
                pending.futures[i, chunk] = workers.submit(
                    earlier[-1].get((i, chunk)) if earlier else None,
                    partial(group.advance, chunk, steps),
                )
        pending.is_handed_out = True

    def finish_first(self) -> PendingBlock:
        """Wait for the first block at work, and count it as done."""
        self._blocks[0].wait()
        pending = self._blocks.popleft()
        for i in pending.groups:
            self.groups[i].n_steps += len(pending.block.batches)
            self.groups[i].n_samples += pending.block.n_samples
        return pending


class Workers:
    """Some threads; with none, the calling thread does the work itself."""

    def __init__(self, n_threads: int) -> None:
        self._executor = (
            ThreadPoolExecutor(n_threads, "sae", initializer=torch.set_num_threads, initargs=(1,))
            if n_threads
            else None
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown()

    def submit(self, earlier: Future[None] | None, work: Callable[[], None]) -> Future[None]:
        """Start a piece of work as soon as an earlier one is done.

        Work is taken up in the order it is submitted in, so the earlier piece has been taken up
        when this one is, and waiting for it always ends.
        """

        def in_turn() -> None:
            if earlier is not None:
                earlier.result()
            work()

        if self._executor is not None:
            return self._executor.submit(in_turn)
        future: Future[None] = Future()
        try:
            in_turn()
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)
        return future
