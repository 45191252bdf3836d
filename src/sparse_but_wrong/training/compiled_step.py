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
from sparse_but_wrong.training.stack import (
    Metrics,
    Stack,
    Steps,
    adam_scalars,
    dead_after,
    even_slices,
    metrics_of,
)

_CACHE_LINE = 64

# A chunk's steps on one block of batches should take a few milliseconds, so that handing them to a
# thread (about 50 µs) does not count.
_CHUNK_FLOP = 2e9
_STEPS_PER_BLOCK = 16

_int, _double, _pointer = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p

# What is handed over, by its type in C++; kernels.cpp is compiled with declarations made from this.
_CONFIG = {
    # n_parameters: floats of one SAE's flat parameters; W_enc … threshold: where each begins;
    # widths: of the n_levels nested levels of latents
    "int64_t": "policy d_in d_sae n_parameters W_enc W_dec b_enc b_dec threshold apply_b_dec mode "
    "ste_to_input has_pre_act_loss rescale dead_window max_batch n_levels aux_by_level "
    "decoder_is_frozen",
    "int64_t*": "widths",
    "double": "beta1 beta2",
}
_SAE = {
    "float*": "params exp_avg exp_avg_sq window_fired",
    "int64_t*": "last_fired diverged_at",
    # kth_value: of the last step, where to look for the next; n_active: added to over a call's
    # steps; from n_active_last on what a step reports, and the reconstruction loss of each level
    "double*": "topk_threshold mse_losses",
    "double": "bandwidth tanh_scale target_l0 pre_act_coefficient aux_coefficient "
    "topk_threshold_lr kth_value n_active n_active_last grad_norm l0_loss pre_act_loss "
    "auxiliary_reconstruction_loss",
}


def _structure(name: str, fields: dict[str, str]) -> tuple[Any, str]:
    """A structure as ctypes knows it, and its declaration in C++."""
    places = [(kind, field) for kind, names in fields.items() for field in names.split()]
    kinds = {"int64_t": _int, "double": _double}
    contents = {
        "__slots__": (),  # a field that it has not is an error
        "_fields_": [(field, kinds.get(kind, _pointer)) for kind, field in places],
    }
    declared = " ".join(f"{kind} {field};" for kind, field in places)
    return type(name, (ctypes.Structure,), contents), f"struct {name} {{ {declared} }};\n"


_Config, _config_declared = _structure("Config", _CONFIG)
_Sae, _sae_declared = _structure("Sae", _SAE)
DECLARATIONS = "#include <cstdint>\n" + _config_declared + _sae_declared


