"""The training loop: one stream of activations, any number of SAEs.

`train_saes` is the call for users; `Training` is the same run as an object, for whoever needs to
checkpoint it on the way.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparse_but_wrong import sae_lens_compat
from sparse_but_wrong.threads import one_thread_per_operation
from sparse_but_wrong.training.architectures import ARCHITECTURES
from sparse_but_wrong.training.architectures.architecture import Architecture
from sparse_but_wrong.training.batches import BatchReader, Block
from sparse_but_wrong.training.controls import (
    Control,
    KTransition,
    TargetL0,
    own_transition,
    why_not_controlled,
)
from sparse_but_wrong.training.interrupt import DeferredInterrupt
from sparse_but_wrong.training.lens_member import LensMember
from sparse_but_wrong.training.log import TrainingLog
from sparse_but_wrong.training.member import Member, Step
from sparse_but_wrong.training.memory import check_room, free_memory
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.source import ResumableSource
from sparse_but_wrong.training.stack import why_not_stackable
from sparse_but_wrong.training.stack_member import StackMember

if TYPE_CHECKING:
    import sae_lens

logger = logging.getLogger(__name__)


def train_saes(
    saes: Sequence[sae_lens.TrainingSAE[Any]],
    source: Iterator[Tensor],
    options: TrainOptions | None = None,
    controls: Sequence[Control | None] | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
) -> TrainingLog:
    """Train many SAEs at once, in place, on one shared stream of activations.

    Every SAE takes the steps that sae_lens' `SAETrainer` would take with the same initial weights
    and batches, to float32 rounding (which a long run may amplify). On the CPU its result does not
    depend on which others share the run. SAEs that the engine does not stack are trained on the
    same stream by sae_lens' own trainer; a line on the logger `sparse_but_wrong` says which and
    why.

    Args:
        saes: sae_lens training SAEs, all of one d_in and on one device. Trained in place; with
            `normalize_activations="expected_average_only_in"` the scale is folded into the
            weights at the end, as sae_lens does.
        source: yields activations of shape [batch, d_in]. Read in the calling thread, and never
            past what the run needs.
        options: budget, optimiser, logging; the defaults are those of the published toy models.
        controls: for each SAE what moves its sparsity while it trains: a `KTransition`, a
            `TargetL0`, or None. An `EnchancedBatchTopKTrainingSAE` whose config moves k needs none.
        on_snapshot: called in this thread with a finished copy of each SAE after every one of
            `options.snapshot_steps`. Each SAE counts its own steps, which begin later where the
            norm of the activations is estimated first.
    Returns:
        The log: losses, L0, dead latents, gradient norm and coefficient of every SAE.
    Raises:
        ValueError: no SAEs, the same SAE twice, SAEs that cannot read one stream, a k that an SAE
            cannot keep, a control that cannot do its work on its SAE or in this run, a batch of
            the wrong shape or with non-finite values (no SAE is touched by it), or a source that
            ends too early.
        TypeError: something that is not a sae_lens training SAE, or not a tensor.
        KeyboardInterrupt: on Ctrl-C; the SAEs are then as of the last finished step, in the
            units of the scaled activations, or finished if that was the last of all.
    """
    training = Training(saes, source, options or TrainOptions(), controls, on_snapshot)
    training.run()
    return training.log


@dataclass(frozen=True)
class Snapshot:
    """An SAE in the middle of its training, as it would be had the training ended there."""

    step: int
    """Steps it has taken."""

    index: int
    """Its place in the caller's list."""

    sae: sae_lens.TrainingSAE[Any]
    """A copy, in the units of the activations, its k or coefficient as of this step; the caller's
    own trains on."""


@dataclass(frozen=True)
class TrainingState:
    """A run in the middle, as tensors and numbers only, so that nothing needs unpickling."""

    tensors: dict[str, Tensor]
    """Of every member and of the source, by name."""

    n_drawn: int
    """Batches drawn from the source."""

    n_steps: list[int]
    """Steps taken by each member."""

    n_samples: list[int]
    """Samples that each member was trained on."""


