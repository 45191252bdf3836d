"""The steps of a stack by PyTorch's operations under autograd, on any device.

Axes: C SAEs of one chunk, B batch, D d_in, H d_sae, P flat parameters.

On the CPU each SAE is a chunk of its own, so that its last bits cannot depend on its neighbours. On
a GPU the whole stack is one chunk if it fits in memory, and the loss is summed over its SAEs: none
of them reaches another's gradient. Steps are replayed there as a CUDA graph.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_but_wrong.training.architectures.base import Architecture, Forward, Inputs
from sparse_but_wrong.training.memory import free_memory, is_out_of_memory
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stack import StackState
from sparse_but_wrong.training.stepper import (
    ADAM_EPS,
    MAX_GRAD_NORM,
    Stepper,
    StepResult,
    Steps,
    adam_scalars,
    dead_after,
    even_slices,
)

logger = logging.getLogger(__name__)

_WARM_UPS = 3  # PyTorch asks for a few before a capture, so that every library is set up


def is_gpu(device: torch.device) -> bool:
    """Whether launching a step costs more than the step."""
    return device.type == "cuda"


@dataclass(frozen=True)
class StepInputs:
    """What changes from step to step besides the batch; numbers, or tensors that are refilled."""

    step: int | Int[Tensor, ""]
    sparsity: Float[Tensor, "C 1"]
    step_size: float | Float[Tensor, ""]
    root_correction: float | Float[Tensor, ""]


class TorchStepper(Stepper):
    """Steps a stack with PyTorch's operations."""

    def __init__(
        self,
        architecture: type[Architecture],
        cfgs: Sequence[Any],
        state: StackState,
        options: TrainOptions,
    ) -> None:
        self.state = state
        self.options = options
        self.device = state.params.device
        self._architecture = architecture
        self._cfgs = cfgs
        self.chunks = even_slices(len(cfgs), self._count_chunks())
        self._chunks = [_Chunk(architecture, cfgs, state, rows, options) for rows in self.chunks]
        self._replayed: dict[tuple[int, int], _ReplayedStep] = {}
        self._pool: Any = None

    def _count_chunks(self) -> int:
        """On a GPU as few as fit in memory, by what one SAE's gradient takes."""
        n = len(self._cfgs)
        if not is_gpu(self.device):
            return n
        if self.device.type != "cuda":  # as if, in tests
            return 1
        options = self.options
        alone = _Chunk(self._architecture, self._cfgs, self.state, slice(0, 1), options)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        with self._explained_memory():
            x = torch.zeros(
                options.train_batch_size_samples, self._cfgs[0].d_in, device=self.device
            )
            alone.gradient(x, torch.ones(1, 1, dtype=alone.dtype, device=self.device), 0)
        taken = torch.cuda.max_memory_allocated(self.device) - before
        # A captured step keeps its buffers, and a step with metrics needs its own beside them.
        return min(n, math.ceil(2 * n * taken / max(1, free_memory(self.device))))

    @contextmanager
    def _explained_memory(self) -> Iterator[None]:
        """Says what to do where memory runs out."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            cfg = self._cfgs[0]
            raise MemoryError(
                f"There is not enough memory on {self.device} to train SAEs with d_in {cfg.d_in} "
                f"and d_sae {cfg.d_sae} on batches of {self.options.train_batch_size_samples}; "
                "lower train_batch_size_samples or d_sae, or train fewer SAEs at a time."
            ) from error

    def prepared(self, batches: Sequence[Tensor], scale: float) -> list[Tensor]:
        """The batches, scaled."""
        return list(batches) if scale == 1 else [batch * scale for batch in batches]

    @torch.no_grad()
    def advance(
        self, chunk: int, steps: Steps, sparsity: Float[Tensor, "n C"], with_metrics: bool
    ) -> StepResult:
        """Take a step per batch with one chunk."""
        chosen = self._chunks[chunk]
        chosen.n_active.zero_()
        metrics = None
        betas = (self.options.adam_beta1, self.options.adam_beta2)
        with self._explained_memory():
            for i, x in enumerate(steps.batches):
                values = sparsity[i].to(chosen.dtype).unsqueeze(1)
                scalars = adam_scalars(steps.first + i, steps.rates[i], *betas)
                inputs = StepInputs(steps.first + i, values, *scalars)
                is_measured = with_metrics and i == len(steps.batches) - 1
                if is_measured or not is_gpu(self.device):
                    metrics = chosen.step(x, inputs, is_measured)
                else:
                    self._replay(chunk, x, inputs)
        return StepResult(chosen.n_active.clone(), metrics)

    def _replay(self, chunk: int, x: Float[Tensor, "B D"], inputs: StepInputs) -> None:
        key = (chunk, len(x))
        if key not in self._replayed:
            # Batches of another size need other buffers; those of before would take the memory.
            self._replayed = {k: v for k, v in self._replayed.items() if k[1] == len(x)}
            if self._pool is None and self.device.type == "cuda":
                self._pool = torch.cuda.graph_pool_handle()
            self._replayed[key] = _ReplayedStep(self._chunks[chunk], x, inputs, self._pool)
        self._replayed[key](x, inputs)


class _Chunk:
    """Some rows of a stack, as one."""

    def __init__(
        self,
        architecture: type[Architecture],
        cfgs: Sequence[Any],
        state: StackState,
        rows: slice,
        options: TrainOptions,
    ) -> None:
        self.architecture = architecture(cfgs[rows], state.params.device)
        self.dtype = torch.float64 if architecture.sparsity == "k" else torch.float32
        self.layout = state.layout
        self.options = options
        # `.data`, because autograd counts the changes of a tensor and of all its views together,
        # and other chunks change theirs while this one is between forward and backward.
        self.params = state.params.data[rows]
        self.leaves = {
            name: view.requires_grad_() for name, view in state.layout.views(self.params).items()
        }
        self.exp_avg, self.exp_avg_sq = state.exp_avg[rows], state.exp_avg_sq[rows]
        self.last_fired, self.window_fired = state.last_fired[rows], state.window_fired[rows]
        self.diverged_at = state.diverged_at[rows]
        self.buffers = {name: values[rows] for name, values in state.buffers.items()}
        self.n_active = torch.zeros(
            len(self.params), dtype=torch.float64, device=state.params.device
        )

    def tensors(self) -> list[Tensor]:
        """All that a step changes."""
        return [
            *(self.params, self.exp_avg, self.exp_avg_sq, self.last_fired, self.window_fired),
            *(self.diverged_at, self.n_active, *self.buffers.values()),
        ]

    def gradient(
        self,
        x: Float[Tensor, "B D"],
        sparsity: Float[Tensor, "C 1"],
        step: int | Int[Tensor, ""],
    ) -> tuple[Forward, Float[Tensor, "C P"]]:
        """The forward pass and the flat gradient of each SAE's own loss."""
        dead = None
        if self.architecture.uses_dead_latents:
            dead = dead_after(step, self.last_fired, self.options.dead_feature_window)
        with torch.enable_grad():
            inputs = Inputs(x, sparsity, dead, self.buffers)
            forward = self.architecture.forward(inputs, self.leaves)
            total = torch.stack(list(forward.losses.values())).sum()
            grads = torch.autograd.grad(total, list(self.leaves.values()))
        flat = torch.zeros_like(self.params)
        for view, grad in zip(self.layout.views(flat).values(), grads, strict=True):
            view.copy_(grad)
        return forward, flat

    def step(
        self, x: Float[Tensor, "B D"], inputs: StepInputs, with_metrics: bool
    ) -> dict[str, Float[Tensor, " C"]] | None:
        """Take one step; the metrics by name, if asked for."""
        forward, grads = self.gradient(x, inputs.sparsity, inputs.step)
        fired = torch.gt(forward.acts, 0, out=torch.empty_like(forward.acts)).sum(1)
        has_fired, n_active = fired > 0, fired.sum(1)
        grad_norm = torch.linalg.vector_norm(grads, dim=1)
        diverges = ~torch.isfinite(grad_norm) & (self.diverged_at < 0)
        self.diverged_at.masked_fill_(diverges, inputs.step)
        self.last_fired.masked_fill_(has_fired, inputs.step)
        self.window_fired.add_(fired)
        self.n_active.add_(n_active)
        for name, values in forward.buffers.items():
            self.buffers[name].copy_(values)
        # As `torch.nn.utils.clip_grad_norm_`, SAE by SAE.
        grads.mul_((MAX_GRAD_NORM / (grad_norm + 1e-6)).clamp_(max=1.0).unsqueeze(1))
        self.adam(grads, inputs)
        if not with_metrics:
            return None
        losses = {name: loss.detach() for name, loss in forward.losses.items()}
        dead = dead_after(inputs.step + 1, self.last_fired, self.options.dead_feature_window)
        return {
            "loss": torch.stack(list(losses.values())).sum(0),
            **losses,
            "l0": n_active / len(x),
            "dead_latents": dead.sum(1),
            "grad_norm": grad_norm,
        }

    def adam(self, grads: Float[Tensor, "C P"], inputs: StepInputs) -> None:
        """The step that `torch.optim.Adam` would take (Kingma & Ba 2015, arXiv:1412.6980)."""
        beta1, beta2 = self.options.adam_beta1, self.options.adam_beta2
        self.exp_avg.lerp_(grads, 1 - beta1)
        self.exp_avg_sq.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
        scale = torch.sqrt(self.exp_avg_sq, out=grads).div_(inputs.root_correction).add_(ADAM_EPS)
        self.params.sub_(torch.div(self.exp_avg, scale, out=scale).mul_(inputs.step_size))


