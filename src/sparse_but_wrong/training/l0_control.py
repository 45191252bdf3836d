"""Moving coefficients until L0 settles at its target.

Axes: S SAE, C SAEs of one chunk.

A coefficient does not set L0. It sets how fast latents become harder to activate: Adam moves a
threshold (JumpReLU) or an encoder bias (standard) by at most about lr a step, whatever the size of
the gradient, and L0 follows from where they are. So there are two loops, one inside the other.

The outer sets a drift of the thresholds, in units of lr per step, from how far L0 is from its aim
and how fast it moves:

    wanted = clip(GAIN · (log(L0 / aim) + LEAD · d log L0 / dt), −1, 1),

t in runs. Without the drift L0 is unstable below the true L0 of the data: as thresholds rise,
latents fire on less and resist less.

The inner moves the logarithm of the coefficient by as much as the drift falls short of what is
wanted, times a stiffness that grows while it falls short on one side and shrinks when it does on
the other: from one SAE to the next, and from one part of training to another, the drift answers a
coefficient more or less readily by orders of magnitude. Since the drift is measured, nothing winds
up while thresholds already move as fast as they can.

Above the target L0 comes down in steps, as latents stop to fire on what they need not, and these do
not come back. So the aim begins above the target and nears it over most of the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

INTERVAL = 50
"""Steps between two moves of a coefficient."""

GAIN = 8.0
"""Drift for each unit of log(L0 / aim)."""

LEAD = 0.03
"""How far the outer loop extrapolates L0, in runs."""

RATE_MEMORY = 5
"""Intervals over which the rate of L0 is smoothed."""

MARGIN, MARGIN_SHRINKS, MARGIN_GONE = 0.3, 0.2, 0.85
"""Part of the target that is aimed above it, and the parts of the run in which that shrinks."""

STIFFNESS, SOFTEST, STIFFEST = 0.3, 0.03, 0.6
"""Change of the log coefficient for each unit of drift that is missing: where it begins, and
between what it stays."""

STIFFENS, SOFTENS = 1.1, 0.7
"""Factors of the stiffness: while drift is missing on one side, and where the side changes."""

FASTEST_DOWN, FASTEST_UP = -0.5, 0.3
"""Change of the log coefficient in one interval at most."""

HELD, HELD_MEAN = 0.98, 8
"""Part of the run after which the coefficient is not moved any more, and the intervals over which
it is averaged to be held."""

START, LOWEST, HIGHEST = 0.02, 3e-4, 1.0
"""Where the search begins and its bounds, in units of the coefficient."""


class L0Controller:
    """The coefficients of a stack's SAEs that have a target L0.

    All of it is arithmetic on one SAE's own numbers, at steps that do not depend on how the stream
    is cut, and nothing is read back from the device.

    Args:
        targets: the L0 wanted of each SAE; NaN where none is.
        n_steps: of the run.
        device: where the stack is.
    """

    def __init__(self, targets: Sequence[float], n_steps: int, device: torch.device) -> None:
        self.target = torch.tensor(targets, dtype=torch.float64, device=device)
        self.n_steps = n_steps
        nowhere = torch.full_like(self.target, math.nan)
        self._has_begun = False
        self._log_unit = nowhere.clone()
        self._log_coefficient = nowhere.clone()
        self._mean_log_coefficient = nowhere.clone()
        self._level = nowhere.clone()
        self.l0 = nowhere.clone()
        """Of the last whole interval."""
        self._rate = torch.zeros_like(self.target)
        self._stiffness = torch.full_like(self.target, STIFFNESS)
        self._side = torch.zeros_like(self.target)
        self._n_active = torch.zeros_like(self.target)
        self._n_samples = torch.zeros_like(self.target)
        self._way = torch.zeros_like(self.target)

    @property
    def has_begun(self) -> bool:
        """Whether `begin` was called, here or before a checkpoint that was loaded."""
        # A GPU is waited for until it is so, and not any more.
        if not self._has_begun:
            self._has_begun = not bool((self._log_unit.isnan() & ~self.target.isnan()).any())
        return self._has_begun

    def begin(self, units: Sequence[float]) -> None:
        """Begin the search.

        Args:
            units: the order of the coefficient of each SAE at its target (`coefficient_unit`);
                NaN where it has none.
        """
        unit = torch.tensor(units, dtype=torch.float64, device=self.target.device)
        self._log_unit.copy_(unit.clamp_min(1e-12).log())
        self._log_coefficient.copy_(self._log_unit + math.log(START))
        self._mean_log_coefficient.copy_(self._log_coefficient)

    def coefficient(self, rows: slice) -> Float[Tensor, " C"]:
        """The coefficients of some SAEs now."""
        return self._log_coefficient[rows].exp()

    def note(self, row: int) -> str | None:
        """Where an SAE ended whose L0 is further from its target than 3 % or 0.25."""
        l0, target = float(self.l0[row]), float(self.target[row])
        if not abs(l0 - target) > max(0.03 * target, 0.25):
            return None
        coefficient = float(self._log_coefficient[row].exp())
        return (
            f"did not reach its target: L0 ended at {l0:.2f}, not at {target:g}, with the "
            f"coefficient at {coefficient:.3g}. Thresholds move by about lr a step, so a longer "
            "run or a larger lr may reach it; but SAEs do not stay at every L0."
        )

    def observe(
        self,
        rows: slice,
        n_steps: int,
        n_active: Float[Tensor, " C"],
        n_samples: int,
        way: float,
        level: Float[Tensor, " C"],
    ) -> None:
        """Take in some steps of some SAEs, and move the coefficients where an interval ends.

        Args:
            rows: whose steps.
            n_steps: taken so far.
            n_active: latents active, summed over the samples of these steps.
            n_samples: of these steps.
            way: the learning rates of these steps, summed.
            level: the mean threshold of each SAE, or the mean bias with its sign turned.
        """
        self._n_active[rows] += n_active
        self._n_samples[rows] += n_samples
        self._way[rows] += way
        if n_steps % INTERVAL == 0:
            self._move(rows, n_steps, level.double())

    def _move(self, rows: slice, n_steps: int, level: Float[Tensor, " C"]) -> None:
        progress = n_steps / self.n_steps
        l0 = self._n_active[rows] / self._n_samples[rows]
        # Before the first interval nothing is known of the drift.
        drift = (level - self._level[rows]) / self._way[rows].clamp_min(1e-30)
        missing = self._wanted(rows, progress, l0) - drift.nan_to_num(nan=0.0)
        for counter in (self._n_active, self._n_samples, self._way):
            counter[rows] = 0.0
        self._level[rows], self.l0[rows] = level, l0

        side = missing.sign()
        turned = side * self._side[rows] < 0
        self._side[rows] = side
        stiffness = self._stiffness[rows] * torch.where(turned, SOFTENS, STIFFENS)
        self._stiffness[rows] = stiffness.clamp_(SOFTEST, STIFFEST)

        if progress >= HELD:
            self._log_coefficient[rows] = self._mean_log_coefficient[rows]
            return
        move = (self._stiffness[rows] * missing).clamp_(FASTEST_DOWN, FASTEST_UP)
        unit = self._log_unit[rows]
        moved = (self._log_coefficient[rows] + move).clamp(
            unit + math.log(LOWEST), unit + math.log(HIGHEST)
        )
        # An SAE that diverged has no L0 to go by.
        moved = torch.where(moved.isnan(), self._log_coefficient[rows], moved)
        self._log_coefficient[rows] = moved
        self._mean_log_coefficient[rows] += (moved - self._mean_log_coefficient[rows]) / HELD_MEAN

    def _wanted(self, rows: slice, progress: float, l0: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        """The drift of the thresholds that is wanted, in units of lr per step."""
        span = MARGIN_GONE - MARGIN_SHRINKS
        margin = MARGIN * min(1.0, max(0.0, (MARGIN_GONE - progress) / span))
        log_l0 = l0.clamp_min(0.01).log()
        rate = (log_l0 - self.l0[rows].clamp_min(0.01).log()) * (self.n_steps / INTERVAL)
        self._rate[rows] += (rate.nan_to_num(nan=0.0) - self._rate[rows]) / RATE_MEMORY
        error = log_l0 - (self.target[rows] * (1 + margin)).log()
        return (GAIN * (error + LEAD * self._rate[rows])).clamp(-1.0, 1.0)

    def tensors(self) -> dict[str, Tensor]:
        """All that moves, by name."""
        names = ("log_unit", "log_coefficient", "mean_log_coefficient", "level", "rate")
        names += ("stiffness", "side", "n_active", "n_samples", "way")
        moving = {f"l0_control.{name}": getattr(self, f"_{name}") for name in names}
        return {**moving, "l0_control.l0": self.l0}
