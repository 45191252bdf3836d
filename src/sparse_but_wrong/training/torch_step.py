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
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparse_but_wrong.training.architectures.base import Architecture, Forward, Inputs
from sparse_but_wrong.training.memory import SHARD_IT, free_memory, is_out_of_memory
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stack import (
    ADAM_EPS,
    MAX_GRAD_NORM,
    Metrics,
    Stack,
    Steps,
    adam_scalars,
    dead_after,
    even_slices,
    metrics_of,
)

logger = logging.getLogger(__name__)

_WARM_UPS = 3  # PyTorch asks for a few before a capture, so that every library is set up


def is_gpu(device: torch.device) -> bool:
    """Whether launching a step costs more than the step."""
    return device.type == "cuda"


class StepInputs(NamedTuple):
    """What changes from step to step besides the batch; numbers, or tensors that are refilled."""

    step: int | Int[Tensor, ""]
    sparsity: Float[Tensor, "C 1"]
    step_size: float | Float[Tensor, ""]
    root_correction: float | Float[Tensor, ""]


class TorchStepper:
    """Steps a stack with PyTorch's operations."""

    def __init__(
        self,
        architecture: type[Architecture],
        cfgs: Sequence[Any],
        stack: Stack,
        options: TrainOptions,
    ) -> None:
        self.options = options
        self.device = stack.params.device
        self.cfg = cfgs[0]

        def chunk(rows: slice) -> _Chunk:
            return _Chunk(architecture(cfgs[rows], self.device), stack.part(rows), options)

        self.chunks = even_slices(len(cfgs), self._count_chunks(len(cfgs), chunk))
        """Rows of the stack that are stepped in one go."""
        self._chunks = [chunk(rows) for rows in self.chunks]
        self._replayed: dict[tuple[int, int], _ReplayedStep] = {}
        self._pool: Any = None

    def _count_chunks(self, n: int, chunk: Callable[[slice], _Chunk]) -> int:
        """On a GPU as few as fit in memory, by what one SAE's gradient takes."""
        if not is_gpu(self.device):
            return n
        taken = self._taken_by(chunk(slice(0, 1)))
        # A captured step keeps its buffers, and a step with metrics needs its own beside them.
        return max(1, min(n, math.ceil(2 * n * taken / max(1, free_memory(self.device)))))

    def _taken_by(self, alone: _Chunk) -> int:
        """The bytes of one SAE's gradient, all on the way to it included."""
        if self.device.type != "cuda":  # as if, in tests
            return 0
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        with self._explained_memory():
            batch_size = self.options.train_batch_size_samples
            x = torch.zeros(batch_size, self.cfg.d_in, device=self.device)
            alone.gradient(x, torch.ones(1, 1, dtype=alone.dtype, device=self.device), 0)
        return torch.cuda.max_memory_allocated(self.device) - before

    @contextmanager
    def _explained_memory(self) -> Iterator[None]:
        """Says what to do where memory runs out."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"There is not enough memory on {self.device} to train SAEs with d_in "
                f"{self.cfg.d_in} and d_sae {self.cfg.d_sae} on batches of "
                f"{self.options.train_batch_size_samples}; lower train_batch_size_samples or "
                f"d_sae, or train fewer SAEs at a time; if one alone is too large, {SHARD_IT}."
            ) from error

    def prepared(self, batches: Sequence[Tensor], scale: float) -> list[Tensor]:
        """The batches, scaled; made once for all chunks."""
        return list(batches) if scale == 1 else [batch * scale for batch in batches]

    @torch.no_grad()
    def advance(
        self, chunk: int, steps: Steps, sparsity: Float[Tensor, "n C"], with_metrics: bool
    ) -> tuple[Float[Tensor, " C"], Metrics | None]:
        """Take a step per batch, on prepared batches, with one chunk of SAEs.

        Args:
            chunk: which; different ones may run at the same time.
            steps: to take.
            sparsity: the coefficient or k of each SAE at each step, as float64.
            with_metrics: whether the last step is to be measured.
        Returns:
            The number of active latents, summed over all samples of these steps; and the metrics.
        """
        chosen = self._chunks[chunk]
        chosen.n_active.zero_()
        metrics = None
        scalars = adam_scalars(steps, self.options)
        with self._explained_memory():
            for i, x in enumerate(steps.batches):
                values = sparsity[i].to(chosen.dtype).unsqueeze(1)
                inputs = StepInputs(steps.first + i, values, *scalars[i])
                is_measured = with_metrics and i == len(steps.batches) - 1
                if is_measured or not is_gpu(self.device):
                    metrics = chosen.step(x, inputs, is_measured)
                else:
                    self._replay(chunk, x, inputs)
        return chosen.n_active.clone(), metrics

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

    def __init__(self, architecture: Architecture, rows: Stack, options: TrainOptions) -> None:
        self.architecture = architecture
        self.dtype = torch.float64 if architecture.sparsity == "k" else torch.float32
        self.rows = rows
        self.options = options
        views = rows.views(rows.params)
        self.leaves = {name: view.requires_grad_() for name, view in views.items()}
        self.n_active = torch.zeros(
            len(rows.params), dtype=torch.float64, device=views["W_dec"].device
        )

    def gradient(
        self,
        x: Float[Tensor, "B D"],
        sparsity: Float[Tensor, "C 1"],
        step: int | Int[Tensor, ""],
    ) -> tuple[Forward, Float[Tensor, "C P"]]:
        """The forward pass and the flat gradient of each SAE's own loss."""
        dead = None
        if self.architecture.uses_dead_latents:
            dead = dead_after(step, self.rows.last_fired, self.options.dead_feature_window)
        # Without a cache of weights, which a captured graph would read once and for all.
        autocast = torch.autocast(
            x.device.type, torch.bfloat16, enabled=self.options.autocast, cache_enabled=False
        )
        with torch.enable_grad(), autocast:
            inputs = Inputs(x, sparsity, dead, self.rows.buffers)
            forward = self.architecture.forward(inputs, self.leaves)
            total = torch.stack(list(forward.losses.values())).sum()
            grads = torch.autograd.grad(total, list(self.leaves.values()))
        flat = torch.zeros_like(self.rows.params)
        for (name, view), grad in zip(self.rows.views(flat).items(), grads, strict=True):
            if not (name == "W_dec" and self.rows.decoder_is_frozen):
                view.copy_(grad)
        return forward, flat

    def step(
        self, x: Float[Tensor, "B D"], inputs: StepInputs, with_metrics: bool
    ) -> Metrics | None:
        """Take one step."""
        rows = self.rows
        forward, grads = self.gradient(x, inputs.sparsity, inputs.step)
        fired = torch.gt(forward.acts, 0, out=torch.empty_like(forward.acts)).sum(1)
        has_fired, n_active = fired > 0, fired.sum(1)
        grad_norm = torch.linalg.vector_norm(grads, dim=1)
        diverges = ~torch.isfinite(grad_norm) & (rows.diverged_at < 0)
        rows.diverged_at.masked_fill_(diverges, inputs.step)
        rows.last_fired.masked_fill_(has_fired, inputs.step)
        rows.window_fired.add_(fired)
        self.n_active.add_(n_active)
        for name, values in forward.buffers.items():
            rows.buffers[name].copy_(values)
        # As `torch.nn.utils.clip_grad_norm_`, SAE by SAE.
        grads.mul_((MAX_GRAD_NORM / (grad_norm + 1e-6)).clamp_(max=1.0).unsqueeze(1))
        # As `torch.optim.Adam` (Kingma & Ba 2015, arXiv:1412.6980).
        beta1, beta2 = self.options.adam_beta1, self.options.adam_beta2
        rows.exp_avg.lerp_(grads, 1 - beta1)
        rows.exp_avg_sq.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
        scale = torch.sqrt(rows.exp_avg_sq, out=grads).div_(inputs.root_correction).add_(ADAM_EPS)
        rows.params.sub_(torch.div(rows.exp_avg, scale, out=scale).mul_(inputs.step_size))
        if not with_metrics:
            return None
        losses = {name: loss.detach() for name, loss in forward.losses.items()}
        dead = dead_after(inputs.step + 1, rows.last_fired, self.options.dead_feature_window)
        return metrics_of(losses, n_active / len(x), dead, grad_norm)