class Training:
    """A training run as an object: it can be watched, checkpointed and taken up again.

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
        self._names = [f"saes[{i}]" for i in range(len(saes))] if names is None else list(names)
        _check_saes(saes)
        if (on_snapshot is None) != (not options.snapshot_steps):
            raise ValueError(
                "snapshots need both: TrainOptions.snapshot_steps, which says when, and "
                "on_snapshot, which takes them."
            )
        controls = [None] * len(saes) if controls is None else controls
        _check_controls(controls, len(saes))
        if not hasattr(source, "__next__"):
            raise TypeError(
                f"the source is a {type(source).__name__}, not an iterator; give iter(…) of it, or "
                "itertools.cycle(…) to go through it again and again."
            )
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "SAEs cannot be trained under torch.inference_mode(); leave it before training."
            )
        self.saes = list(saes)
        self.options = options
        self.source = source
        self.device = saes[0].W_dec.device
        self.on_snapshot = on_snapshot
        _check_room(saes, options, self.device)
        self.members, self._places = _make_members(
            saes, options, controls, self.device, self._names
        )
        seats = sorted(
            (place, i, row)
            for i, places in enumerate(self._places)
            for row, place in enumerate(places)
        )
        self.log = TrainingLog([self.members[i].logs[row] for _, i, row in seats])
        self.steps: list[Step] = [self.members[i].step for _, i, _ in seats]
        """What takes the steps of each SAE."""
        self._reader = BatchReader(source, saes[0].cfg.d_in, self.device)
        self._learning_rates = sae_lens_compat.LearningRates(options)
        self._progress = [_Progress() for _ in self.members]
        # Where the blocks begin that are drawn but not yet trained on: a resumed run has to read on
        # from the first.
        self._untrained: deque[_StreamPoint] = deque()

    @property
    def n_samples(self) -> int:
        """Samples that every SAE has been trained on."""
        return min(progress.n_samples for progress in self._progress)

    @property
    def is_finished(self) -> bool:
        """Whether every SAE has had all its samples."""
        return self.n_samples >= self.options.total_training_samples

    @property
    def can_checkpoint(self) -> bool:
        """Whether `state` can be asked for now.

        It cannot while the norm of the activations is being estimated, and never where an SAE is
        trained by sae_lens' own trainer or the source does not know its place.
        """
        return (
            isinstance(self.source, ResumableSource)
            and all(isinstance(member, StackMember) for member in self.members)
            and all(progress.started for progress in self._progress)
        )

    def run(
        self, on_rest: Callable[[Training], None] | None = None, every_seconds: float = 0.0
    ) -> None:
        """Train to the end.

        Args:
            on_rest: called now and then when all SAEs are at the same step; it may call `state`.
            every_seconds: how much time lies between two such calls at least. Coming to rest costs
                a few milliseconds.
        """
        from tqdm import tqdm

        n_saes = len(self.log.saes)
        bar = tqdm(
            desc=f"Training {n_saes} SAE{'s' if n_saes > 1 else ''}",
            total=self.options.total_training_samples,
            initial=min(self.n_samples, self.options.total_training_samples),
            unit=" samples",
            unit_scale=True,
            disable=not self.options.progress,
        )
        threads = self.options.threads or torch.get_num_threads()
        n_workers = threads if self.device.type == "cpu" else 0
        flights: deque[_Flight] = deque()

        def land(n_left: int) -> None:
            while len(flights) > n_left:
                before = self.n_samples
                flights.popleft().land()
                bar.update(self.n_samples - before)

        def draw() -> Block | None:
            # The source may take its time, or hang; nothing is lost if it is interrupted.
            interrupt.is_safe = True
            try:
                return self._draw()
            finally:
                interrupt.is_safe = False

        try:
            with (
                bar,
                one_thread_per_operation() if n_workers else nullcontext(),
                _Workers(n_workers) as workers,
                DeferredInterrupt() as interrupt,
            ):
                rested = time.monotonic()
                try:
                    block = draw()
                    while block is not None:
                        # Drawn before the block at hand is launched, so that a GPU has that to work
                        # on while the one drawn is looked at. The source is read in this thread,
                        # which is the caller's, while the workers train on the block in flight;
                        # the next follows before that is done, so that none of them waits for the
                        # slowest.
                        upcoming = draw() if block.error is None else None
                        block.settle()
                        flights.append(self._launch(block, flights, workers))
                        if block.error is not None:
                            raise block.error
                        land(1)
                        if self._launched_to_snapshot():
                            land(0)
                            self._take_snapshots()
                        interrupt.raise_pending()
                        if on_rest is not None and time.monotonic() - rested >= every_seconds:
                            land(0)
                            on_rest(self)
                            rested = time.monotonic()
                        block = upcoming
                    land(0)
                finally:
                    # Also when the source fails: the SAEs come to rest at the same step.
                    for flight in flights:
                        flight.come_to_rest()
        except BaseException:
            for member in self.members:
                member.write_back()
            raise
        with DeferredInterrupt() as closing:
            for member, progress in zip(self.members, self._progress, strict=True):
                member.finish(progress.n_steps)
        self._report()
        interrupt.raise_pending()
        closing.raise_pending()

    def _report(self) -> None:
        """Say what users should know of how their SAEs ended."""
        last = min(progress.n_steps for progress in self._progress)
        missed = [step for step in self.options.snapshot_steps if step > last]
        if missed:
            logger.warning(
                "there are no snapshots of steps %s: the source's batches are larger than "
                "train_batch_size_samples = %d, so the run had only %d steps.",
                missed,
                self.options.train_batch_size_samples,
                last,
            )
        for name, sae, log in zip(self._names, self.saes, self.log.saes, strict=True):
            if log.diverged_at is not None:
                logger.warning(
                    "%s (%s) diverged: its gradient was not finite at step %d. The others are not "
                    "touched by it; a lower lr or smaller initial weights may save it.",
                    name,
                    sae_lens_compat.in_words(sae),
                    log.diverged_at,
                )
            elif log.note is not None:
                logger.warning("%s (%s) %s", name, sae_lens_compat.in_words(sae), log.note)

    def _draw(self) -> Block | None:
        """The next block, cut so that each SAE does one thing throughout it; None at the end."""
        at = self._reader.n_drawn
        total = self.options.total_training_samples
        to_observe = [m.n_norm_batches - at for m in self.members if at < m.n_norm_batches]
        training = [
            progress
            for member, progress in zip(self.members, self._progress, strict=True)
            if at >= member.n_norm_batches and progress.drawn_samples < total
        ]
        if not to_observe and not training:
            return None
        self._untrained.append(self._here())
        to_train = [total - progress.drawn_samples for progress in training]
        to_snapshot = [
            step - progress.drawn_steps
            for progress in training
            for step in self.options.snapshot_steps
            if step > progress.drawn_steps
        ]
        block = self._reader.draw(
            min(to_train, default=None), min([*to_observe, *to_snapshot], default=None)
        )
        for progress in training:
            progress.drawn_steps += len(block.batches)
            progress.drawn_samples += block.n_samples
        return block

    def _launched_to_snapshot(self) -> bool:
        """Whether some SAEs will stand at a step to keep, once everything in flight has landed."""
        return any(
            progress.launched_steps in self.options.snapshot_steps
            and progress.launched_steps > progress.snapshot_step
            for progress in self._progress
        )

    def _take_snapshots(self) -> None:
        for member, progress, places in zip(
            self.members, self._progress, self._places, strict=True
        ):
            step = progress.n_steps
            if step not in self.options.snapshot_steps or step <= progress.snapshot_step:
                continue
            progress.snapshot_step = step
            if self.on_snapshot is not None:
                for place, sae in zip(places, member.snapshot(step), strict=True):
                    self.on_snapshot(Snapshot(step, place, sae))

    def _launch(self, block: Block, flights: Sequence[_Flight], workers: _Workers) -> _Flight:
        """Start to train on a block, each SAE once it is through with the block before."""
        self._untrained.popleft()
        total = self.options.total_training_samples
        earlier = flights[-1].futures if flights else {}
        flight = _Flight(len(block.batches), block.n_samples)
        if not block.batches:
            return flight
        for i, (member, progress) in enumerate(zip(self.members, self._progress, strict=True)):
            if block.first < member.n_norm_batches:
                for batch in block.batches:
                    member.observe(batch)
                continue
            if progress.launched_samples >= total:
                continue
            if not progress.started:
                member.start()
                progress.started = True
            first = progress.launched_steps
            progress.launched_steps += flight.n_steps
            progress.launched_samples += flight.n_samples
            flight.progress.append(progress)
            rates = self._learning_rates.between(first, progress.launched_steps)
            log_last = progress.launched_samples >= total
            batches = member.scaled(block.batches)
            for task in range(member.n_tasks):
                flight.futures[i, task] = workers.submit(
                    earlier.get((i, task)),
                    partial(member.advance, task, batches, first, rates, log_last),
                )
        return flight

    def _here(self) -> _StreamPoint:
        """Where the source stands now."""
        source = self.source
        return _StreamPoint(
            source_state=source.state() if isinstance(source, ResumableSource) else {},
            n_drawn=self._reader.n_drawn,
        )

    def state(self) -> TrainingState:
        """All that is needed to go on from the last finished step, bit for bit, in a new process.

        Raises:
            TypeError: the source cannot tell its place in the stream (`ResumableSource`).
            NotImplementedError: an SAE is trained by sae_lens' own trainer.
            RuntimeError: the norm of the activations is still being estimated; ask
                `can_checkpoint`.
        """
        if not isinstance(self.source, ResumableSource):
            raise TypeError(
                f"a {type(self.source).__name__} cannot be resumed; give a source with state() "
                "and load_state()."
            )
        if not all(progress.started for progress in self._progress):
            raise RuntimeError("the run has not started training yet; there is nothing to keep.")
        point = self._untrained[0] if self._untrained else self._here()
        tensors = {f"source.{k}": v for k, v in point.source_state.items()}
        for i, member in enumerate(self.members):
            tensors.update({f"member.{i}.{k}": v for k, v in member.state().items()})
        return TrainingState(
            tensors=tensors,
            n_drawn=point.n_drawn,
            n_steps=[progress.n_steps for progress in self._progress],
            n_samples=[progress.n_samples for progress in self._progress],
        )

    def load_state(self, state: TrainingState) -> None:
        """Go on from where `state` was taken; the SAEs and options must be those of that run.

        Raises:
            ValueError: the state is of other SAEs.
        """
        if len(state.n_steps) != len(self.members):
            raise ValueError(
                f"the checkpoint holds {len(state.n_steps)} stacks of SAEs, this run has "
                f"{len(self.members)}; resume with the SAEs the run was started with."
            )
        if not isinstance(self.source, ResumableSource):
            raise TypeError(f"a {type(self.source).__name__} cannot be resumed.")
        self.source.load_state(_with_prefix(state.tensors, "source."))
        self._reader.n_drawn = state.n_drawn
        for i, (member, progress) in enumerate(zip(self.members, self._progress, strict=True)):
            member.load_state(_with_prefix(state.tensors, f"member.{i}."))
            progress.started = True
            progress.n_steps = progress.launched_steps = state.n_steps[i]
            progress.snapshot_step = state.n_steps[i]
            progress.n_samples = progress.launched_samples = state.n_samples[i]
            progress.drawn_steps, progress.drawn_samples = progress.n_steps, progress.n_samples


@dataclass(frozen=True)
class _StreamPoint:
    """A place in the stream of activations."""

    source_state: dict[str, Tensor]
    n_drawn: int


@dataclass
class _Progress:
    """How far one member has come."""

    started: bool = False
    n_steps: int = 0
    n_samples: int = 0
    launched_steps: int = 0
    """`n_steps` once everything in flight has landed."""
    launched_samples: int = 0
    """`n_samples` once everything in flight has landed."""
    drawn_steps: int = 0
    """`launched_steps` once what has been drawn is launched, too."""
    drawn_samples: int = 0
    """`launched_samples` once what has been drawn is launched, too."""
    snapshot_step: int = 0
    """The last step that was kept."""


@dataclass
class _Flight:
    """A block that is being trained on."""

    n_steps: int
    n_samples: int
    progress: list[_Progress] = field(default_factory=list)
    """Of the members that train on it."""
    futures: dict[tuple[int, int], Future[None]] = field(default_factory=dict)
    """By member and task."""

    def come_to_rest(self) -> None:
        """Wait for all tasks and count their steps."""
        wait(self.futures.values())
        for progress in self.progress:
            progress.n_steps += self.n_steps
            progress.n_samples += self.n_samples

    def land(self) -> None:
        """Come to rest, and raise what a task raised."""
        self.come_to_rest()
        for future in self.futures.values():
            future.result()


class _Workers:
    """Threads that train while the calling thread draws batches; with none, it does both."""

    def __init__(self, n_threads: int) -> None:
        self._executor = (
            ThreadPoolExecutor(n_threads, "sae", initializer=torch.set_num_threads, initargs=(1,))
            if n_threads
            else None
        )

    def __enter__(self) -> _Workers:
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


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _check_saes(saes: Sequence[sae_lens.TrainingSAE[Any]]) -> None:
    if not saes:
        raise ValueError("there are no SAEs to train; give at least one.")
    for i, sae in enumerate(saes):
        if not sae_lens_compat.is_training_sae(sae):
            raise TypeError(
                f"saes[{i}] is a {type(sae).__name__}; the engine trains sae_lens training SAEs "
                "(JumpReLUTrainingSAE and the like)."
            )
    first_place: dict[int, int] = {}
    for i, sae in enumerate(saes):
        if id(sae) in first_place:
            raise ValueError(
                f"saes[{i}] and saes[{first_place[id(sae)]}] are the same object; "
                "make one SAE for each place."
            )
        first_place[id(sae)] = i
        if sae.W_dec.device.type == "meta":
            raise ValueError(
                f"saes[{i}] is on the meta device, where there are no numbers; move it with "
                "sae.to_empty(…) and initialise it first."
            )
        for what, mine, wanted in (
            ("d_in", sae.cfg.d_in, saes[0].cfg.d_in),
            ("device", sae.W_dec.device, saes[0].W_dec.device),
        ):
            if mine != wanted:
                raise ValueError(
                    f"saes[{i}] has {what} {mine}, saes[0] has {wanted}; "
                    "SAEs that share a stream must agree."
                )


def _check_room(
    saes: Sequence[sae_lens.TrainingSAE[Any]], options: TrainOptions, device: torch.device
) -> None:
    """Refuse a run that cannot fit in memory, before any of it is taken."""
    cfg = saes[0].cfg
    n_parameters = sum(p.numel() for sae in saes for p in sae.parameters())
    check_room(
        12 * n_parameters,
        device,
        f"the parameters of {len(saes)} SAEs in training, the first with d_sae = {cfg.d_sae},",
        "train fewer at a time, or narrower ones",
    )
    batch_size = options.train_batch_size_samples
    check_room(
        4 * batch_size * (cfg.d_in + cfg.d_sae),
        device,
        f"batches of train_batch_size_samples = {batch_size}",
        "lower it",
    )


def _check_controls(controls: Sequence[Control | None], n_saes: int) -> None:
    if len(controls) != n_saes:
        raise ValueError(
            f"there are {len(controls)} controls for {n_saes} SAEs; give one for each of saes[0] "
            f"to saes[{n_saes - 1}], None where nothing is to move the sparsity."
        )
    for i, control in enumerate(controls):
        if control is not None and not isinstance(control, KTransition | TargetL0):
            raise TypeError(
                f"controls[{i}] is a {type(control).__name__}; what moves the sparsity of "
                f"saes[{i}] must be a KTransition, a TargetL0 or None."
            )


def _why_refused(
    sae: sae_lens.TrainingSAE[Any],
    architecture: type[Architecture] | None,
    control: Control | None,
    options: TrainOptions,
) -> str | None:
    """Why an SAE cannot be trained as it is asked for; `architecture` if the engine stacks it."""
    if architecture is None:
        return why_not_controlled(control, None, options) or sae_lens_compat.why_not_config(sae.cfg)
    own = own_transition(sae.cfg)
    if own is not None and control is not None:
        return (
            f"moves its k by itself (initial_k = {own.initial_k:g}); give it None, or leave its "
            "config's initial_k out"
        )
    ends = [sae_lens_compat.knob(sae, architecture.knob)[0]]
    for moved in (own, control):
        if isinstance(moved, KTransition):
            ends.append(moved.initial_k)
    return (
        why_not_controlled(control, architecture.knob, options)
        or architecture.why_impossible(sae, ends, options.train_batch_size_samples)
        or sae_lens_compat.why_not_config(sae.cfg)
    )


# Measured on 12 and 22 SAEs of the 50-feature world, two threads: 2 MiB of buffers per chunk take
# 27 % longer, 4 MiB 8 % longer, 16 MiB as long.
_CHUNK_BYTES = 8 * 2**20


def _count_chunks(
    stack: Sequence[sae_lens.TrainingSAE[Any]],
    architecture: type[Architecture],
    options: TrainOptions,
    device: torch.device,
) -> int:
    """In how many chunks a stack is stepped by PyTorch's operations.

    On the CPU a multiple of the threads, with buffers in cache; on a GPU as few as fit in memory.
    """
    cfg = stack[0].cfg
    per_sae = architecture.bytes_per_sae(options.train_batch_size_samples, cfg.d_in, cfg.d_sae)
    if device.type != "cpu":
        state = sum(p.numel() * p.element_size() for p in stack[0].parameters())
        # Gradients and Adam's scratch come with each chunk; what a stack keeps is three times that,
        # and three times more for a moment when a step is captured.
        room = max(1, free_memory(device) - 6 * state * len(stack))
        return min(len(stack), math.ceil(len(stack) * (per_sae + 2 * state) / room))
    threads = options.threads or torch.get_num_threads()
    largest = max(1, _CHUNK_BYTES // per_sae)
    return min(len(stack), threads * math.ceil(len(stack) / (threads * largest)))


def _make_members(
    saes: Sequence[sae_lens.TrainingSAE[Any]],
    options: TrainOptions,
    controls: Sequence[Control | None],
    device: torch.device,
    names: Sequence[str],
) -> tuple[list[Member], list[list[int]]]:
    """Group SAEs that can be stepped as one; with each group its places in the caller's list."""
    stacks: dict[tuple[object, ...], list[int]] = {}
    left_over: list[int] = []
    reasons: Counter[str] = Counter()
    unfinished: Counter[str] = Counter()
    moves: list[Control | None] = list(controls)
    for place, sae in enumerate(saes):
        architecture = next((a for a in ARCHITECTURES if a.handles(sae)), None)
        name = type(sae).__name__
        if architecture is None:
            reason = f"the engine does not know {name}"
        else:
            reason = why_not_stackable(sae) or architecture.why_not(sae.cfg)
        if reason is not None:
            architecture = None
        refusal = _why_refused(sae, architecture, controls[place], options)
        if refusal is not None:
            raise ValueError(f"{names[place]}, a {name}, {refusal}.")
        if architecture is None and options.reinit_dead_every is not None:
            raise ValueError(
                f"{names[place]}, a {name}, is trained by sae_lens' own trainer ({reason}), which "
                "does not re-initialise dead latents; leave reinit_dead_every out."
            )
        own = own_transition(sae.cfg)
        if own is not None and own.end_step >= options.n_steps:
            last = options.n_steps - 1
            unfinished[
                f"{name}: its k is to reach {sae.cfg.k:g} at step {own.end_step}, but the last "
                f"step of the run is {last}, where k is {own.k_at(last, sae.cfg.k):.4g}; shorten "
                "transition_k_duration_steps, or train on more samples"
            ] += 1
        if architecture is None:
            left_over.append(place)
            reasons[f"{name}: {reason}"] += 1
            continue
        moves[place] = own or controls[place]
        cfg = sae.cfg
        key = (
            architecture,
            cfg.d_in,
            cfg.d_sae,
            cfg.apply_b_dec_to_input,
            cfg.normalize_activations,
            *architecture.stack_key(cfg),
        )
        stacks.setdefault(key, []).append(place)
    for reason, count in reasons.items():
        logger.warning(
            "%d SAE%s trained by sae_lens' own trainer, one by one (%s).",
            count,
            " is" if count == 1 else "s are",
            reason,
        )
    for remark, count in unfinished.items():
        logger.warning("%d SAE%s: %s.", count, "" if count == 1 else "s", remark)
    members: list[Member] = []
    places: list[list[int]] = []
    for key, stack_places in stacks.items():
        architecture = next(a for a in ARCHITECTURES if a is key[0])
        stack = [saes[p] for p in stack_places]
        n_chunks = _count_chunks(stack, architecture, options, device)
        stack_controls = [moves[p] for p in stack_places]
        members.append(StackMember(stack, architecture, options, stack_controls, n_chunks))
        places.append(stack_places)
    for place in left_over:
        members.append(LensMember(saes[place], options))
        places.append([place])
    return members, places
