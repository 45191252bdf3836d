"""What sets each SAE's sparsity at each step: a schedule, or a search for its target L0.

Axes: S SAE, C SAEs of one chunk.

A coefficient does not set L0. It sets how fast latents become harder to activate: Adam moves a
threshold (JumpReLU) or an encoder bias (standard) by at most about lr a step, whatever the size of
the gradient, and L0 follows from where they are. So the search has two loops, one inside the other.

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

from sparse_but_wrong.training.controls import Control, KTransition, TargetL0

INTERVAL = 50
"""Steps between two moves of a coefficient."""

GAIN, LEAD, RATE_MEMORY = 8.0, 0.03, 5
"""Drift for each unit of log(L0 / aim), how far the outer loop extrapolates L0, in runs, and the
intervals over which the rate of L0 is smoothed."""

MARGIN, MARGIN_SHRINKS, MARGIN_GONE = 0.3, 0.2, 0.85
"""Part of the target that is aimed above it, and the parts of the run in which that shrinks."""

STIFFNESS, SOFTEST, STIFFEST, STIFFENS, SOFTENS = 0.3, 0.03, 0.6, 1.1, 0.7
"""Change of the log coefficient for each unit of drift that is missing: where it begins, between
what it stays, and its factors while drift is missing on one side and where the side changes."""

FASTEST_DOWN, FASTEST_UP = -0.5, 0.3
"""Change of the log coefficient in one interval at most."""

HELD, HELD_MEAN = 0.98, 8
"""Part of the run after which the coefficient is not moved any more, and the intervals over which
it is averaged to be held."""

START, LOWEST, HIGHEST = 0.02, 3e-4, 1.0
"""Where the search begins and its bounds, in units of the coefficient."""


class SparsitySchedule:
    """The coefficients or ks of a stack, from step to step.

    `settings` are each SAE's coefficient or k once all schedules are over, and the steps over which
    a coefficient rises linearly from 0: what its config says. `controls` are what else moves it.
    """

    def __init__(
        self,
        settings: Sequence[tuple[float, float]],
        controls: Sequence[Control | None],
        n_steps: int,
        device: torch.device,
    ) -> None:
        lines = []
        for (final, warm_up), control in zip(settings, controls, strict=True):
            moves = isinstance(control, KTransition)
            initial_k = control.initial_k if moves else final
            start, duration = (control.start_step, control.duration_steps) if moves else (0, 1)
            lines.append((final, initial_k, start, duration, warm_up))
        # Every SAE follows a line from a start step on, over some steps, times its warm-up.
        self._lines = torch.tensor(lines, dtype=torch.float64, device=device).T.contiguous()
        targets = [c.l0 if isinstance(c, TargetL0) else math.nan for c in controls]
        has_targets = not all(math.isnan(target) for target in targets)
        self.l0_controller = L0Controller(targets, n_steps, device) if has_targets else None

    def between(self, rows: slice, first: int, n: int) -> Float[Tensor, "n C"]:
        """The values of some SAEs at n steps.

        For an SAE with a target L0 they are as of now, so these steps have to be the next ones.
        """
        final, initial, start, duration, warm_up = self._lines[:, rows]
        steps = torch.arange(first, first + n, dtype=torch.float64, device=final.device)
        steps = steps.unsqueeze(1)
        # 0/0 is the first step of an SAE without a warm-up.
        risen = (steps / warm_up).nan_to_num_(nan=1.0).clamp_(max=1.0)
        moved = ((steps - start) / duration).clamp_(0.0, 1.0)
        values = risen * torch.lerp(initial.expand_as(moved), final.expand_as(moved), moved)
        if self.l0_controller is None:
            return values
        is_free = self.l0_controller.target[rows].isnan()
        return torch.where(is_free, values, self.l0_controller.coefficient(rows))


class L0Controller:
    """The coefficients of a stack's SAEs that have a target L0.

    All of it is arithmetic on one SAE's own numbers, at steps that do not depend on how the stream
    is cut, and nothing is read back from the device. `targets` are NaN where there is none.
    """

    def __init__(self, targets: Sequence[float], n_steps: int, device: torch.device) -> None:
        self.target = torch.tensor(targets, dtype=torch.float64, device=device)
        self.n_steps = n_steps
        self._has_begun = False
        unknown = ("log_unit", "log_coefficient", "mean_log_coefficient", "level", "l0")
        start: dict[str, float] = dict.fromkeys(unknown, math.nan)
        start |= dict.fromkeys(("rate", "side", "n_active", "n_samples", "way"), 0.0)
        start["stiffness"] = STIFFNESS
        # l0: of the last whole interval
        self._moving = {name: torch.full_like(self.target, x) for name, x in start.items()}

    @property
    def has_begun(self) -> bool:
        """Whether `begin` was called, here or before a checkpoint that was loaded."""
        # A GPU is waited for until it is so, and not any more.
        if not self._has_begun:
            has_unit = ~self._moving["log_unit"].isnan()
            self._has_begun = bool((has_unit | self.target.isnan()).all())
        return self._has_begun

    def begin(self, units: Float[Tensor, " S"]) -> None:
        """Begin the search, in each `coefficient_unit`; NaN where there is no target."""
        log_unit = units.clamp_min(1e-12).log()
        self._moving["log_unit"].copy_(log_unit)
        for name in ("log_coefficient", "mean_log_coefficient"):
            self._moving[name].copy_(log_unit + math.log(START))

    def coefficient(self, rows: slice) -> Float[Tensor, " C"]:
        """The coefficients of some SAEs now."""
        return self._moving["log_coefficient"][rows].exp()

    def note(self, row: int) -> str | None:
        """Where an SAE ended whose L0 is further from its target than 3 % or 0.25."""
        l0, target = float(self._moving["l0"][row]), float(self.target[row])
        if not abs(l0 - target) > max(0.03 * target, 0.25):
            return None
        coefficient = float(self._moving["log_coefficient"][row].exp())
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
        now = {name: values[rows] for name, values in self._moving.items()}
        now["n_active"] += n_active
        now["n_samples"] += n_samples
        now["way"] += way
        if n_steps % INTERVAL != 0:
            return
        level, progress = level.double(), n_steps / self.n_steps
        l0 = now["n_active"] / now["n_samples"]
        # Before the first interval nothing is known of the drift.
        drift = (level - now["level"]) / now["way"].clamp_min(1e-30)
        missing = self._wanted(now, self.target[rows], progress, l0) - drift.nan_to_num(nan=0.0)
        for name in ("n_active", "n_samples", "way"):
            now[name].zero_()
        now["level"].copy_(level)
        now["l0"].copy_(l0)

        side = missing.sign()
        turned = side * now["side"] < 0
        now["side"].copy_(side)
        now["stiffness"].mul_(torch.where(turned, SOFTENS, STIFFENS)).clamp_(SOFTEST, STIFFEST)

        if progress >= HELD:
            now["log_coefficient"].copy_(now["mean_log_coefficient"])
            return
        move = (now["stiffness"] * missing).clamp_(FASTEST_DOWN, FASTEST_UP)
        bounds = (now["log_unit"] + math.log(bound) for bound in (LOWEST, HIGHEST))
        moved = (now["log_coefficient"] + move).clamp(*bounds)
        # An SAE that diverged has no L0 to go by.
        moved = torch.where(moved.isnan(), now["log_coefficient"], moved)
        now["log_coefficient"].copy_(moved)
        now["mean_log_coefficient"] += (moved - now["mean_log_coefficient"]) / HELD_MEAN

    def _wanted(
        self, now: dict[str, Tensor], target: Tensor, progress: float, l0: Float[Tensor, " C"]
    ) -> Float[Tensor, " C"]:
        """The drift of the thresholds that is wanted, in units of lr per step."""
        span = MARGIN_GONE - MARGIN_SHRINKS
        margin = MARGIN * min(1.0, max(0.0, (MARGIN_GONE - progress) / span))
        log_l0 = l0.clamp_min(0.01).log()
        rate = (log_l0 - now["l0"].clamp_min(0.01).log()) * (self.n_steps / INTERVAL)
        now["rate"] += (rate.nan_to_num(nan=0.0) - now["rate"]) / RATE_MEMORY
        error = log_l0 - (target * (1 + margin)).log()
        return (GAIN * (error + LEAD * now["rate"])).clamp(-1.0, 1.0)

    def tensors(self) -> dict[str, Tensor]:
        """All that moves, by name."""
        return {f"l0_control.{name}": values for name, values in self._moving.items()}