class _ReplayedStep:
    """A step whose inputs lie at fixed places, so that a GPU can replay it without being told anew.

    On a CUDA device the step is captured as a graph, and costs one launch where it was dozens; on
    any other device it is simply taken again.
    """

    def __init__(
        self, chunk: _Chunk, x: Float[Tensor, "B D"], inputs: StepInputs, pool: Any
    ) -> None:
        device = x.device
        self._x = torch.zeros_like(x)
        self._inputs = StepInputs(
            step=torch.zeros((), dtype=torch.int64, device=device),
            sparsity=inputs.sparsity.clone(),
            step_size=torch.zeros((), device=device),
            root_correction=torch.ones((), device=device),
        )
        self._chunk = chunk
        self._take: Callable[[], object] = lambda: chunk.step(self._x, self._inputs, False)
        if device.type == "cuda":
            self._take = self._captured(self._take, pool)

    def __call__(self, x: Float[Tensor, "B D"], inputs: StepInputs) -> None:
        """Take the step; every copy is queued, none waited for."""
        self._x.copy_(x)
        for name, place in vars(self._inputs).items():
            value = getattr(inputs, name)
            place.copy_(value) if isinstance(value, Tensor) else place.fill_(value)
        self._take()

    def _captured(self, take: Callable[[], object], pool: Any) -> Callable[[], object]:
        """The graph of a step; the step itself, with a warning, where that fails."""
        state = self._chunk.tensors()
        before = [tensor.clone() for tensor in state]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    take()
        finally:
            torch.cuda.current_stream().wait_stream(aside)
            # The warm-ups were steps on a batch of zeros.
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):
                take()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning(
                "Could not capture the training step as a CUDA graph (%s); launching it piece by "
                "piece instead (same results, slower).",
                str(error).splitlines()[0],
            )
            return take
        return graph.replay
