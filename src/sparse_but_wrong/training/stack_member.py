"""A stack of SAEs of one architecture and shape, stepped by the engine.

Axes: S SAE, C SAEs of one chunk, B batch, D d_in, H d_sae, P flat parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparse_but_wrong.training import lens
from sparse_but_wrong.training.architectures.jumprelu import JumpReLU, Workspace
from sparse_but_wrong.training.log import SAELog
from sparse_but_wrong.training.mean_norm import MeanNorm
from sparse_but_wrong.training.member import Member
from sparse_but_wrong.training.optimizer import AdamState, clip_grad_norm_per_sae_
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stack import ParameterLayout, stack_parameters, unstack_parameters

if TYPE_CHECKING:
    import sae_lens


@dataclass
class _Scratch:
    """Buffers that a task needs for the time of its steps."""

    workspace: Workspace
    grads: Tensor
    adam: Tensor


class StackMember(Member):
    """SAEs of one architecture and shape, stepped by the engine.

    The stack is cut into chunks, each stepped as one by one thread. A chunk of several SAEs needs
    fewer calls, between which the threads of Python wait for each other; one that is too large
    falls out of the cache. On the CPU every operation does the same for an SAE however many share
    its chunk, so that its result is the same bit for bit alone or in a stack. On a GPU the whole
    stack is one chunk.
    """

    def __init__(
        self,
        saes: Sequence[sae_lens.TrainingSAE[Any]],
        architecture: type[JumpReLU],
        options: TrainOptions,
        n_chunks: int,
    ) -> None:
        self.saes = saes
        self.options = options
        cfg = saes[0].cfg
        self.device = saes[0].W_dec.device
        self.d_in = cfg.d_in
        self.logs = [SAELog(trained_by="engine") for _ in saes]

        self.layout = ParameterLayout(architecture.parameter_shapes(cfg.d_in, cfg.d_sae))
        self.params = stack_parameters(saes, self.layout)
        self.adam = AdamState(self.params, options.adam_beta1, options.adam_beta2)
        # The step each latent last fired at; −1 stands for before the first.
        self.last_fired = torch.full(
            (len(saes), cfg.d_sae), -1, dtype=torch.int64, device=self.device
        )
        self.window_fired = torch.zeros(len(saes), cfg.d_sae, device=self.device)
        schedules = [lens.coefficients(sae)[architecture.coefficient_name] for sae in saes]
        self.coefficient = torch.tensor(
            [value for value, _ in schedules], dtype=torch.float32, device=self.device
        ).unsqueeze(1)
        self.warm_up_steps = torch.tensor(
            [max(steps, 1.0) for _, steps in schedules], dtype=torch.float32, device=self.device
        ).unsqueeze(1)
        self.starts_at_zero = torch.tensor(
            [steps > 0 for _, steps in schedules], device=self.device
        ).unsqueeze(1)

        ends = [len(saes) * (i + 1) // n_chunks for i in range(n_chunks)]
        self.chunks = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        self.n_tasks = len(self.chunks)
        self.steppers = [
            architecture([s.cfg for s in saes[rows]], self.device) for rows in self.chunks
        ]
        # Tasks return their buffers here, by the size of their chunk. Append and pop are atomic, so
        # tasks of several threads may share them, and there are never more sets of buffers than
        # tasks running at once.
        self._scratch: dict[int, list[_Scratch]] = {
            rows.stop - rows.start: [] for rows in self.chunks
        }

        self.mean_norm = MeanNorm()
        self.scale: float | None = None
        self.n_norm_batches = 0
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
        """The batches as this stack's SAEs read them."""
        if self.scale is None:
            return list(batches)
        return [batch * self.scale for batch in batches]

    @torch.no_grad()
    def advance(
        self,
        task: int,
        batches: Sequence[Tensor],
        first_step: int,
        rates: Sequence[float],
        log_last: bool,
    ) -> None:
        """Train one chunk on some (scaled) batches."""
        rows = self.chunks[task]
        stepper = self.steppers[task]
        scratch = self._take_scratch(stepper, rows, batches[0].shape[0])
        params = self.params[rows]
        param_views = self.layout.views(params)
        grad_views = self.layout.views(scratch.grads)
        last_fired = self.last_fired[rows]
        window_fired = self.window_fired[rows]
        coefficients = self._coefficients(rows, first_step, len(batches)).unbind()

        for i, x in enumerate(batches):
            step = first_step + i
            if x.shape[0] != scratch.workspace.batch_size:
                scratch.workspace = stepper.workspace(x.shape[0])
            if step > 0 and step % self.options.feature_sampling_window == 0:
                window_fired.zero_()
            coefficient = coefficients[i]
            is_logged = step % self.options.log_every == 0 or (log_last and i == len(batches) - 1)
            dead = None
            if is_logged or stepper.uses_dead_latents:
                dead = self._dead_after(step, last_fired)
            fired = stepper.step(x, param_views, grad_views, coefficient, dead, scratch.workspace)
            last_fired.masked_fill_(fired > 0, step)
            window_fired.add_(fired)
            losses = None
            if is_logged:
                losses = stepper.losses(param_views, coefficient, dead, scratch.workspace)
            grad_norm = clip_grad_norm_per_sae_(scratch.grads, scale=2 / x.shape[0])
            self.adam.update_(rows, params, scratch.grads, scratch.adam, step, rates[i])
            if losses is not None:
                figures = {
                    "loss": torch.stack(list(losses.values())).sum(0),
                    **losses,
                    "l0": fired.sum(1) / x.shape[0],
                    "dead_latents": self._dead_after(step + 1, last_fired).sum(1),
                    "grad_norm": grad_norm.squeeze(1),
                    "coefficient": coefficient.squeeze(1),
                }
                self._log(rows, step, rates[i], figures)
        self._scratch[len(params)].append(scratch)

    def _take_scratch(self, stepper: JumpReLU, rows: slice, batch_size: int) -> _Scratch:
        wanted = self.params[rows].shape
        spare = self._scratch[wanted[0]]
        try:
            scratch = spare.pop()
        except IndexError:  # none, or another thread took the last one
            pass
        else:
            # The padding between parameters is never written, but it is part of the norm, and an
            # SAE that diverged leaves NaN in it.
            scratch.grads.zero_()
            return scratch
        return _Scratch(
            workspace=stepper.workspace(batch_size),
            grads=torch.zeros(wanted, device=self.device),
            adam=torch.zeros(wanted, device=self.device),
        )

    def _coefficients(self, rows: slice, first: int, n: int) -> Float[Tensor, "n C 1"]:
        """Those of n steps: they rise linearly from 0 at step 0 until the warm-up ends."""
        steps = torch.arange(first, first + n, device=self.device).view(-1, 1, 1)
        risen = (steps / self.warm_up_steps[rows]).clamp_(max=1.0)
        return self.coefficient[rows] * torch.where(self.starts_at_zero[rows], risen, 1.0)

    def _dead_after(self, n_steps: int, last_fired: Int[Tensor, "C H"]) -> Bool[Tensor, "C H"]:
        """Latents that have not fired for longer than the window, once n_steps have been taken."""
        return last_fired < n_steps - 1 - self.options.dead_feature_window

    def _log(self, rows: slice, step: int, lr: float, figures: dict[str, Tensor]) -> None:
        table = torch.stack([values.float() for values in figures.values()]).tolist()
        for i, log in enumerate(self.logs[rows]):
            values = {name: table[j][i] for j, name in enumerate(figures)}
            log.append(step, {**values, "lr": lr})

    def write_back(self) -> None:
        """Copy the stack's rows into the caller's SAEs."""
        unstack_parameters(self.params, self.layout, self.saes)

    def finish(self, n_steps: int) -> None:
        """Write back, fold the scaling factor into the weights, record L0 and dead latents."""
        self.write_back()
        window = self.options.feature_sampling_window
        n_in_window = (n_steps - 1) % window + 1
        n_samples = n_in_window * self.options.train_batch_size_samples
        dead = self._dead_after(n_steps, self.last_fired).sum(1).tolist()
        l0 = (self.window_fired.sum(1) / n_samples).tolist()
        for i, sae in enumerate(self.saes):
            if self.scale is not None:
                sae.fold_activation_norm_scaling_factor(self.scale)
            lens.record_training(sae, l0[i], dead[i])

    def state(self) -> dict[str, Tensor]:
        """Parameters, Adam's means, counters, scale and logs."""
        state = {
            "params": self.params,
            "exp_avg": self.adam.exp_avg,
            "exp_avg_sq": self.adam.exp_avg_sq,
            "last_fired": self.last_fired,
            "window_fired": self.window_fired,
            "scale": torch.tensor(
                math.nan if self.scale is None else self.scale, dtype=torch.float64
            ),
        }
        for i, log in enumerate(self.logs):
            state.update({f"log.{i}.{name}": values for name, values in log.state().items()})
        return {name: values.detach().clone() for name, values in state.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up a state that `state` gave."""
        for name, mine in (
            ("params", self.params),
            ("exp_avg", self.adam.exp_avg),
            ("exp_avg_sq", self.adam.exp_avg_sq),
            ("last_fired", self.last_fired),
            ("window_fired", self.window_fired),
        ):
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
