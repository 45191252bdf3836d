"""A step whose inputs lie at fixed places, so that a GPU can replay it without being told anew.

Axes: C SAEs of one chunk, B batch, D d_in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.training.optimizer import AdamScalars
from sparse_but_wrong.training.step import StepInputs

logger = logging.getLogger(__name__)

_WARM_UPS = 3  # PyTorch asks for a few before a capture, so that every library is set up


class StaticStep:
    """Replays one step of a chunk on inputs that are copied to where the first one found them.

    On a CUDA device the step is captured as a graph, and costs one launch where it was dozens; on
    any other device it is simply taken again.

    Args:
        step: takes a step on a batch with inputs, changing `state` in place.
        state: all tensors that a step changes.
        shape: [B, D] of the batches.
        knob: one to learn shape and dtype from.
    """

    def __init__(
        self,
        step: Callable[[Tensor, StepInputs], object],
        state: list[Tensor],
        shape: tuple[int, int],
        knob: Float[Tensor, "C 1"],
    ) -> None:
        device = knob.device
        self._x = torch.zeros(shape, device=device)
        self._knob = knob.clone()
        self._step_number = torch.zeros((), dtype=torch.int64, device=device)
        self._step_size = torch.zeros((), device=device)
        self._root_correction = torch.ones((), device=device)
        inputs = StepInputs(
            step=self._step_number,
            knob=self._knob,
            adam=AdamScalars(self._step_size, self._root_correction),
        )
        self._take: Callable[[], object] = lambda: step(self._x, inputs)
        if device.type == "cuda":
            self._take = _captured(self._take, state)

    def __call__(self, x: Float[Tensor, "B D"], inputs: StepInputs) -> None:
        """Take the step; every copy is queued, none waited for."""
        self._x.copy_(x)
        self._knob.copy_(inputs.knob)
        self._step_number.fill_(inputs.step)
        self._step_size.fill_(inputs.adam.step_size)
        self._root_correction.fill_(inputs.adam.root_correction)
        self._take()


def _captured(take: Callable[[], object], state: list[Tensor]) -> Callable[[], object]:
    """The graph of a step; the step itself, and a word about it, where it cannot be captured."""
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
        with torch.cuda.graph(graph):
            take()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        logger.warning(
            "the training step could not be captured as a CUDA graph (%s); it is launched piece by "
            "piece, to the same end but slower.",
            str(error).splitlines()[0],
        )
        return take
    return graph.replay
