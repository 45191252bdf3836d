"""SAEs that take their steps together, and those that sae_lens' own trainer steps.

Axes: S SAE, C SAEs of one chunk, B batch, D d_in.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong import sae_lens_compat
from sparse_but_wrong.training import compiled_step
from sparse_but_wrong.training.architectures.base import Architecture
from sparse_but_wrong.training.architectures.penalty import JumpReLU
from sparse_but_wrong.training.controls import Control, KTransition, TargetL0
from sparse_but_wrong.training.log import SAELog
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.reinitialize import is_due, reinitialize_dead
from sparse_but_wrong.training.saturation import threshold_state
from sparse_but_wrong.training.sparsity import INTERVAL, SparsitySchedule
from sparse_but_wrong.training.stack import Stack, Steps, dead_after
from sparse_but_wrong.training.torch_step import TorchStepper

if TYPE_CHECKING:
    import sae_lens

Step = Literal["compiled", "pytorch", "sae_lens"]
"""The compiled loops, PyTorch's operations, or sae_lens' own trainer."""


class Group(ABC):
    """Some SAEs of a run, trained by the engine or by sae_lens' own trainer."""

    step: Step
    """What takes their steps."""
    n_chunks: int = 1
    """Independent pieces of each step; they may run at the same time."""

    def __init__(
        self, saes: Sequence[sae_lens.TrainingSAE[Any]], places: list[int], options: TrainOptions
    ) -> None:
        self.saes = saes
        self.cfg = saes[0].cfg
        self.places = places
        """Where they stand in the caller's list."""
        self.options = options
        self.logs: list[SAELog] = []
        self.n_steps = 0
        """Steps taken; none before the norm of the activations is known."""
        self.n_samples = 0
        """Samples trained on."""
        observes = ("expected_average_only_in", "covariance_whitening")
        is_scaled = self.cfg.normalize_activations in observes
        self.n_norm_batches = options.n_batches_for_norm_estimate if is_scaled else 0
        """Batches at the head of the stream that are looked at, not trained on."""
        self.n_observed = 0
        self._total_norm = 0.0
        self._n_norms = 0

    def observe(self, batches: Sequence[Tensor]) -> None:
        """Look at some of the first `n_norm_batches` batches; the last settle the normalisation.

        Norms are summed in float32 within a batch and in float64 over batches, as sae_lens does.

        Raises:
            ValueError: the activations seen are all zero.
        """
        for batch in batches:
            norms = batch.norm(dim=-1)
            self._total_norm += norms.sum().item()
            self._n_norms += norms.numel()
        self.n_observed += len(batches)
        if self.n_observed == self.n_norm_batches:
            if self._total_norm == 0:
                raise ValueError(
                    "The activations are all zero, so they cannot be normalised "
                    '(normalize_activations="expected_average_only_in"); fix the source.'
                )
            self.set_scale(math.sqrt(self.cfg.d_in) * self._n_norms / self._total_norm)

    @abstractmethod
    def set_scale(self, factor: float) -> None:
        """Set what activations are multiplied by."""

    @abstractmethod
    def scaled(self, batches: Sequence[Tensor]) -> Sequence[Tensor]:
        """The batches as these SAEs read them; made once for all chunks."""

    @abstractmethod
    def advance(self, chunk: int, steps: Steps) -> None:
        """Train one chunk on scaled batches; the last step of the run is logged."""

    @abstractmethod
    def write_back(self, saes: Sequence[sae_lens.TrainingSAE[Any]]) -> None:
        """Bring the caller's SAEs, or copies of them, up to the last finished step."""

    @abstractmethod
    def complete(self, saes: Sequence[sae_lens.TrainingSAE[Any]]) -> None:
        """Fold the scale into SAEs that are written back, and record metadata."""

    def read_log(self) -> None:  # noqa: B027  (most have nothing to do)
        """Bring the logs up to the last finished step, where their numbers lie elsewhere."""

    def finish(self) -> None:
        """After the last step."""
        self.write_back(self.saes)
        self.complete(self.saes)

    def snapshot(self) -> list[sae_lens.TrainingSAE[Any]]:
        """Copies of the SAEs, as `finish` would leave them now."""
        saes = [copy.deepcopy(sae) for sae in self.saes]
        self.write_back(saes)
        self.complete(saes)
        return saes

    def state(self) -> dict[str, Tensor]:
        """All that a later process needs to continue from here, bit for bit."""
        raise NotImplementedError(
            "sae_lens' own trainer can only be checkpointed as a pickle; train without checkpoints."
        )

    def load_state(self, state: dict[str, Tensor]) -> None:  # noqa: ARG002
        """Continue from where `state` was taken."""
        Group.state(self)


