"""Moving coefficients until L0 settles where it is wanted.

Axes: S SAE, C SAEs of one chunk.

A coefficient does not set L0. It sets how fast latents become harder to activate: Adam moves a
threshold (JumpReLU) or an encoder bias (standard) by at most about lr a step, whatever the size of
the gradient, and L0 follows from where they are. So there are two loops, one inside the other.
The outer asks for a drift of the thresholds that is proportional to how far L0 is from its target,

    wanted = clip(GAIN · log(L0 / target), −1, 1)        in units of lr per step,

and the inner moves the logarithm of the coefficient by as much as the drift falls short of it.
Since the drift is measured, nothing winds up while the thresholds already move as fast as they can.
Without the outer loop L0 is unstable below the true L0 of the data: as thresholds rise, latents
fire on less and resist less.

Above the target L0 comes down in steps, as latents stop to fire on what they need not, and these do
not come back. So the aim lies above the target until features have formed, and then nears it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

INTERVAL = 50
"""Steps between two moves of a coefficient."""

GAIN = 4.0
"""Drift wanted for each unit of log(L0 / target)."""

STIFFNESS = 0.3
"""Change of the log coefficient for each unit of drift that is missing."""

MARGIN, MARGIN_SHRINKS, MARGIN_GONE = 0.35, 0.3, 0.7
"""Part of the target that is aimed above it, and the parts of the run in which that shrinks."""

HELD = 0.98
"""Part of the run after which no coefficient is moved any more, settled or not."""

SETTLED, LEFT = 0.01, 0.02
"""Relative error of an L0 that has settled, and beyond which it is taken up again."""

CALM = 10
"""Intervals that L0 has to be near its target before it counts as settled."""

START, LOWEST, HIGHEST = 0.05, 1e-4, 50.0
"""Of the config's coefficient: where the search begins, and between what it stays."""


class L0Controller:
    """The coefficients of a stack's SAEs that have a target L0.

    All of it is arithmetic on one SAE's own numbers, at steps that do not depend on how the stream
    is cut, and nothing is read back from the device.

    Args:
        targets: the L0 wanted of each SAE; NaN where none is.
        finals: the coefficient of each SAE's config.
        n_steps: of the run.
        device: where the stack is.
    """

    def __init__(
        self,
        targets: Sequence[float],
        finals: Sequence[float],
        n_steps: int,
        device: torch.device,
    ) -> None:
        self.target = torch.tensor(targets, dtype=torch.float64, device=device)
        self.n_steps = n_steps
        start = torch.tensor(finals, dtype=torch.float64, device=device).clamp_min(1e-12).log()
        self._lowest, self._highest = start + math.log(LOWEST), start + math.log(HIGHEST)
        self._log_coefficient = start + math.log(START)
        nowhere = torch.full_like(self.target, math.nan)
        self._level = nowhere.clone()
        self.l0 = nowhere.clone()
        """Of the last whole interval."""
        self._n_active = torch.zeros_like(self.target)
        self._n_samples = torch.zeros_like(self.target)
        self._way = torch.zeros_like(self.target)
        self._calm = torch.zeros_like(self.target)

    def coefficient(self, rows: slice) -> Float[Tensor, " C"]:
        """The coefficients of some SAEs now."""
        return self._log_coefficient[rows].exp()

    @property
    def missed(self) -> Bool[Tensor, " S"]:
        """Whose L0 is further from its target than 3 % or 0.25, whichever is larger."""
        return (self.l0 - self.target).abs() > (0.03 * self.target).clamp_min(0.25)

    def observe(
        self,
        rows: slice,
        n_steps: int,
        n_active: Float[Tensor, " C"],
        n_samples: int,
        way: float,
        level: Float[Tensor, " C"],
    ) -> None:
        """Take in some steps, and move the coefficients where an interval ends.

        Args:
            rows: whose steps.
            n_steps: taken so far.
            n_active: latents active, summed over the samples of these steps.
            n_samples: of these steps.
            way: the learning rates of these steps, summed.
            level: how hard it is to activate a latent, on average over an SAE's latents: the mean
                threshold, or the mean bias with its sign turned.
        """
        self._n_active[rows] += n_active
        self._n_samples[rows] += n_samples
        self._way[rows] += way
        if n_steps % INTERVAL == 0:
            self._move(rows, n_steps / self.n_steps, level.double())

    def _move(self, rows: slice, progress: float, level: Float[Tensor, " C"]) -> None:
        l0 = self._n_active[rows] / self._n_samples[rows]
        # Before the first interval nothing is known of the drift.
        drift = (level - self._level[rows]) / self._way[rows].clamp_min(1e-30)
        drift = drift.nan_to_num(nan=0.0)
        for counter in (self._n_active, self._n_samples, self._way):
            counter[rows] = 0.0
        self._level[rows], self.l0[rows] = level, l0

        shrunk = (MARGIN_GONE - progress) / (MARGIN_GONE - MARGIN_SHRINKS)
        aim = self.target[rows] * (1 + MARGIN * min(1.0, max(0.0, shrunk)))
        error = (l0.clamp_min(0.01) / aim).log()
        wanted = (GAIN * error).clamp(-1.0, 1.0)
        move = (STIFFNESS * (wanted - drift)).clamp(-0.5, 0.3)

        is_near = error.abs() < torch.where(self._calm[rows] >= CALM, LEFT, SETTLED)
        counts = is_near & torch.tensor(progress >= MARGIN_GONE, device=level.device)
        self._calm[rows] = torch.where(counts, self._calm[rows] + 1, 0.0)
        is_held = (self._calm[rows] >= CALM) | torch.tensor(progress >= HELD, device=level.device)
        moved = (self._log_coefficient[rows] + move).clamp(self._lowest[rows], self._highest[rows])
        # An SAE that diverged has no L0 to go by.
        keep = is_held | moved.isnan()
        self._log_coefficient[rows] = torch.where(keep, self._log_coefficient[rows], moved)

    def tensors(self) -> dict[str, Tensor]:
        """All that moves, by name."""
        return {
            "l0_control.log_coefficient": self._log_coefficient,
            "l0_control.level": self._level,
            "l0_control.l0": self.l0,
            "l0_control.n_active": self._n_active,
            "l0_control.n_samples": self._n_samples,
            "l0_control.way": self._way,
            "l0_control.calm": self._calm,
        }
