"""The steps of a stack as compiled loops, on the CPU.

Axes: S SAE, C SAEs of one chunk, B batch, D d_in.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.training.native import bindings
from sparse_but_wrong.training.native.translate import Translation
from sparse_but_wrong.training.optimizer import AdamScalars
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stack_state import StackState
from sparse_but_wrong.training.step import dead_after
from sparse_but_wrong.training.stepper import Advanced, Stepper, even_slices

_CACHE_LINE = 64

# A chunk's steps on one block of batches should take a few milliseconds, so that handing them to a
# thread (about 50 µs) does not count.
_CHUNK_FLOP = 2e9
_STEPS_PER_BLOCK = 16


class NativeStepper(Stepper):
    """Steps a stack with the compiled loops.

    An SAE takes all its steps on a block of batches before the next SAE's turn, on one thread and
    with its parameters in cache. So its result cannot depend on any other.
    """

    def __init__(
        self,
        kernels: bindings.Kernels,
        translation: Translation,
        cfgs: Sequence[Any],
        state: StackState,
        options: TrainOptions,
    ) -> None:
        self.kernels = kernels
        self.translation = translation
        self.state = state
        self.options = options
        self.d_in: int = cfgs[0].d_in
        flop = 10 * options.train_batch_size_samples * cfgs[0].d_sae * self.d_in
        self.chunks = _cut(len(cfgs), flop, options.threads or torch.get_num_threads())
        self._config = self._make_config(cfgs[0])
        self._saes = [self._make_saes(cfgs, rows) for rows in self.chunks]
        self._scratch: list[Tensor] = []

    def _make_config(self, cfg: Any) -> bindings.Config:
        layout = self.state.layout
        shared = {
            "n_levels": 1,
            **{name: int(value) for name, value in self.translation.config.items()},
        }
        return bindings.Config(
            d_in=cfg.d_in,
            d_sae=cfg.d_sae,
            n_parameters=layout.size,
            **{"b_enc" if name == "b_gate" else name: at for name, at in layout.offsets.items()},
            apply_b_dec=int(cfg.apply_b_dec_to_input),
            dead_window=self.options.dead_feature_window,
            beta1=self.options.adam_beta1,
            beta2=self.options.adam_beta2,
            widths=(ctypes.c_int64 * bindings.MAX_LEVELS)(*self.translation.widths),
            **shared,
        )

    def _make_saes(self, cfgs: Sequence[Any], rows: slice) -> ctypes.Array[bindings.Sae]:
        state = self.state
        threshold = state.buffers.get("topk_threshold")
        return (bindings.Sae * (rows.stop - rows.start))(
            *(
                bindings.Sae(
                    params=state.params[i].data_ptr(),
                    exp_avg=state.exp_avg[i].data_ptr(),
                    exp_avg_sq=state.exp_avg_sq[i].data_ptr(),
                    last_fired=state.last_fired[i].data_ptr(),
                    window_fired=state.window_fired[i].data_ptr(),
                    diverged_at=state.diverged_at[i].data_ptr(),
                    topk_threshold=None if threshold is None else threshold[i].data_ptr(),
                    **self.translation.sae(cfgs[i]),
                )
                for i in range(rows.start, rows.stop)
            )
        )

    @torch.no_grad()
    def prepared(self, batches: Sequence[Tensor], scale: float) -> list[Tensor]:
        """The batches, scaled, their rows padded with zeros to whole vectors."""
        width = self.kernels.vector_floats
        d_in = self.d_in
        padded = []
        for batch in batches:
            room = batch.new_zeros(batch.shape[0], -(-d_in // width) * width)
            torch.mul(batch, scale, out=room[:, :d_in])
            padded.append(room)
        return padded

    def advance(
        self,
        task: int,
        batches: Sequence[Tensor],
        first_step: int,
        rates: Sequence[float],
        knobs: Float[Tensor, "n C"],
        with_figures: bool,
    ) -> Advanced:
        """Take one step per batch with one chunk."""
        rows = self.chunks[task]
        saes = self._saes[task]
        n, n_saes = len(batches), len(saes)
        config = bindings.Config.from_buffer_copy(self._config)
        config.max_batch = max(batch.shape[0] for batch in batches)
        options = self.options
        scalars = [
            AdamScalars.at(first_step + i, rates[i], options.adam_beta1, options.adam_beta2)
            for i in range(n)
        ]
        for sae in saes:
            sae.n_active = 0.0
        scratch = self._take_scratch(config)
        knobs = knobs.contiguous()
        self.kernels.advance(
            config,
            saes,
            n_saes,
            n,
            (ctypes.c_void_p * n)(*(batch.data_ptr() for batch in batches)),
            (ctypes.c_int64 * n)(*(batch.shape[0] for batch in batches)),
            first_step,
            (ctypes.c_double * n)(*(s.step_size for s in scalars)),
            (ctypes.c_double * n)(*(s.root_correction for s in scalars)),
            knobs.data_ptr(),
            int(with_figures),
            -(-scratch.data_ptr() // _CACHE_LINE) * _CACHE_LINE,
        )
        self._scratch.append(scratch)
        return Advanced(
            n_active=torch.tensor([sae.n_active for sae in saes], dtype=torch.float64),
            figures=self._figures(saes, rows, first_step + n, batches[-1])
            if with_figures
            else None,
        )

    def _figures(
        self, saes: ctypes.Array[bindings.Sae], rows: slice, n_steps: int, batch: Tensor
    ) -> dict[str, Float[Tensor, " C"]]:
        def column(place: int) -> Float[Tensor, " C"]:
            return torch.tensor([sae.figures[place] for sae in saes], dtype=torch.float64)

        inner = len(bindings.FIGURES)
        losses = {
            name: column(inner + at if isinstance(at, int) else bindings.FIGURES.index(at))
            for name, at in self.translation.losses.items()
        }
        dead = dead_after(n_steps, self.state.last_fired[rows], self.options.dead_feature_window)
        return {
            "loss": torch.stack(list(losses.values())).sum(0),
            **losses,
            "l0": column(bindings.FIGURES.index("n_active")) / batch.shape[0],
            "dead_latents": dead.sum(1),
            "grad_norm": column(bindings.FIGURES.index("grad_norm")),
        }

    def _take_scratch(self, config: bindings.Config) -> Tensor:
        """Memory for one call; append and pop are atomic, so threads may share the list."""
        wanted = int(self.kernels.scratch_floats(config)) + _CACHE_LINE // 4
        while True:
            try:
                scratch = self._scratch.pop()
            except IndexError:
                return torch.empty(wanted)
            if len(scratch) >= wanted:
                return scratch


def _cut(n_saes: int, flop_per_step: int, threads: int) -> list[slice]:
    """The rows of each chunk: enough chunks to keep all threads busy, each worth a call."""
    size = max(1, int(_CHUNK_FLOP / (flop_per_step * _STEPS_PER_BLOCK)))
    n_chunks = max(-(-n_saes // size), min(n_saes, threads))
    return even_slices(n_saes, n_chunks)
