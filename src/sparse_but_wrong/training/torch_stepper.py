"""The steps of a stack by PyTorch's own operations, on any device.

Axes: C SAEs of one chunk, B batch, D d_in, H d_sae, P flat parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.training.architectures.architecture import Architecture
from sparse_but_wrong.training.memory import is_out_of_memory
from sparse_but_wrong.training.optimizer import AdamScalars
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stack_state import StackState
from sparse_but_wrong.training.static_step import StaticStep
from sparse_but_wrong.training.step import Scratch, StepInputs, take_step
from sparse_but_wrong.training.stepper import Advanced, Stepper, even_slices

logger = logging.getLogger(__name__)


def replays(device: torch.device) -> bool:
    """Whether steps are replayed from fixed places: where launching them costs more than they."""
    return device.type == "cuda"


class TorchStepper(Stepper):
    """Steps a stack with PyTorch's operations.

    The stack is cut into chunks, each stepped as one by one thread. A chunk of several SAEs needs
    fewer calls, between which the threads of Python wait for each other; one that is too large
    falls out of the cache. On the CPU every operation does the same for an SAE however many share
    its chunk, so that its result is the same bit for bit alone or in a stack. On a GPU the whole
    stack is one chunk. A chunk that does not fit in memory is halved, and goes on where it was.
    """

    def __init__(
        self,
        architecture: type[Architecture],
        cfgs: Sequence[Any],
        state: StackState,
        options: TrainOptions,
        n_chunks: int,
    ) -> None:
        self.architecture = architecture
        self.cfgs = cfgs
        self.state = state
        self.options = options
        self.device = state.params.device
        self._is_static = replays(self.device)
        self.chunks = even_slices(len(cfgs), n_chunks)
        # What each chunk is stepped as: one piece, until memory runs out.
        self._pieces = [[rows] for rows in self.chunks]
        self._steps: dict[tuple[int, int], Architecture] = {}
        # Tasks return their buffers here, by the size of their piece. Append and pop are atomic, so
        # tasks of several threads may share them, and there are never more sets of buffers than
        # tasks running at once.
        self._scratch: dict[int, list[Scratch]] = {}

    def prepared(self, batches: Sequence[Tensor], scale: float) -> list[Tensor]:
        """The batches, scaled."""
        return list(batches) if scale == 1 else [batch * scale for batch in batches]

    @torch.no_grad()
    def advance(
        self,
        task: int,
        batches: Sequence[Tensor],
        first_step: int,
        rates: Sequence[float],
        knobs: Float[Tensor, "n C"],
        with_figures: bool,
    ) -> Advanced:
        """Take one step per batch with one chunk."""
        work = _Work(batches, first_step, rates, with_figures)
        start = self.chunks[task].start
        pieces, done = list(self._pieces[task]), []
        self._pieces[task] = []
        while pieces:
            rows = pieces.pop(0)
            kept, advanced = self._advance_piece(
                rows, work, knobs[:, rows.start - start : rows.stop - start]
            )
            self._pieces[task] += kept
            done.append(advanced)
        return _joined(done)

    def _advance_piece(
        self, rows: slice, work: _Work, knobs: Float[Tensor, "n C"], first: int = 0
    ) -> tuple[list[slice], Advanced]:
        """Take the steps from `first` on; in halves if memory asks for it."""
        progress = _Progress(first)
        try:
            advanced = self._take_steps(rows, work, knobs, progress)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if rows.stop - rows.start == 1:
                raise MemoryError(
                    f"there is not enough memory on {self.device} to train even one SAE with "
                    f"d_in {self.cfgs[0].d_in} and d_sae {self.cfgs[0].d_sae} on batches of "
                    f"{work.batches[0].shape[0]}; lower train_batch_size_samples or d_sae."
                ) from error
        else:
            return [rows], advanced
        # Out of the handler, whose traceback would hold on to the tensors that were too many.
        return self._advance_halves(rows, work, knobs, progress)

    def _advance_halves(
        self, rows: slice, work: _Work, knobs: Float[Tensor, "n C"], progress: _Progress
    ) -> tuple[list[slice], Advanced]:
        n = rows.stop - rows.start
        middle = n // 2
        self._scratch.pop(n, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning(
            "%d SAEs at once do not fit in the memory of %s; going on with %d and %d of them in "
            "turn, from the same step.",
            n,
            self.device,
            middle,
            n - middle,
        )
        parts = [
            self._advance_piece(
                slice(rows.start + half.start, rows.start + half.stop),
                work,
                knobs[:, half],
                progress.n_done,
            )
            for half in (slice(0, middle), slice(middle, n))
        ]
        joined = _joined([part for _, part in parts])
        if progress.active is not None:
            joined = Advanced(progress.active + joined.n_active, joined.figures)
        return [piece for kept, _ in parts for piece in kept], joined

    def _take_steps(
        self, rows: slice, work: _Work, knobs: Float[Tensor, "n C"], progress: _Progress
    ) -> Advanced:
        scratch = self._take_scratch(rows, work.batches[0].shape[0])
        progress.active = scratch.active
        figures = None
        while progress.n_done < len(work.batches):
            i = progress.n_done
            is_measured = work.with_figures and i == len(work.batches) - 1
            figures = self._step(rows, work, i, knobs[i], scratch, is_measured)
            progress.n_done += 1
        advanced = Advanced(scratch.active.clone(), figures)
        # Another task may have run out of memory and dropped the list.
        self._scratch.setdefault(rows.stop - rows.start, []).append(scratch)
        return advanced

    def _step(
        self,
        rows: slice,
        work: _Work,
        i: int,
        knobs: Float[Tensor, " C"],
        scratch: Scratch,
        with_figures: bool,
    ) -> dict[str, Tensor] | None:
        architecture = self._architecture(rows)
        x, step = work.batches[i], work.first_step + i
        if x.shape[0] != scratch.workspace.batch_size:
            scratch.static_steps.clear()
            scratch.workspace = architecture.workspace(x.shape[0])
        dtype = torch.float64 if architecture.knob == "k" else torch.float32
        inputs = StepInputs(
            step=step,
            knob=knobs.to(dtype).unsqueeze(1),
            adam=AdamScalars.at(
                step, work.rates[i], self.options.adam_beta1, self.options.adam_beta2
            ),
        )
        if with_figures or not self._is_static:
            return take_step(
                architecture,
                self.state,
                rows,
                x,
                inputs,
                scratch,
                self.options,
                with_figures,
            )
        key = (rows.start, rows.stop)
        if key not in scratch.static_steps:
            scratch.static_steps[key] = StaticStep(
                lambda x, inputs: take_step(
                    architecture, self.state, rows, x, inputs, scratch, self.options, False
                ),
                [*(tensor[rows] for tensor in self.state.tensors().values()), scratch.active],
                (x.shape[0], x.shape[1]),
                inputs.knob,
            )
        scratch.static_steps[key](x, inputs)
        return None

    def _architecture(self, rows: slice) -> Architecture:
        key = (rows.start, rows.stop)
        if key not in self._steps:
            self._steps[key] = self.architecture(self.cfgs[rows], self.device)
        return self._steps[key]

    def _take_scratch(self, rows: slice, batch_size: int) -> Scratch:
        params = self.state.params[rows]
        spare = self._scratch.setdefault(len(params), [])
        try:
            scratch = spare.pop()
        except IndexError:  # none, or another thread took the last one
            pass
        else:
            # The padding between parameters is never written, but it is part of the norm, and an
            # SAE that diverged leaves NaN in it.
            scratch.grads.zero_()
            scratch.active.zero_()
            return scratch
        return Scratch(
            workspace=self._architecture(rows).workspace(batch_size),
            grads=torch.zeros_like(params),
            adam=torch.zeros_like(params),
            active=torch.zeros(len(params), dtype=torch.float64, device=self.device),
        )


@dataclass(frozen=True)
class _Work:
    """Some steps that a chunk is to take."""

    batches: Sequence[Tensor]
    first_step: int
    rates: Sequence[float]
    with_figures: bool


@dataclass
class _Progress:
    """How far a piece has come with its work."""

    n_done: int
    active: Float[Tensor, " C"] | None = None
    """Latents active in the steps done; None before the first buffers were had."""


def _joined(parts: Sequence[Advanced]) -> Advanced:
    """What was told of each of several pieces, as of one."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0].figures
    return Advanced(
        n_active=torch.cat([part.n_active for part in parts]),
        figures=None
        if first is None
        else {name: torch.cat([(p.figures or {})[name] for p in parts]) for name in first},
    )
