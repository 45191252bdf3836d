"""What sets each SAE's sparsity at each step: its coefficient or its k.

Axes: S SAE, C SAEs of one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.training.controls import Control, KTransition, TargetL0
from sparse_but_wrong.training.l0_control import L0Controller


class SparsitySchedule:
    """The coefficients or ks of a stack, from step to step.

    Args:
        finals: each SAE's coefficient or k once all schedules are over: what its config says.
        warm_up_steps: steps over which a coefficient rises linearly from 0, as sae_lens' do.
        controls: what else moves it.
        n_steps: of the run.
        device: where the values are needed.
    """

    def __init__(
        self,
        finals: Sequence[float],
        warm_up_steps: Sequence[float],
        controls: Sequence[Control | None],
        n_steps: int,
        device: torch.device,
    ) -> None:
        def row(values: Sequence[float]) -> Float[Tensor, " S"]:
            return torch.tensor(values, dtype=torch.float64, device=device)

        transitions = [c if isinstance(c, KTransition) else None for c in controls]
        self.final = row(finals)
        self._initial = row(
            [t.initial_k if t else final for t, final in zip(transitions, finals, strict=True)]
        )
        # It starts at its own value, or at 0 and rises, or at initial_k and moves: all three are a
        # line from a start step on, over some steps.
        self._start = row([float(t.start_step) if t else 0.0 for t in transitions])
        self._duration = row([float(t.duration_steps) if t else 1.0 for t in transitions])
        self._warm_up = row([max(steps, 1.0) for steps in warm_up_steps])
        self._warms_up = row(warm_up_steps) > 0
        self._device = device
        targets = [c.l0 if isinstance(c, TargetL0) else math.nan for c in controls]
        self.l0_controller = (
            None
            if all(math.isnan(target) for target in targets)
            else L0Controller(targets, n_steps, device)
        )

    def between(self, rows: slice, first: int, n: int) -> Float[Tensor, "n C"]:
        """The values of some SAEs at n steps.

        For an SAE with a target L0 they are as of now, so these steps have to be the next ones.
        """
        steps = torch.arange(first, first + n, dtype=torch.float64, device=self._device)
        steps = steps.unsqueeze(1)
        risen = torch.where(
            self._warms_up[rows], (steps / self._warm_up[rows]).clamp_(max=1.0), 1.0
        )
        moved = ((steps - self._start[rows]) / self._duration[rows]).clamp_(0.0, 1.0)
        initial = self._initial[rows]
        values = risen * torch.lerp(
            initial.expand_as(moved), self.final[rows].expand_as(moved), moved
        )
        if self.l0_controller is None:
            return values
        is_free = self.l0_controller.target[rows].isnan()
        return torch.where(is_free, values, self.l0_controller.coefficient(rows))
