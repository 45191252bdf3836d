"""The steps of a stack as compiled loops (native/kernels.cpp), on the CPU.

Axes: C SAEs of one chunk, D d_in, H d_sae, P flat parameters of one SAE.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.training.architectures.base import Architecture
from sparse_but_wrong.training.native import build
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.training.stack import StackState
from sparse_but_wrong.training.stepper import (
    Stepper,
    StepResult,
    Steps,
    adam_scalars,
    dead_after,
    even_slices,
)

_METRICS = ("mse", "sparsity", "pre_act", "aux", "n_active", "grad_norm")  # as in kernels.cpp
_CACHE_LINE = 64

# A chunk's steps on one block of batches should take a few milliseconds, so that handing them to a
# thread (about 50 µs) does not count.
_CHUNK_FLOP = 2e9
_STEPS_PER_BLOCK = 16

_int, _double, _pointer = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class Config(ctypes.Structure):
    """What the SAEs of a stack share; names and places are checked against kernels.cpp."""

    _fields_ = (
        *((name, _int) for name in ("policy", "d_in", "d_sae", "n_parameters")),
        # where each parameter begins
        *((name, _int) for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")),
        *((name, _int) for name in ("apply_b_dec", "mode", "ste_to_input", "has_pre_act_loss")),
        *((name, _int) for name in ("rescale", "dead_window", "max_batch")),
        *((name, _double) for name in ("beta1", "beta2")),
    )


class Sae(ctypes.Structure):
    """One SAE: where its state lies, its own options, and what a step reports."""

    _fields_ = (
        *((name, _pointer) for name in ("params", "exp_avg", "exp_avg_sq", "last_fired")),
        *((name, _pointer) for name in ("window_fired", "diverged_at", "topk_threshold")),
        *((name, _double) for name in ("bandwidth", "tanh_scale", "target_l0")),
        *((name, _double) for name in ("pre_act_coefficient", "aux_coefficient")),
        *((name, _double) for name in ("topk_threshold_lr", "kth_value", "n_active")),
        ("metrics", _double * len(_METRICS)),
    )


def _layout() -> str:
    """Every field with its offset, as kernels.cpp describes its own."""
    return "".join(
        f"{structure.__name__}.{field[0]} {getattr(structure, field[0]).offset}\n"
        for structure in (Config, Sae)
        for field in structure._fields_
    )


class Kernels:
    """The functions of the library, with their types.

    Raises:
        AttributeError: the library lacks one of them.
        RuntimeError: its structures are not those of this module.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        library.layout.restype = ctypes.c_char_p
        if library.layout().decode() != _layout():
            raise RuntimeError(
                "kernels.cpp and compiled_step.py disagree about their layout; reinstall "
                "sparse_but_wrong"
            )
        library.vector_floats.restype = _int
        self.vector_floats = int(library.vector_floats())
        self.scratch_floats = library.scratch_floats
        self.scratch_floats.restype = _int
        self.scratch_floats.argtypes = (ctypes.POINTER(Config),)
        self.advance = library.advance
        self.advance.restype = None
        self.advance.argtypes = (
            *(ctypes.POINTER(Config), ctypes.POINTER(Sae), _int, _int),
            *(ctypes.POINTER(_pointer), ctypes.POINTER(_int), _int),
            *(ctypes.POINTER(_double), ctypes.POINTER(_double), _pointer, _int, _pointer),
        )


@functools.cache
def kernels() -> Kernels | None:
    """The compiled loops; None, said once, where they cannot be had."""
    library = build.library()
    if library is None:
        return None
    try:
        return Kernels(library)
    except (AttributeError, RuntimeError) as error:  # a function is missing, or is not as expected
        build.say_without(error)
        return None


