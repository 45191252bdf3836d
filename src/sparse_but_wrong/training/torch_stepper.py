"""The steps of a stack by PyTorch's own operations, on any device.

Axes: C SAEs of one chunk, B batch, D d_in, H d_sae, P flat parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_but_wrong.training.architectures.architecture import Architecture, Workspace
from sparse_but_wrong.training.memory import is_out_of_memory
from sparse_but_wrong.training.optimizer import AdamScalars, adam_, clip_grad_norm_per_sae_
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stack_state import StackState
from sparse_but_wrong.training.stepper import Advanced, Stepper

logger = logging.getLogger(__name__)


@dataclass
class _Scratch:
    """Buffers that a task needs for the time of its steps."""

    workspace: Workspace
    grads: Float[Tensor, "C P"]
    adam: Float[Tensor, "C P"]


@dataclass(frozen=True)
class _StepInputs:
    """What changes from step to step besides the batch."""

    step: int | Int[Tensor, ""]
    knob: Tensor
    adam: AdamScalars


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
        ends = [len(cfgs) * (i + 1) // n_chunks for i in range(n_chunks)]
        self.chunks = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        # What each chunk is stepped as: one piece, until memory runs out.
        self._pieces = [[rows] for rows in self.chunks]
        self._steps: dict[tuple[int, int], Architecture] = {}
        # Tasks return their buffers here, by the size of their piece. Append and pop are atomic, so
        # tasks of several threads may share them, and there are never more sets of buffers than
        # tasks running at once.
        self._scratch: dict[int, list[_Scratch]] = {}

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
        self, rows: slice, work: _Work, knobs: Float[Tensor, "n C"], i: int = 0
    ) -> tuple[list[slice], Advanced]:
        """Take the steps from the i-th on; in halves if memory asks for it."""
        n = rows.stop - rows.start
        active = torch.zeros(n, dtype=torch.float64, device=self.device)
        figures = None
        try:
            scratch = self._take_scratch(rows, work.batches[0].shape[0])
            while i < len(work.batches):
                is_last = i == len(work.batches) - 1
                figures = self._step(
                    rows, work, i, knobs[i], active, scratch, work.with_figures and is_last
                )
                i += 1
            self._scratch[n].append(scratch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if n == 1:
                raise MemoryError(
                    f"there is not enough memory on {self.device} to train even one SAE with "
                    f"d_in {self.cfgs[0].d_in} and d_sae {self.cfgs[0].d_sae} on batches of "
                    f"{work.batches[0].shape[0]}; lower train_batch_size_samples or d_sae."
                ) from error
        else:
            return [rows], Advanced(active, figures)
        # Out of the handler, whose traceback would hold on to the tensors that were too many.
        del figures
        self._scratch.pop(n, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = n // 2
        logger.warning(
            "%d SAEs at once do not fit in the memory of %s; going on with %d and %d of them in "
            "turn, at the same step.",
            n,
            self.device,
            middle,
            n - middle,
        )
        parts = [
            self._advance_piece(
                slice(rows.start + half.start, rows.start + half.stop), work, knobs[:, half], i
            )
            for half in (slice(0, middle), slice(middle, n))
        ]
        joined = _joined([part for _, part in parts])
        return (
            [rows for kept, _ in parts for rows in kept],
            Advanced(active + joined.n_active, joined.figures),
        )

    def _step(
        self,
        rows: slice,
        work: _Work,
        i: int,
        knobs: Float[Tensor, " C"],
        active: Float[Tensor, " C"],
        scratch: _Scratch,
        with_figures: bool,
    ) -> dict[str, Tensor] | None:
        """One step; nothing is changed before all memory that it needs has been had."""
        architecture = self._architecture(rows)
        x, step = work.batches[i], work.first_step + i
        if x.shape[0] != scratch.workspace.batch_size:
            scratch.workspace = architecture.workspace(x.shape[0])
        dtype = torch.float64 if architecture.knob == "k" else torch.float32
        inputs = _StepInputs(
            step=step,
            knob=knobs.to(dtype).unsqueeze(1),
            adam=AdamScalars.at(
                step, work.rates[i], self.options.adam_beta1, self.options.adam_beta2
            ),
        )
        return take_step(
            architecture, self.state, rows, x, inputs, scratch, active, self.options, with_figures
        )

    def _architecture(self, rows: slice) -> Architecture:
        key = (rows.start, rows.stop)
        if key not in self._steps:
            self._steps[key] = self.architecture(self.cfgs[rows], self.device)
        return self._steps[key]

    def _take_scratch(self, rows: slice, batch_size: int) -> _Scratch:
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
            return scratch
        return _Scratch(
            workspace=self._architecture(rows).workspace(batch_size),
            grads=torch.zeros_like(params),
            adam=torch.zeros_like(params),
        )


@dataclass(frozen=True)
class _Work:
    """Some steps that a chunk is to take."""

    batches: Sequence[Tensor]
    first_step: int
    rates: Sequence[float]
    with_figures: bool


def take_step(
    architecture: Architecture,
    state: StackState,
    rows: slice,
    x: Float[Tensor, "B D"],
    inputs: _StepInputs,
    scratch: _Scratch,
    active: Float[Tensor, " C"],
    options: TrainOptions,
    with_figures: bool,
) -> dict[str, Float[Tensor, " C"]] | None:
    """One step of some rows of a stack, with no look at the device."""
    params = state.params[rows]
    param_views = state.layout.views(params)
    grad_views = state.layout.views(scratch.grads)
    buffers = {name: values[rows] for name, values in state.buffers.items()}
    moved = {name: values.clone() for name, values in buffers.items()}
    last_fired = state.last_fired[rows]

    dead = None
    if with_figures or architecture.uses_dead_latents:
        dead = dead_after(inputs.step, last_fired, options.dead_feature_window)
    fired = architecture.step(
        x, param_views, moved, grad_views, inputs.knob, dead, scratch.workspace
    )
    losses = None
    if with_figures:
        losses = architecture.losses(x, param_views, inputs.knob, dead, scratch.workspace)
    has_fired = fired > 0
    n_active = fired.sum(1)
    grad_norm = clip_grad_norm_per_sae_(scratch.grads, scale=2 / x.shape[0]).squeeze(1)
    diverged_at = state.diverged_at[rows]
    newly = ~torch.isfinite(grad_norm) & (diverged_at < 0)

    # From here on only what exists is changed.
    diverged_at.masked_fill_(newly, inputs.step)
    last_fired.masked_fill_(has_fired, inputs.step)
    state.window_fired[rows].add_(fired)
    active.add_(n_active)
    for name, values in buffers.items():
        values.copy_(moved[name])
    adam_(
        params,
        state.exp_avg[rows],
        state.exp_avg_sq[rows],
        scratch.grads,
        scratch.adam,
        inputs.adam,
        options.adam_beta1,
        options.adam_beta2,
    )
    if losses is None:
        return None
    return {
        "loss": torch.stack(list(losses.values())).sum(0),
        **losses,
        "l0": n_active / x.shape[0],
        "dead_latents": dead_after(inputs.step + 1, last_fired, options.dead_feature_window).sum(1),
        "grad_norm": grad_norm,
    }


def dead_after(
    n_steps: int | Int[Tensor, ""], last_fired: Int[Tensor, "C H"], window: int
) -> Bool[Tensor, "C H"]:
    """Latents that have not fired for longer than the window, once n_steps have been taken."""
    return last_fired < n_steps - 1 - window


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