def typed(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library, told of its functions' types; an AttributeError if it lacks one of them."""
    config, sae, doubles = (ctypes.POINTER(kind) for kind in (_Config, _Sae, _double))
    library.vector_floats.restype = library.scratch_floats.restype = _int
    library.scratch_floats.argtypes = (config,)
    library.advance.restype = None
    library.advance.argtypes = (
        *(config, sae, _int, _int, ctypes.POINTER(_pointer), ctypes.POINTER(_int), _int),
        *(doubles, doubles, _pointer, _int, _pointer),
    )
    library.descend.restype = None
    library.descend.argtypes = (_pointer, _int, _int, ctypes.c_float, _int, *(_pointer,) * 3)
    return library


@functools.cache
def kernels() -> ctypes.CDLL | None:
    """The compiled loops; None, said once, where they cannot be had."""
    library = build.library(DECLARATIONS)
    try:
        return None if library is None else typed(library)
    except AttributeError as error:
        build.say_without(error)
        return None


class CompiledStepper:
    """Steps a stack with the compiled loops.

    An SAE takes all its steps on a block before the next SAE's turn, on one thread and with its
    parameters in cache. So its result cannot depend on any other.
    """

    def __init__(
        self,
        kernels: ctypes.CDLL,
        architecture: type[Architecture],
        cfgs: Sequence[Any],
        stack: Stack,
        options: TrainOptions,
    ) -> None:
        cfg = cfgs[0]
        told = [one for cfg in cfgs if (one := architecture.compiled(cfg)) is not None]
        self.kernels = kernels
        self.stack = stack
        self.options = options
        self.losses = told[0].losses
        widths = told[0].widths
        self._widths = (_int * len(widths))(*widths)
        self._mse_losses = torch.zeros(len(cfgs), len(widths), dtype=torch.float64)
        shared = _CONFIG["int64_t"].split()
        self._config = _Config(
            d_in=cfg.d_in,
            d_sae=cfg.d_sae,
            n_parameters=stack.params.shape[1],
            **stack.offsets,
            apply_b_dec=int(cfg.apply_b_dec_to_input),
            decoder_is_frozen=int(stack.decoder_is_frozen),
            dead_window=options.dead_feature_window,
            n_levels=len(widths),
            widths=ctypes.addressof(self._widths),
            beta1=options.adam_beta1,
            beta2=options.adam_beta2,
            **{name: int(value) for name, value in told[0].options.items() if name in shared},
        )
        # The threads share the work, in chunks each worth a call.
        flop = 10 * options.train_batch_size_samples * cfg.d_sae * cfg.d_in
        size = max(1, int(_CHUNK_FLOP / (flop * _STEPS_PER_BLOCK)))
        threads = options.threads or torch.get_num_threads()
        self.chunks = even_slices(len(cfgs), max(-(-len(cfgs) // size), min(len(cfgs), threads)))
        places = " ".join(_SAE[kind] for kind in ("float*", "int64_t*", "double*")).split()
        tensors = {k.removeprefix("buffer."): v for k, v in stack.tensors().items()}
        tensors["mse_losses"] = self._mse_losses
        saes = [
            _Sae(
                **{name: tensors[name][i].data_ptr() for name in places if name in tensors},
                **{name: value for name, value in one.options.items() if name not in shared},
            )
            for i, one in enumerate(told)
        ]
        self._saes = [(_Sae * (r.stop - r.start))(*saes[r]) for r in self.chunks]
        self._scratch: list[Tensor] = []

    @torch.no_grad()
    def prepared(self, batches: Sequence[Tensor], scale: float) -> list[Tensor]:
        """The batches, scaled, their rows padded with zeros to whole vectors."""
        width, d_in = self.kernels.vector_floats(), self._config.d_in
        padded = []
        for batch in batches:
            room = batch.new_zeros(batch.shape[0], -(-d_in // width) * width)
            torch.mul(batch, scale, out=room[:, :d_in])
            padded.append(room)
        return padded

    def advance(
        self, chunk: int, steps: Steps, sparsity: Float[Tensor, "n C"], with_metrics: bool
    ) -> tuple[Float[Tensor, " C"], Metrics | None]:
        """As `TorchStepper.advance`."""
        rows, saes = self.chunks[chunk], self._saes[chunk]
        batches, n = steps.batches, len(steps.batches)
        config = _Config.from_buffer_copy(self._config)
        config.max_batch = max(batch.shape[0] for batch in batches)
        step_sizes, corrections = zip(*adam_scalars(steps, self.options), strict=True)
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
            (_double * n)(*step_sizes),
            (_double * n)(*corrections),
            sparsity.data_ptr(),
            int(with_metrics),
            -(-scratch.data_ptr() // _CACHE_LINE) * _CACHE_LINE,
        )
        self._scratch.append(scratch)

        def reported(field: str) -> Float[Tensor, " C"]:
            return torch.tensor([getattr(sae, field) for sae in saes], dtype=torch.float64)

        metrics = None
        if with_metrics:
            n_steps, window = steps.first + n, self.options.dead_feature_window
            of_levels = self._mse_losses[rows].T.clone()
            others = [reported(name) for name in self.losses[len(of_levels) :]]
            metrics = metrics_of(
                dict(zip(self.losses, [*of_levels, *others], strict=True)),
                reported("n_active_last") / batches[-1].shape[0],
                dead_after(n_steps, self.stack.last_fired[rows], window),
                reported("grad_norm"),
            )
        return reported("n_active"), metrics

    def _take_scratch(self, config: Any) -> Tensor:
        """Memory for one call; append and pop are atomic, so threads may share the list."""
        wanted = int(self.kernels.scratch_floats(config)) + _CACHE_LINE // 4
        while True:
            try:
                scratch = self._scratch.pop()
            except IndexError:
                return torch.empty(wanted)
            if len(scratch) >= wanted:
                return scratch
