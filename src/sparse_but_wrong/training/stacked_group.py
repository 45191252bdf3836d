"""A stack of SAEs of one architecture and shape, stepped by the engine.

Axes: S SAE, C SAEs of one chunk, B batch, D d_in.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong import sae_lens_compat
from sparse_but_wrong.training import compiled_step
from sparse_but_wrong.training.architectures.base import Architecture
from sparse_but_wrong.training.architectures.jumprelu import JumpReLU
from sparse_but_wrong.training.controls import Control, KTransition
from sparse_but_wrong.training.group import Group, MeanNorm
from sparse_but_wrong.training.l0_control import INTERVAL
from sparse_but_wrong.training.log import SAELog
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.reinitialize import is_due, reinitialize_dead
from sparse_but_wrong.training.saturation import threshold_state
from sparse_but_wrong.training.sparsity_schedule import SparsitySchedule
from sparse_but_wrong.training.stack import StackState
from sparse_but_wrong.training.stepper import Stepper, Steps, dead_after
from sparse_but_wrong.training.torch_step import TorchStepper

if TYPE_CHECKING:
    import sae_lens


class StackedGroup(Group):
    """SAEs of one architecture and shape."""

    def __init__(
        self,
        saes: Sequence[sae_lens.TrainingSAE[Any]],
        places: list[int],
        architecture: type[Architecture],
        options: TrainOptions,
        controls: Sequence[Control | None],
    ) -> None:
        cfg = saes[0].cfg
        self.saes = saes
        self.places = places
        self.controls = controls
        self.options = options
        self.architecture = architecture
        self.device = saes[0].W_dec.device
        self.d_in = cfg.d_in
        self.logs = [SAELog(trained_by="engine") for _ in saes]
        # Rows of the log, of some SAEs each, that may still be on the device.
        self._unread: deque[tuple[slice, int, float, list[str], Tensor]] = deque()
        self.stack = StackState.of(
            saes, architecture.parameter_shapes(cfg.d_in, cfg.d_sae), architecture.buffers
        )
        settings = [sae_lens_compat.sparsity(sae, architecture.sparsity) for sae in saes]
        self.schedule = SparsitySchedule(
            [value for value, _ in settings],
            [steps for _, steps in settings],
            controls,
            options.n_steps,
            self.device,
        )
        self.stepper: Stepper
        asked = (architecture, [sae.cfg for sae in saes], self.stack, options)
        may_compile = self.device.type == "cpu" and options.compiled and architecture.compiled(cfg)
        kernels = compiled_step.kernels() if may_compile else None
        if kernels is not None:
            self.step = "compiled"
            self.stepper = compiled_step.CompiledStepper(kernels, *asked)
        else:
            self.step = "pytorch"
            self.stepper = TorchStepper(*asked)
        self.n_chunks = len(self.stepper.chunks)

        self._last_batch: Tensor | None = None
        self.mean_norm = MeanNorm()
        self.scale: float | None = None
        if cfg.normalize_activations == "expected_average_only_in":
            self.n_norm_batches = options.n_batches_for_norm_estimate

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
        scale = 1.0 if self.scale is None else self.scale
        controller = self.schedule.l0_controller
        if controller is not None and not controller.has_begun:
            # The search begins near what the variance of the first batch lets one expect.
            variance = batches[0].double().var(dim=0, correction=0).sum().item() * scale**2
            controller.begin(
                [
                    math.nan
                    if math.isnan(target)
                    else self.architecture.coefficient_unit(variance, target)
                    for target in controller.target.tolist()
                ]
            )
        return self.stepper.prepared(batches, scale)

    def advance(self, chunk: int, steps: Steps) -> None:
        """Train one chunk on scaled batches."""
        rows = self.stepper.chunks[chunk]
        name = "k" if self.architecture.sparsity == "k" else "coefficient"
        start = 0
        while start < len(steps.batches):
            stop, is_logged = self._next_stop(steps, start)
            part = steps.part(start, stop)
            step, end = part.first, steps.first + stop
            if step > 0 and step % self.options.feature_sampling_window == 0:
                self.stack.window_fired[rows].zero_()
            sparsity = self.schedule.between(rows, step, stop - start)
            result = self.stepper.advance(chunk, part, sparsity, is_logged)
            if self.schedule.l0_controller is not None:
                self.schedule.l0_controller.observe(
                    rows,
                    end,
                    result.n_active,
                    sum(batch.shape[0] for batch in part.batches),
                    sum(part.rates),
                    self._level(rows),
                )
            if result.metrics is not None:
                metrics = {**result.metrics, name: sparsity[-1]}
                table = torch.stack([values.double() for values in metrics.values()])
                self._unread.append((rows, end - 1, part.rates[-1], list(metrics), table))
                if self.device.type == "cpu":  # a GPU would have to be waited for
                    self._read_log()
            if is_due(end, self.options):
                self._reinitialize_dead(rows, end, part.batches[-1], sparsity[-1])
            start = stop

    def _next_stop(self, steps: Steps, start: int) -> tuple[int, bool]:
        """Up to where steps can be taken in one go, and whether the last of them is logged."""
        first, n = steps.first, len(steps.batches)
        to_log = -(first + start) % self.options.log_every
        stop = min(n, start + to_log + 1)
        is_logged = stop == start + to_log + 1 or (steps.end_the_run and stop == n)
        # Steppers know nothing of sampling windows or of control, so steps taken in one go belong
        # to one window, and to one setting of the coefficients.
        periods = [self.options.feature_sampling_window]
        if self.schedule.l0_controller is not None:
            periods.append(INTERVAL)
        if self.options.reinit_dead_every is not None:
            periods.append(self.options.reinit_dead_every)
        for period in periods:
            to_next = period - (first + start) % period
            if to_next < stop - start:
                stop, is_logged = start + to_next, False
        return stop, is_logged

    def _reinitialize_dead(
        self,
        rows: slice,
        n_steps: int,
        batch: Float[Tensor, "B width"],
        sparsity: Float[Tensor, " C"],
    ) -> None:
        """Give the dead latents of some SAEs a new start."""
        x = batch[:, : self.d_in]
        for row, value in zip(range(rows.start, rows.stop), sparsity.tolist(), strict=True):
            sae = self.saes[row]
            # The residuals come from the SAE's own forward pass.
            self.stack.write_into([sae], row)
            if isinstance(self.controls[row], KTransition):
                sae_lens_compat.set_sparsity(sae, self.architecture.sparsity, value)
            reinitialize_dead(sae, self.stack, row, x, n_steps, self.options)

    def _level(self, rows: slice) -> Float[Tensor, " C"]:
        """How hard it is to activate the latents of some SAEs, on average."""
        views = self.stack.layout.views(self.stack.params[rows])
        # SAE by SAE: a mean over one row and over several need not add up in the same order.
        if "threshold" in views:
            return torch.stack([row.mean() for row in views["threshold"]])
        bias = views["b_gate" if "b_gate" in views else "b_enc"]
        return -torch.stack([row.mean() for row in bias])

    def _read_log(self) -> None:
        while self._unread:
            rows, step, lr, names, table = self._unread.popleft()
            for log, values in zip(self.logs[rows], table.T.tolist(), strict=True):
                log.append(step, {**dict(zip(names, values, strict=True)), "lr": lr})

    def write_back(self) -> None:
        """Copy the stack's rows into the caller's SAEs."""
        self._read_log()
        self.stack.write_into(self.saes)
        for log, step in zip(self.logs, self.stack.diverged_at.tolist(), strict=True):
            log.diverged_at = None if step < 0 else step

    def finish(self) -> None:
        """Write back, fold the scaling factor into the weights, record L0 and dead latents."""
        self.write_back()
        self._note_thresholds()
        controller = self.schedule.l0_controller
        if controller is not None:
            for i, target in enumerate(controller.target.tolist()):
                if not math.isnan(target):
                    self.logs[i].note = controller.note(i)
        self._complete(self.saes)

    def _note_thresholds(self) -> None:
        """Note which JumpReLU SAEs did not end where their coefficients lead."""
        # Before, Adam does not know the usual size of a gradient.
        is_long = self.n_steps * (1 - self.options.adam_beta2) >= 1
        if self._last_batch is None or self.architecture is not JumpReLU or not is_long:
            return
        x = self._last_batch if self.scale is None else self._last_batch * self.scale
        for row, (coefficient, log) in enumerate(zip(self._sparsity(), self.logs, strict=True)):
            if log.diverged_at is None:
                state = threshold_state(
                    self.saes[row].cfg, self.stack, row, x, coefficient, self.options, self.n_steps
                )
                log.note = state.note(coefficient)

    def _sparsity(self) -> list[float]:
        """Each SAE's coefficient or k as of the last step."""
        return self.schedule.between(slice(0, len(self.saes)), self.n_steps - 1, 1)[0].tolist()

    def snapshot(self) -> list[sae_lens.TrainingSAE[Any]]:
        """Copies, finished."""
        saes = [copy.deepcopy(sae) for sae in self.saes]
        self.stack.write_into(saes)
        self._complete(saes)
        return saes

    def _complete(self, saes: Sequence[sae_lens.TrainingSAE[Any]]) -> None:
        n_in_window = (self.n_steps - 1) % self.options.feature_sampling_window + 1
        n_samples = n_in_window * self.options.train_batch_size_samples
        window = self.options.dead_feature_window
        n_dead = dead_after(self.n_steps, self.stack.last_fired, window).sum(1).tolist()
        l0 = (self.stack.window_fired.sum(1) / n_samples).tolist()
        for i, (sae, value) in enumerate(zip(saes, self._sparsity(), strict=True)):
            if self.scale is not None:
                sae.fold_activation_norm_scaling_factor(self.scale)
            sae_lens_compat.record_training(sae, l0[i], n_dead[i])
            if self.controls[i] is not None:
                sae_lens_compat.set_sparsity(sae, self.architecture.sparsity, value)

    def _tensors(self) -> dict[str, Tensor]:
        controller = self.schedule.l0_controller
        return {**self.stack.tensors(), **({} if controller is None else controller.tensors())}

    def state(self) -> dict[str, Tensor]:
        """Parameters, Adam's means, counters, scale and logs."""
        self._read_log()
        scale = math.nan if self.scale is None else self.scale
        state = {**self._tensors(), "scale": torch.tensor(scale, dtype=torch.float64)}
        for i, log in enumerate(self.logs):
            state.update({f"log.{i}.{name}": values for name, values in log.state().items()})
        return {name: values.detach().clone() for name, values in state.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue from where `state` was taken."""
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
            log.load_state(with_prefix(state, f"log.{i}."))


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