class SAELensGroup(Group):
    """One SAE that the engine does not stack, stepped through the seams of sae_lens' trainer."""

    step = "sae_lens"

    def __init__(
        self, saes: Sequence[sae_lens.TrainingSAE[Any]], places: list[int], options: TrainOptions
    ) -> None:
        super().__init__(saes, places, options)
        self.logs = [SAELog(trained_by="sae_lens")]
        self.trainer = sae_lens_compat.make_trainer(saes[0], options.trainer_settings())
        # sae_lens estimates a whitening from all batches in one go, so they must be kept till then.
        self._observed: list[Tensor] = []

    def observe(self, batches: Sequence[Tensor]) -> None:
        if self.cfg.normalize_activations != "covariance_whitening":
            return super().observe(batches)
        self._observed += batches
        if len(self._observed) == self.n_norm_batches:
            self.trainer.activation_scaler.estimate_whitening(
                self.cfg.d_in, iter(self._observed), self.n_norm_batches
            )
            self._observed.clear()
        return None

    def set_scale(self, factor: float) -> None:
        self.trainer.activation_scaler.scaling_factor = factor

    def scaled(self, batches: Sequence[Tensor]) -> Sequence[Tensor]:
        return batches  # sae_lens' trainer scales them itself

    def advance(self, chunk: int, steps: Steps) -> None:  # noqa: ARG002
        last = len(steps.batches) - 1
        for i, batch in enumerate(steps.batches):
            step = steps.first + i
            self.trainer.maybe_reset_sparsity()
            coefficients = self.trainer.get_coefficients()  # the step moves them on
            output = self.trainer.step(batch)
            if step % self.options.log_every == 0 or (steps.end_the_run and i == last):
                metrics = sae_lens_compat.step_metrics(self.trainer, output, coefficients)
                self.logs[0].append(step, {**metrics, "lr": steps.rates[i]})
            self.trainer.n_training_steps += 1

    def write_back(self, saes: Sequence[sae_lens.TrainingSAE[Any]]) -> None:
        """Nothing to do: sae_lens trains the caller's own object."""

    def complete(self, saes: Sequence[sae_lens.TrainingSAE[Any]]) -> None:
        for sae in saes:
            sae_lens_compat.complete(self.trainer, sae)