class _ReplayedStep:
    """A step whose inputs lie at fixed places, so that a GPU can replay it without being told anew.

    On a CUDA device the step is captured as a graph, and costs one launch where it was dozens; on
    any other device it is simply taken again.
    """

    def __init__(
        self, chunk: _Chunk, x: Float[Tensor, "B D"], inputs: StepInputs, pool: Any
    ) -> None:
        self._x = torch.zeros_like(x)
        number = torch.zeros((), device=x.device)
        self._inputs = StepInputs(number.long(), inputs.sparsity.clone(), number, number + 1)
        self._chunk = chunk
        self._take: Callable[[], object] = lambda: chunk.step(self._x, self._inputs, False)
        if x.device.type == "cuda":
            self._take = self._captured(self._take, pool)

    def __call__(self, x: Float[Tensor, "B D"], inputs: StepInputs) -> None:
        """Take the step; every copy is queued, none waited for."""
        self._x.copy_(x)
        for place, value in zip(self._inputs, inputs, strict=True):
            if isinstance(place, Tensor):
                place.copy_(value) if isinstance(value, Tensor) else place.fill_(value)
        self._take()

    def _captured(self, take: Callable[[], object], pool: Any) -> Callable[[], object]:
        """The graph of a step; the step itself, with a warning, where that fails."""
        state = [*self._chunk.rows.tensors().values(), self._chunk.n_active]
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
