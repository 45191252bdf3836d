"""The compiled loops as Python sees them; mirrors the structures in kernels.cpp field by field.

Axes: D d_in, H d_sae, P flat parameters of one SAE.
"""

from __future__ import annotations

import ctypes
import functools

from sparse_but_wrong.training.native import build

MAX_LEVELS = 32

ARCHITECTURES = ("jumprelu", "standard", "gated", "topk", "batchtopk")
MODES = ("step", "tanh", "quadratic")
FIGURES = ("mse", "sparsity", "pre_act", "aux", "n_active", "grad_norm")

_int, _double, _pointer = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class Config(ctypes.Structure):
    """What the SAEs of a stack have in common."""

    _fields_ = (
        ("architecture", _int),
        ("d_in", _int),
        ("d_sae", _int),
        ("n_parameters", _int),
        ("W_enc", _int),
        ("W_dec", _int),
        ("b_dec", _int),
        ("threshold", _int),
        ("b_mag", _int),
        ("r_mag", _int),
        ("b_enc", _int),
        ("apply_b_dec", _int),
        ("mode", _int),
        ("ste_to_input", _int),
        ("has_pre_act_loss", _int),
        ("rescale", _int),
        ("n_levels", _int),
        ("widths", _int * MAX_LEVELS),
        ("matryoshka_aux", _int),
        ("dead_window", _int),
        ("max_batch", _int),
        ("beta1", _double),
        ("beta2", _double),
    )


class Sae(ctypes.Structure):
    """One SAE: where its state lies, its own options, and what a step leaves to be told."""

    _fields_ = (
        ("params", _pointer),
        ("exp_avg", _pointer),
        ("exp_avg_sq", _pointer),
        ("last_fired", _pointer),
        ("window_fired", _pointer),
        ("diverged_at", _pointer),
        ("topk_threshold", _pointer),
        ("bandwidth", _double),
        ("tanh_scale", _double),
        ("target_l0", _double),
        ("pre_act_coefficient", _double),
        ("aux_coefficient", _double),
        ("topk_threshold_lr", _double),
        ("kth_value", _double),
        ("n_active", _double),
        ("figures", _double * (len(FIGURES) + MAX_LEVELS)),
    )


class Kernels:
    """The functions of the library, with their types.

    Raises:
        AttributeError: the library lacks one of them.
        RuntimeError: its structures are not those of this module.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, structure in (("config_bytes", Config), ("sae_bytes", Sae)):
            function = getattr(library, name)
            function.restype = _int
            if function() != ctypes.sizeof(structure):
                raise RuntimeError(
                    f"kernels.cpp and bindings.py disagree about {structure.__name__}; reinstall "
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
            ctypes.POINTER(Config),
            ctypes.POINTER(Sae),
            _int,
            _int,
            ctypes.POINTER(_pointer),
            ctypes.POINTER(_int),
            _int,
            ctypes.POINTER(_double),
            ctypes.POINTER(_double),
            _pointer,
            _int,
            _pointer,
        )


@functools.cache
def kernels() -> Kernels | None:
    """The compiled loops; None where they cannot be had."""
    library = build.library()
    if library is None:
        return None
    try:
        return Kernels(library)
    except (AttributeError, RuntimeError) as error:  # a function is missing, or is not as expected
        build.say_without(error)
        return None