class StackedGroup(Group):
    """SAEs of one architecture and shape, stepped by the engine."""

    def __init__(
        self,
        saes: Sequence[sae_lens.TrainingSAE[Any]],
        places: list[int],
        options: TrainOptions,
        architecture: type[Architecture],
        controls: Sequence[Control | None],
    ) -> None:
        super().__init__(saes, places, options)
        self.controls = controls
        self.architecture = architecture
        self.is_on_cpu = saes[0].W_dec.device.type == "cpu"
        self.logs = [SAELog(trained_by="engine") for _ in saes]
        # Rows of the log, of some SAEs each, that may still be on the device.
        self._unread: list[tuple[slice, int, float, list[str], Tensor]] = []
        self.stack = Stack.of(saes, architecture.parameters, architecture.buffers)
        settings = [sae_lens_compat.sparsity(sae, architecture.sparsity) for sae in saes]
        device = saes[0].W_dec.device
        self.schedule = SparsitySchedule(settings, controls, options.n_steps, device)
        asked = (architecture, [sae.cfg for sae in saes], self.stack, options)
        may_compile = self.is_on_cpu and options.compiled and not options.autocast
        may_compile &= architecture.policy is not None
        kernels = compiled_step.kernels() if may_compile else None
        self.step = "pytorch" if kernels is None else "compiled"
        if kernels is None:
            self.stepper = TorchStepper(*asked)
        else:
            self.stepper = compiled_step.CompiledStepper(kernels, *asked)
        self.n_chunks = len(self.stepper.chunks)
        self._last_batch: Tensor | None = None
        self.scale: float | None = None

    def set_scale(self, factor: float) -> None:
        self.scale = factor

    def scaled(self, batches: Sequence[Tensor]) -> list[Tensor]:
        self._last_batch = batches[-1]
        scale = 1.0 if self.scale is None else self.scale
        controller = self.schedule.l0_controller
        if controller is not None and not controller.has_begun:
            # The search begins near what the variance of the first batch lets one expect.
            variance = batches[0].double().var(dim=0, correction=0).sum() * scale**2
            controller.begin(self.architecture.coefficient_unit(variance, controller.target))
        return self.stepper.prepared(batches, scale)

    def advance(self, chunk: int, steps: Steps) -> None:
        # Steppers know nothing of sampling windows or of control, so steps taken in one go belong
        # to one window, and to one setting of the coefficients; the last may be logged.
        asked = (self.options.feature_sampling_window, self.options.reinit_dead_every)
        periods = [period for period in asked if period is not None]
        if self.schedule.l0_controller is not None:
            periods.append(INTERVAL)
        start, last = steps.first, steps.first + len(steps.batches)
        for end in range(start + 1, last + 1):
            is_logged = (end - 1) % self.options.log_every == 0
            is_logged |= steps.end_the_run and end == last
            if is_logged or end == last or any(end % period == 0 for period in periods):
                places = slice(start - steps.first, end - steps.first)
                part = Steps(steps.batches[places], start, steps.rates[places])
                self._advance(chunk, part, is_logged)
                start = end

    def _advance(self, chunk: int, steps: Steps, is_logged: bool) -> None:
        rows, n_steps = self.stepper.chunks[chunk], len(steps.batches)
        end = steps.first + n_steps
        if steps.first > 0 and steps.first % self.options.feature_sampling_window == 0:
            self.stack.window_fired[rows].zero_()
        sparsity = self.schedule.between(rows, steps.first, n_steps)
        n_active, metrics = self.stepper.advance(chunk, steps, sparsity, is_logged)
        if self.schedule.l0_controller is not None:
            self.schedule.l0_controller.observe(
                rows,
                end,
                n_active,
                sum(batch.shape[0] for batch in steps.batches),
                sum(steps.rates),
                self._level(rows),
            )
        if metrics is not None:
            metrics["k" if self.architecture.sparsity == "k" else "coefficient"] = sparsity[-1]
            table = torch.stack([values.double() for values in metrics.values()])
            entry = (rows, end - 1, steps.rates[-1], list(metrics), table)
            if self.is_on_cpu:
                self._write_log(*entry)
            else:  # a GPU would have to be waited for
                self._unread.append(entry)
        if is_due(end, self.options):
            self._reinitialize_dead(rows, end, steps.batches[-1], sparsity[-1])

    def _reinitialize_dead(
        self,
        rows: slice,
        n_steps: int,
        batch: Float[Tensor, "B width"],
        sparsity: Float[Tensor, " C"],
    ) -> None:
        """Give the dead latents of some SAEs a new start."""
        for row, value in zip(range(rows.start, rows.stop), sparsity.tolist(), strict=True):
            sae = self.saes[row]
            # The residuals come from the SAE's own forward pass.
            self.stack.write_into([sae], row)
            if isinstance(self.controls[row], KTransition):
                sae_lens_compat.set_sparsity(sae, self.architecture.sparsity, value)
            part = self.stack.part(slice(row, row + 1))
            reinitialize_dead(sae, part, batch[:, : sae.cfg.d_in], n_steps, self.options)

    def _level(self, rows: slice) -> Float[Tensor, " C"]:
        """How hard it is to activate the latents of some SAEs, on average."""
        views = self.stack.views(self.stack.params[rows])
        name = next(name for name in ("threshold", "b_gate", "b_enc") if name in views)
        # SAE by SAE: a mean over one row and over several need not add up in the same order.
        means = torch.stack([row.mean() for row in views[name]])
        return means if name == "threshold" else -means

    def _write_log(
        self, rows: slice, step: int, lr: float, names: list[str], table: Float[Tensor, "n C"]
    ) -> None:
        for log, values in zip(self.logs[rows], table.T.tolist(), strict=True):
            log.append(step, {**dict(zip(names, values, strict=True)), "lr": lr})

    def read_log(self) -> None:
        for entry in self._unread:
            self._write_log(*entry)
        self._unread.clear()

    def write_back(self, saes: Sequence[sae_lens.TrainingSAE[Any]]) -> None:
        self.read_log()
        self.stack.write_into(saes)
        for log, step in zip(self.logs, self.stack.diverged_at.tolist(), strict=True):
            log.diverged_at = None if step < 0 else step

    def finish(self) -> None:
        self.write_back(self.saes)
        self._note_thresholds()
        controller = self.schedule.l0_controller
        for i, control in enumerate(self.controls):
            if controller is not None and isinstance(control, TargetL0):
                self.logs[i].note = controller.note(i)
        self.complete(self.saes)

    def _note_thresholds(self) -> None:
        """Note which JumpReLU SAEs did not end where their coefficients lead."""
        # Before, Adam does not know the usual size of a gradient.
        is_long = self.n_steps * (1 - self.options.adam_beta2) >= 1
        if self._last_batch is None or self.architecture is not JumpReLU or not is_long:
            return
        x = self._last_batch if self.scale is None else self._last_batch * self.scale
        for i, (coefficient, log) in enumerate(zip(self._sparsity(), self.logs, strict=True)):
            if log.diverged_at is None:
                row, cfg = self.stack.part(slice(i, i + 1)), self.saes[i].cfg
                state = threshold_state(cfg, row, x, coefficient, self.options, self.n_steps)
                log.note = state.note(coefficient)

    def _sparsity(self) -> list[float]:
        """Each SAE's coefficient or k as of the last step."""
        return self.schedule.between(slice(0, len(self.saes)), self.n_steps - 1, 1)[0].tolist()

    def complete(self, saes: Sequence[sae_lens.TrainingSAE[Any]]) -> None:
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
        self.read_log()
        scale = math.nan if self.scale is None else self.scale
        state = {**self._tensors(), "scale": torch.tensor(scale, dtype=torch.float64)}
        for i, log in enumerate(self.logs):
            state.update({f"log.{i}.{name}": values for name, values in log.state().items()})
        return {name: values.detach().clone() for name, values in state.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
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
