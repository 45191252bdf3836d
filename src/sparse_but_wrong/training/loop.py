"""The training loop: one stream of activations, any number of SAEs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparse_but_wrong import sae_lens_compat
from sparse_but_wrong.loggers import Logger, check_logger
from sparse_but_wrong.threads import threads_per_operation
from sparse_but_wrong.training.batches import BatchReader, Block, ResumableSource
from sparse_but_wrong.training.controls import Control
from sparse_but_wrong.training.group import Group, with_prefix
from sparse_but_wrong.training.groups import make_groups
from sparse_but_wrong.training.interrupt import DeferredInterrupt
from sparse_but_wrong.training.log import LogReporter, TrainingLog
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stack import Steps
from sparse_but_wrong.training.state import Snapshot, TrainingState
from sparse_but_wrong.training.workers import in_turn, make_workers

if TYPE_CHECKING:
    import sae_lens

logger = logging.getLogger(__name__)

_SELDOM = 20
"""How many times as long as it took training goes on before the next rest, where one takes long: a
checkpoint of wide SAEs has gigabytes."""


def train_saes(
    saes: Sequence[sae_lens.TrainingSAE[Any]],
    source: Iterator[Tensor],
    options: TrainOptions | None = None,
    controls: Sequence[Control | None] | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    logger: Logger | None = None,
) -> TrainingLog:
    """Train many SAEs at once, in place, on one shared stream of activations.

    Every SAE takes the steps that sae_lens' `SAETrainer` would take with the same initial weights
    and batches, to float32 rounding (which a long run may amplify). On the CPU its result does not
    depend on which others share the run. SAEs that the engine does not stack are trained on the
    same stream by sae_lens' own trainer; a line on the logger `sparse_but_wrong` says which and
    why.

    Args:
        saes: sae_lens training SAEs, all of one d_in and on one device. The scale of
            `normalize_activations="expected_average_only_in"` is folded into the weights at the
            end, as sae_lens does.
        source: yields activations of shape [batch, d_in]. Read in the calling thread, and never
            past what the run needs.
        options: budget, optimiser, logging; the defaults are those of the published toy models.
        controls: for each SAE what moves its sparsity while it trains: a `KTransition`, a
            `TargetL0`, or None. An `EnchancedBatchTopKTrainingSAE` whose config moves k needs none.
        on_snapshot: called in this thread with a finished copy of each SAE after every one of
            `options.snapshot_steps`. Each SAE counts its own steps, which begin later where the
            norm of the activations is estimated first.
        logger: is handed each row of the log, as ``sae_0/l0`` and so on, once all SAEs are past
            that step: a `wandb.Run`, a TensorBoard `SummaryWriter`, or what has ``log(metrics,
            step=…)``.
    Returns:
        The log: losses, L0, dead latents, gradient norm and coefficient or k of every SAE.
    Raises:
        ValueError: SAEs that cannot share a stream or be trained as given, a control that cannot do
            its work, a batch of the wrong shape or with non-finite values (no SAE is touched by
            it), or a source that ends too early.
        TypeError: something that is not a sae_lens training SAE, not a tensor, or no logger.
        KeyboardInterrupt: on Ctrl-C; the SAEs are then as of the last finished step, in the
            units of the scaled activations, or finished if that was the last of all.
    """
    training = Training(saes, source, options or TrainOptions(), controls, on_snapshot)
    if logger is not None:
        training.report_to(logger, [f"sae_{i}" for i in range(len(saes))])
    training.run()
    return training.log


class Training:
    """A training run as an object: it can be watched, checkpointed and resumed.

    Args and errors are those of `train_saes`; `names` is what messages call the SAEs, if not by
    their places.
    """

    def __init__(
        self,
        saes: Sequence[sae_lens.TrainingSAE[Any]],
        source: Iterator[Tensor],
        options: TrainOptions,
        controls: Sequence[Control | None] | None = None,
        on_snapshot: Callable[[Snapshot], None] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        if (on_snapshot is None) != (not options.snapshot_steps):
            raise ValueError("Snapshots need both TrainOptions.snapshot_steps and on_snapshot.")
        if not hasattr(source, "__next__"):
            raise TypeError(
                f"The source is a {type(source).__name__}, not an iterator; give iter(…) of it, or "
                "itertools.cycle(…) to go through it again and again."
            )
        if torch.is_inference_mode_enabled():
            raise RuntimeError("SAEs cannot be trained under torch.inference_mode(); leave it.")
        self._names = [f"saes[{i}]" for i in range(len(saes))] if names is None else list(names)
        controls = [None] * len(saes) if controls is None else controls
        self.saes, self.options = list(saes), options
        self.source, self.on_snapshot = source, on_snapshot
        self.groups = make_groups(saes, options, controls, self._names)
        self.device = saes[0].W_dec.device
        placed = [
            (place, log, group.step)
            for group in self.groups
            for place, log in zip(group.places, group.logs, strict=True)
        ]
        placed.sort(key=itemgetter(0))
        self.log = TrainingLog([log for _, log, _ in placed])
        self.steps = [step for *_, step in placed]
        """What takes the steps of each SAE."""
        self._reader = BatchReader(source, saes[0].cfg.d_in, self.device)
        self._rates: list[float] = []
        self._further_rates = sae_lens_compat.learning_rates(
            options.lr_scheduler_name,
            options.lr,
            training_steps=options.total_training_steps,
            warm_up_steps=options.lr_warm_up_steps,
            decay_steps=options.lr_decay_steps,
            lr_end=options.final_lr,
            num_cycles=options.n_restart_cycles,
        )
        # Every block that is drawn, until all its groups are through with it: those handed out to
        # the workers, and those that came after. A resumed run reads on from the first of them.
        self._at_work: list[Block] = []
        self._drawn: list[Block] = []
        self._reporter: LogReporter | None = None

    def report_to(self, logger: Logger, names: Sequence[str]) -> None:
        """Hand the log to a logger from here on, under names of the SAEs (TypeError if none)."""
        check_logger(logger)
        self._reporter = LogReporter(self.log, names, logger)

    @property
    def n_samples(self) -> int:
        """Samples that every SAE has been trained on."""
        return min(group.n_samples for group in self.groups)

    @property
    def can_checkpoint(self) -> bool:
        """Whether `state` can be called now.

        Not while the norm of the activations is being estimated, and never where an SAE is trained
        by sae_lens' own trainer or the source does not know its place.
        """
        return isinstance(self.source, ResumableSource) and all(
            group.step != "sae_lens" and group.n_steps for group in self.groups
        )

    def run(
        self, on_rest: Callable[[Training], None] | None = None, every_seconds: float = 0.0
    ) -> None:
        """Train to the end.

        Args:
            on_rest: called now and then when all SAEs are at the same step; it may call `state`.
            every_seconds: the least time between two such calls; more, if one takes over a second.
        """
        from tqdm import tqdm

        n_saes, total = len(self.saes), self.options.total_training_samples
        bar = tqdm(
            desc=f"Training {n_saes} SAE{'s' if n_saes > 1 else ''}",
            total=total,
            initial=min(self.n_samples, total),
            unit=" samples",
            unit_scale=True,
            disable=not self.options.progress,
        )
        threads = self.options.threads or torch.get_num_threads()
        n_workers = threads if self.device.type == "cpu" else 0
        rested, pause = time.monotonic(), every_seconds
        try:
            with (
                bar,
                threads_per_operation(1) if n_workers else nullcontext(),
                make_workers(n_workers) as workers,
                DeferredInterrupt() as interrupt,
            ):
                try:
                    current = self._draw(interrupt)
                    while current is not None:
                        # Before the block at hand is handed out: a GPU has that to work on while
                        # the one drawn is looked at, and no worker waits for the slowest.
                        upcoming = None if current.error else self._draw(interrupt)
                        current.settle()
                        self._hand_out(workers)
                        if current.error is not None:
                            raise current.error
                        self._finish_blocks(bar, n_left=1)
                        self._take_snapshots(current, bar)
                        interrupt.raise_pending()
                        if on_rest is not None and time.monotonic() - rested >= pause:
                            self._finish_blocks(bar)
                            before = time.monotonic()
                            on_rest(self)
                            rested = time.monotonic()
                            took = rested - before
                            pause = max(every_seconds, _SELDOM * took if took > 1 else 0.0)
                        current = upcoming
                    self._finish_blocks(bar)
                finally:
                    # Also when the source fails: the SAEs come to rest at the same step.
                    while self._at_work:
                        self._finish_first()
        except BaseException:
            for group in self.groups:
                group.write_back(group.saes)
            raise
        with DeferredInterrupt() as closing:
            for group in self.groups:
                group.finish()
        if self._reporter is not None:
            self._reporter.report()
        self._report()
        interrupt.raise_pending()
        closing.raise_pending()

    def _draw(self, interrupt: DeferredInterrupt) -> Block | None:
        """The next block, cut so that each SAE does one thing throughout it; None at the end."""
        at, total = self._reader.n_drawn, self.options.total_training_samples
        begun = [group for group in self.groups if at >= group.n_norm_batches]
        blocks = [*self._at_work, *self._drawn]
        drawn = {group: self._steps_of(group, blocks) for group in begun}
        training = [group for group, (_, n_samples) in drawn.items() if n_samples < total]
        to_observe = [g.n_norm_batches - at for g in self.groups if g not in begun]
        if not to_observe and not training:
            return None
        left = [step - drawn[g][0] for g in training for step in self.options.snapshot_steps]
        n_samples = min((total - drawn[g][1] for g in training), default=math.inf)
        n_batches = min([*to_observe, *(n for n in left if n > 0)], default=math.inf)
        source_state = self.source.state() if isinstance(self.source, ResumableSource) else {}
        # Taken in first: if drawing is interrupted, a resumed run has to begin here.
        block = Block(at, source_state, training)
        self._drawn.append(block)
        # The source may take its time, or hang; nothing is lost if it is interrupted.
        interrupt.is_safe = True
        try:
            self._reader.draw(block, n_samples, n_batches)
        finally:
            interrupt.is_safe = False
        return block

    def _steps_of(self, group: Group, blocks: Sequence[Block]) -> tuple[int, int]:
        """Steps and samples of a group once it is through with some blocks."""
        own = [block for block in blocks if group in block.groups]
        n_steps = sum(len(block.batches) for block in own)
        return group.n_steps + n_steps, group.n_samples + sum(block.n_samples for block in own)

    def _hand_out(self, workers: Executor) -> None:
        """Start to train on the next block, each SAE once it is through with the block before."""
        block = self._drawn[0]
        earlier = self._at_work[-1].futures if self._at_work else {}
        for group in self.groups:
            if block.first < group.n_norm_batches:
                group.observe(block.batches)
        for group in block.groups if block.batches else ():
            first, n_samples = self._steps_of(group, self._at_work)
            last = first + len(block.batches)
            self._rates += islice(self._further_rates, max(0, last - len(self._rates)))
            is_last = n_samples + block.n_samples >= self.options.total_training_samples
            steps = Steps(group.scaled(block.batches), first, self._rates[first:last], is_last)
            for chunk in range(group.n_chunks):
                before = earlier.get((group, chunk))
                block.futures[group, chunk] = workers.submit(in_turn, before, group, chunk, steps)
        self._at_work.append(self._drawn.pop(0))

    def _finish_first(self) -> Block:
        """Wait for the first block at work, and count it as done."""
        self._at_work[0].wait()
        block = self._at_work.pop(0)
        for group in block.groups:
            group.n_steps += len(block.batches)
            group.n_samples += block.n_samples
        return block

    def _finish_blocks(self, bar: Any, n_left: int = 0) -> None:
        while len(self._at_work) > n_left:
            before = self.n_samples
            for future in self._finish_first().futures.values():
                future.result()
            bar.update(self.n_samples - before)
        if self._reporter is not None:
            for group in self.groups:
                group.read_log()
            self._reporter.report(min(group.n_steps for group in self.groups))

    def _take_snapshots(self, block: Block, bar: Any) -> None:
        """Of the groups that a block brings to a step to keep, once all at work is finished."""
        steps = {group: self._steps_of(group, self._at_work)[0] for group in block.groups}
        due = [group for group, step in steps.items() if step in self.options.snapshot_steps]
        if due and self.on_snapshot is not None:
            self._finish_blocks(bar)
            for group in due:
                for place, sae in zip(group.places, group.snapshot(), strict=True):
                    self.on_snapshot(Snapshot(group.n_steps, place, sae))

    def _report(self) -> None:
        """Say what users should know of how their SAEs ended."""
        last = min(group.n_steps for group in self.groups)
        missed = [step for step in self.options.snapshot_steps if step > last]
        if missed:
            logger.warning(
                "No snapshots of steps %s: batches larger than train_batch_size_samples = %d left "
                "the run with only %d steps.",
                *(missed, self.options.train_batch_size_samples, last),
            )
        for name, sae, log in zip(self._names, self.saes, self.log.saes, strict=True):
            note = log.note
            if log.diverged_at is not None:
                note = (
                    f"diverged: its gradient was not finite at step {log.diverged_at}. The others "
                    "are not affected; try a lower lr or smaller initial weights."
                )
            if note is not None:
                logger.warning("%s (%s) %s", name, sae_lens_compat.in_words(sae), note)

    def state(self) -> TrainingState:
        """All that is needed to continue, bit for bit, elsewhere; only if `can_checkpoint`."""
        source = self._resumable_source()
        if not all(group.n_steps for group in self.groups):
            raise RuntimeError("The run has not started training yet; there is nothing to keep.")
        first = next(iter([*self._at_work, *self._drawn]), None)
        source_state = source.state() if first is None else first.source_state
        tensors = {f"source.{name}": value for name, value in source_state.items()}
        for i, group in enumerate(self.groups):
            tensors.update({f"group.{i}.{name}": v for name, v in group.state().items()})
        return TrainingState(
            tensors=tensors,
            n_drawn=self._reader.n_drawn if first is None else first.first,
            n_steps=[group.n_steps for group in self.groups],
            n_samples=[group.n_samples for group in self.groups],
        )

    def load_state(self, state: TrainingState) -> None:
        """Continue from where `state` was taken; the SAEs and options must be those of that run.

        Raises:
            ValueError: the state is of other SAEs.
        """
        if len(state.n_steps) != len(self.groups):
            raise ValueError(
                f"The checkpoint holds {len(state.n_steps)} groups of SAEs, this run has "
                f"{len(self.groups)}; resume with the SAEs the run was started with."
            )
        self._resumable_source().load_state(with_prefix(state.tensors, "source."))
        self._reader.n_drawn = state.n_drawn
        for i, group in enumerate(self.groups):
            group.load_state(with_prefix(state.tensors, f"group.{i}."))
            group.n_steps, group.n_samples = state.n_steps[i], state.n_samples[i]

    def _resumable_source(self) -> ResumableSource:
        if not isinstance(self.source, ResumableSource):
            raise TypeError(
                f"A {type(self.source).__name__} cannot be resumed; give a source with state() "
                "and load_state()."
            )
        return self.source