class CompiledStepper(Stepper):
    """Steps a stack with the compiled loops.

    An SAE takes all its steps on a block of batches before the next SAE's turn, on one thread and
    with its parameters in cache. So its result cannot depend on any other.
    """

    def __init__(
        self,
        kernels: Kernels,
        architecture: type[Architecture],
        cfgs: Sequence[Any],
        state: StackState,
        options: TrainOptions,
    ) -> None:
        cfg = cfgs[0]
        compiled = [architecture.compiled(cfg) for cfg in cfgs]
        told = [one for one in compiled if one is not None]
        self.kernels = kernels
        self.state = state
        self.options = options
        self.losses = told[0].losses
        self._config = Config(
            d_in=cfg.d_in,
            d_sae=cfg.d_sae,
            n_parameters=state.layout.size,
            **state.layout.offsets,
            apply_b_dec=int(cfg.apply_b_dec_to_input),
            dead_window=options.dead_feature_window,
            beta1=options.adam_beta1,
            beta2=options.adam_beta2,
            **{name: int(value) for name, value in told[0].config.items()},
        )
        # The threads share the work, in chunks each worth a call.
        flop = 10 * options.train_batch_size_samples * cfg.d_sae * cfg.d_in
        size = max(1, int(_CHUNK_FLOP / (flop * _STEPS_PER_BLOCK)))
        threads = options.threads or torch.get_num_threads()
        self.chunks = even_slices(len(cfgs), max(-(-len(cfgs) // size), min(len(cfgs), threads)))
        threshold = state.buffers.get("topk_threshold")
        saes = [
            Sae(
                params=state.params[i].data_ptr(),
                exp_avg=state.exp_avg[i].data_ptr(),
                exp_avg_sq=state.exp_avg_sq[i].data_ptr(),
                last_fired=state.last_fired[i].data_ptr(),
                window_fired=state.window_fired[i].data_ptr(),
                diverged_at=state.diverged_at[i].data_ptr(),
                topk_threshold=None if threshold is None else threshold[i].data_ptr(),
                **one.sae,
            )
            for i, one in enumerate(told)
        ]
        self._saes = [(Sae * (r.stop - r.start))(*saes[r]) for r in self.chunks]
        self._scratch: list[Tensor] = []

    @torch.no_grad()
    def prepared(self, batches: Sequence[Tensor], scale: float) -> list[Tensor]:
        """The batches, scaled, their rows padded with zeros to whole vectors."""
        width = self.kernels.vector_floats
        d_in = self._config.d_in
        padded = []
        for batch in batches:
            room = batch.new_zeros(batch.shape[0], -(-d_in // width) * width)
            torch.mul(batch, scale, out=room[:, :d_in])
            padded.append(room)
        return padded

    def advance(
        self, chunk: int, steps: Steps, sparsity: Float[Tensor, "n C"], with_metrics: bool
    ) -> StepResult:
        """Take a step per batch with one chunk."""
        rows, saes = self.chunks[chunk], self._saes[chunk]
        batches, n = steps.batches, len(steps.batches)
        config = Config.from_buffer_copy(self._config)
        config.max_batch = max(batch.shape[0] for batch in batches)
        betas = (self.options.adam_beta1, self.options.adam_beta2)
        scalars = [adam_scalars(steps.first + i, steps.rates[i], *betas) for i in range(n)]
        for sae in saes:
            sae.n_active = 0.0
        scratch = self._take_scratch(config)
        sparsity = sparsity.contiguous()
        self.kernels.advance(
            config,
            saes,
            len(saes),
            n,
            (_pointer * n)(*(batch.data_ptr() for batch in batches)),
            (_int * n)(*(batch.shape[0] for batch in batches)),
            steps.first,
            (_double * n)(*(step_size for step_size, _ in scalars)),
            (_double * n)(*(correction for _, correction in scalars)),
            sparsity.data_ptr(),
            int(with_metrics),
            -(-scratch.data_ptr() // _CACHE_LINE) * _CACHE_LINE,
        )
        self._scratch.append(scratch)
        n_active = torch.tensor([sae.n_active for sae in saes], dtype=torch.float64)
        if not with_metrics:
            return StepResult(n_active, None)
        table = torch.tensor([list(sae.metrics) for sae in saes], dtype=torch.float64)
        found: dict[str, Tensor] = dict(zip(_METRICS, table.T, strict=True))
        losses = {name: found[place] for name, place in self.losses.items()}
        window = self.options.dead_feature_window
        metrics = {
            "loss": torch.stack(list(losses.values())).sum(0),
            **losses,
            "l0": found["n_active"] / batches[-1].shape[0],
            "dead_latents": dead_after(steps.first + n, self.state.last_fired[rows], window).sum(1),
            "grad_norm": found["grad_norm"],
        }
        return StepResult(n_active, metrics)

    def _take_scratch(self, config: Config) -> Tensor:
        """Memory for one call; append and pop are atomic, so threads may share the list."""
        wanted = int(self.kernels.scratch_floats(config)) + _CACHE_LINE // 4
        while True:
            try:
                scratch = self._scratch.pop()
            except IndexError:
                return torch.empty(wanted)
            if len(scratch) >= wanted:
                return scratch
