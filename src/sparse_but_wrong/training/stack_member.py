"""A stack of SAEs of one architecture and shape, stepped by the engine.

Axes: S SAE, C SAEs of one chunk, B batch, D d_in.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong import sae_lens_compat
from sparse_but_wrong.training.architectures.architecture import Architecture
from sparse_but_wrong.training.architectures.jumprelu import JumpReLU
from sparse_but_wrong.training.controls import Control, KTransition
from sparse_but_wrong.training.l0_control import INTERVAL, L0Controller
from sparse_but_wrong.training.log import SAELog
from sparse_but_wrong.training.mean_norm import MeanNorm
from sparse_but_wrong.training.member import Member
from sparse_but_wrong.training.native import bindings
from sparse_but_wrong.training.native.translate import translate
from sparse_but_wrong.training.native_stepper import NativeStepper
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.reinitialize import is_due, reinitialize_dead
from sparse_but_wrong.training.saturation import threshold_state
from sparse_but_wrong.training.schedules import Knobs
from sparse_but_wrong.training.stack import ParameterLayout, stack_parameters, unstack_parameters
from sparse_but_wrong.training.stack_state import StackState
from sparse_but_wrong.training.step import dead_after
from sparse_but_wrong.training.stepper import Stepper
from sparse_but_wrong.training.torch_stepper import TorchStepper

if TYPE_CHECKING:
    import sae_lens


@dataclass(frozen=True)
class _LogEntry:
    """A row of the log of some SAEs that may still be on the device."""

    rows: slice
    step: int
    lr: float
    names: list[str]
    table: Float[Tensor, "names C"]


class StackMember(Member):
    """SAEs of one architecture and shape, stepped by the engine."""

    def __init__(
        self,
        saes: Sequence[sae_lens.TrainingSAE[Any]],
        architecture: type[Architecture],
        options: TrainOptions,
        controls: Sequence[Control | None],
        n_chunks: int,
    ) -> None:
        self.saes = saes
        self.controls = controls
        self.options = options
        self.architecture = architecture
        cfg = saes[0].cfg
        self.device = saes[0].W_dec.device
        self.d_in = cfg.d_in
        self.logs = [SAELog(trained_by="engine") for _ in saes]
        self._unread: deque[_LogEntry] = deque()

        layout = ParameterLayout(architecture.parameter_shapes(cfg.d_in, cfg.d_sae))
        params = stack_parameters(saes, layout)
        n = len(saes)
        self.stack = StackState(
            layout=layout,
            params=params,
            exp_avg=torch.zeros_like(params),
            exp_avg_sq=torch.zeros_like(params),
            buffers={
                name: torch.stack([getattr(sae, name).detach().to(dtype) for sae in saes])
                for name, dtype in architecture.buffers.items()
            },
            last_fired=torch.full((n, cfg.d_sae), -1, dtype=torch.int64, device=self.device),
            window_fired=torch.zeros(n, cfg.d_sae, device=self.device),
            diverged_at=torch.full((n,), -1, dtype=torch.int64, device=self.device),
        )
        knobs = [sae_lens_compat.knob(sae, architecture.knob) for sae in saes]
        self.knobs = Knobs(
            [value for value, _ in knobs],
            [steps for _, steps in knobs],
            controls,
            options.n_steps,
            self.device,
        )
        self.stepper = self._make_stepper(n_chunks)
        self.n_tasks = len(self.stepper.chunks)
        self.step = "compiled" if isinstance(self.stepper, NativeStepper) else "pytorch"

        self._last_batch: Tensor | None = None
        self.mean_norm = MeanNorm()
        self.scale: float | None = None
        self.n_norm_batches = 0
        if cfg.normalize_activations == "expected_average_only_in":
            self.n_norm_batches = options.n_batches_for_norm_estimate

    def _begin_control(self, controller: L0Controller, batch: Float[Tensor, "B D"]) -> None:
        """Let the search begin, near what the variance of the first batch lets one expect."""
        variance = batch.double().var(dim=0, correction=0).sum().item()
        variance *= 1.0 if self.scale is None else self.scale**2
        controller.begin(
            [
                self.architecture.coefficient_unit(variance, target)
                if math.isfinite(target)
                else math.nan
                for target in controller.target.tolist()
            ]
        )

    def _make_stepper(self, n_chunks: int) -> Stepper:
        cfgs = [sae.cfg for sae in self.saes]
        if self.device.type == "cpu" and self.options.compiled:
            translation = translate(self.architecture, cfgs[0])
            kernels = bindings.kernels() if translation is not None else None
            if translation is not None and kernels is not None:
                return NativeStepper(kernels, translation, cfgs, self.stack, self.options)
        return TorchStepper(self.architecture, cfgs, self.stack, self.options, n_chunks)

    def observe(self, batch: Float[Tensor, "B D"]) -> None:
        """Take one of the first batches into the estimate of the mean norm."""
        self.mean_norm.observe(batch)

    def start(self) -> None:
        """Settle the scaling factor, once all `n_norm_batches` have been observed."""
        if self.n_norm_batches and self.scale is None:
            self.scale = self.mean_norm.scaling_factor(self.d_in)

    def scaled(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """The batches as this stack's stepper reads them."""
        self._last_batch = batches[-1]
        controller = self.knobs.l0_controller
        if controller is not None and not controller.has_begun:
            self._begin_control(controller, batches[0])
        return self.stepper.prepared(batches, 1.0 if self.scale is None else self.scale)

    def advance(
        self,
        task: int,
        batches: Sequence[Tensor],
        first_step: int,
        rates: Sequence[float],
        log_last: bool,
    ) -> None:
        """Train one chunk on some (scaled) batches."""
        rows = self.stepper.chunks[task]
        start = 0
        while start < len(batches):
            stop, is_logged = self._next_stop(first_step, start, len(batches), log_last)
            step = first_step + start
            if step > 0 and step % self.options.feature_sampling_window == 0:
                self.stack.window_fired[rows].zero_()
            knobs = self.knobs.between(rows, step, stop - start)
            advanced = self.stepper.advance(
                task, batches[start:stop], step, rates[start:stop], knobs, is_logged
            )
            if self.knobs.l0_controller is not None:
                self.knobs.l0_controller.observe(
                    rows,
                    first_step + stop,
                    advanced.n_active,
                    sum(batch.shape[0] for batch in batches[start:stop]),
                    sum(rates[start:stop]),
                    self._level(rows),
                )
            if advanced.figures is not None:
                figures = {**advanced.figures, self._knob_column: knobs[-1]}
                self._log(rows, first_step + stop - 1, rates[stop - 1], figures)
            if is_due(first_step + stop, self.options):
                self._reinitialize_dead(rows, first_step + stop, batches[stop - 1], knobs[-1])
            start = stop

    def _reinitialize_dead(
        self, rows: slice, n_steps: int, batch: Float[Tensor, "B width"], knobs: Float[Tensor, " C"]
    ) -> None:
        """Give the dead latents of some SAEs a new start."""
        x = batch[:, : self.d_in]
        for row, knob in zip(range(rows.start, rows.stop), knobs.tolist(), strict=True):
            sae = self.saes[row]
            # The SAE's own forward pass is asked what it leaves over.
            self._write_into([sae], slice(row, row + 1))
            if isinstance(self.controls[row], KTransition):
                sae_lens_compat.set_knob(sae, self.architecture.knob, knob)
            reinitialize_dead(sae, self.stack, row, x, n_steps, self.options)

    def _level(self, rows: slice) -> Float[Tensor, " C"]:
        """How hard it is to activate the latents of some SAEs, on average."""
        views = self.stack.layout.views(self.stack.params[rows])
        # SAE by SAE: a mean over one row and over several need not add up in the same order.
        if "threshold" in views:
            return torch.stack([row.mean() for row in views["threshold"]])
        bias = views["b_gate" if "b_gate" in views else "b_enc"]
        return -torch.stack([row.mean() for row in bias])

    def _next_stop(self, first: int, start: int, n: int, log_last: bool) -> tuple[int, bool]:
        """Up to where steps can be taken in one go, and whether the last of them is logged."""
        to_log = -(first + start) % self.options.log_every
        stop = min(n, start + to_log + 1)
        is_logged = stop == start + to_log + 1 or (log_last and stop == n)
        # Steppers know nothing of sampling windows or of control, so steps taken in one go belong
        # to one window, and to one setting of the coefficients.
        periods = [self.options.feature_sampling_window]
        if self.knobs.l0_controller is not None:
            periods.append(INTERVAL)
        if self.options.reinit_dead_every is not None:
            periods.append(self.options.reinit_dead_every)
        for period in periods:
            to_next = period - (first + start) % period
            if to_next < stop - start:
                stop, is_logged = start + to_next, False
        return stop, is_logged

    @property
    def _knob_column(self) -> str:
        return "k" if self.architecture.knob == "k" else "coefficient"

    def _log(self, rows: slice, step: int, lr: float, figures: dict[str, Tensor]) -> None:
        table = torch.stack([values.double() for values in figures.values()])
        self._unread.append(_LogEntry(rows, step, lr, list(figures), table))
        # A GPU would have to be waited for.
        if self.device.type == "cpu":
            self._read_log()

    def _read_log(self) -> None:
        while self._unread:
            entry = self._unread.popleft()
            table = entry.table.tolist()
            for i, log in enumerate(self.logs[entry.rows]):
                values = {name: table[j][i] for j, name in enumerate(entry.names)}
                log.append(entry.step, {**values, "lr": entry.lr})

    def write_back(self) -> None:
        """Copy the stack's rows into the caller's SAEs."""
        self._read_log()
        self._write_into(self.saes)
        for log, step in zip(self.logs, self.stack.diverged_at.tolist(), strict=True):
            log.diverged_at = None if step < 0 else step

    def finish(self, n_steps: int) -> None:
        """Write back, fold the scaling factor into the weights, record L0 and dead latents."""
        self.write_back()
        self._take_notes(n_steps)
        self._complete(self.saes, n_steps)

    def _take_notes(self, n_steps: int) -> None:
        """Say of each SAE whose L0 is not where it was to be, why."""
        self._look_at_thresholds(n_steps)
        controller = self.knobs.l0_controller
        if controller is None:
            return
        for log, missed, l0, target, coefficient in zip(
            self.logs,
            controller.missed.tolist(),
            controller.l0.tolist(),
            controller.target.tolist(),
            controller.coefficient(slice(0, len(self.saes))).tolist(),
            strict=True,
        ):
            if missed:
                log.note = (
                    f"did not reach its target: L0 ended at {l0:.2f}, not at {target:g}, with the "
                    f"coefficient at {coefficient:.3g}. Thresholds move by about lr a step, so a "
                    "longer run or a larger lr may; and not every L0 is one that SAEs stay at."
                )
            elif not math.isnan(target):
                log.note = None

    def _look_at_thresholds(self, n_steps: int) -> None:
        """Look whether JumpReLU SAEs ended where their coefficients put them."""
        options = self.options
        # Before, Adam does not know the usual size of a gradient.
        is_long = n_steps * (1 - options.adam_beta2) >= 1
        if self._last_batch is None or self.architecture is not JumpReLU or not is_long:
            return
        x = self._last_batch if self.scale is None else self._last_batch * self.scale
        knobs = self.knobs.between(slice(0, len(self.saes)), n_steps - 1, 1)[0].tolist()
        for row, (sae, log) in enumerate(zip(self.saes, self.logs, strict=True)):
            if log.diverged_at is not None:
                continue
            state = threshold_state(
                sae.cfg,
                self.stack,
                row,
                x,
                knobs[row],
                options.adam_beta1,
                options.adam_beta2,
                n_steps,
            )
            log.note = state.note(knobs[row])

    def snapshot(self, n_steps: int) -> list[sae_lens.TrainingSAE[Any]]:
        """Copies, finished."""
        saes = [copy.deepcopy(sae) for sae in self.saes]
        self._write_into(saes)
        self._complete(saes, n_steps)
        return saes

    def _write_into(
        self, saes: Sequence[sae_lens.TrainingSAE[Any]], rows: slice = slice(None)
    ) -> None:
        unstack_parameters(self.stack.params[rows], self.stack.layout, saes)
        for name, values in self.stack.buffers.items():
            for sae, value in zip(saes, values[rows], strict=True):
                getattr(sae, name).copy_(value)

    def _complete(self, saes: Sequence[sae_lens.TrainingSAE[Any]], n_steps: int) -> None:
        window = self.options.feature_sampling_window
        n_in_window = (n_steps - 1) % window + 1
        n_samples = n_in_window * self.options.train_batch_size_samples
        dead = dead_after(n_steps, self.stack.last_fired, self.options.dead_feature_window)
        n_dead = dead.sum(1).tolist()
        l0 = (self.stack.window_fired.sum(1) / n_samples).tolist()
        for i, sae in enumerate(saes):
            if self.scale is not None:
                sae.fold_activation_norm_scaling_factor(self.scale)
            sae_lens_compat.record_training(sae, l0[i], n_dead[i])
        knobs = self.knobs.between(slice(0, len(saes)), n_steps - 1, 1)[0].tolist()
        for sae, control, knob in zip(saes, self.controls, knobs, strict=True):
            if control is not None:
                sae_lens_compat.set_knob(sae, self.architecture.knob, knob)

    def _tensors(self) -> dict[str, Tensor]:
        controller = self.knobs.l0_controller
        return {**self.stack.tensors(), **({} if controller is None else controller.tensors())}

    def state(self) -> dict[str, Tensor]:
        """Parameters, Adam's means, counters, scale and logs."""
        self._read_log()
        state = {
            **self._tensors(),
            "scale": torch.tensor(
                math.nan if self.scale is None else self.scale, dtype=torch.float64
            ),
        }
        for i, log in enumerate(self.logs):
            state.update({f"log.{i}.{name}": values for name, values in log.state().items()})
        return {name: values.detach().clone() for name, values in state.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a state that `state` gave."""
        for name, mine in self._tensors().items():
            if state[name].shape != mine.shape:
                raise ValueError(
                    f"the checkpoint holds {name} of shape {list(state[name].shape)}, but these "
                    f"SAEs need {list(mine.shape)}; resume with the SAEs the run was started with."
                )
            mine.copy_(state[name])
        scale = float(state["scale"])
        self.scale = None if math.isnan(scale) else scale
        for i, log in enumerate(self.logs):
            prefix = f"log.{i}."
            log.load_state(
                {
                    name.removeprefix(prefix): values
                    for name, values in state.items()
                    if name.startswith(prefix)
                }
            )
