"""From the files of another library to a sae_lens SAE: what all readers check, and the building."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.untrusted import quiet

if TYPE_CHECKING:
    import sae_lens
    from torch import Tensor

PLAIN: dict[str, tuple[str, ...]] = {
    "W_enc": ("d_in", "d_sae"),
    "b_enc": ("d_sae",),
    "W_dec": ("d_sae", "d_in"),
    "b_dec": ("d_in",),
}
"""The tensors of an SAE under sae_lens' names, which others use too, with names of their sizes."""

LINEAR = {
    "encoder.weight": ("d_sae", "d_in"),
    "encoder.bias": ("d_sae",),
    "decoder.weight": ("d_in", "d_sae"),
}
"""The same where encoder and decoder are linear layers of PyTorch."""


def shown(value: object) -> str:
    """A value from somebody else's file as messages show it: on one line, and never long."""
    return reprlib.repr(value)


def expect(is_good: bool, file: Path, name: str, value: object, wanted: str) -> None:
    """Raise ValueError for a value of a file that is not what it should be."""
    if not is_good:
        raise ValueError(f"{name} in {file} is {shown(value)}; it must be {wanted}.")


def refuse_transcoder(file: Path, why: str) -> None:
    """Refuse an SAE whose decoder writes to other activations than its encoder reads."""
    raise ValueError(f"{file} is a transcoder ({why}), and only autoencoders can be evaluated.")


def check_tensors(
    file: Path,
    tensors: Mapping[str, Tensor],
    layout: Mapping[str, tuple[str, ...]],
    optional: Collection[str] = (),
) -> dict[str, int]:
    """Check that a file holds the tensors that a kind of SAE has, of shapes that agree.

    Args:
        layout: every tensor there may be, and the names of its sizes, such as ("d_sae", "d_in").
        optional: those of them that may be missing.
    Returns:
        the size that each name in the layout stands for.
    Raises:
        ValueError: tensors that are missing or unknown, sizes that do not agree, or weights that
            are no floating-point numbers. Non-finite numbers are let through.
    """
    missing = [name for name in layout if name not in tensors and name not in optional]
    unknown = [name for name in tensors if name not in layout]
    if missing or unknown:
        wrong = [f"misses {', '.join(missing)}"] if missing else []
        wrong += [f"holds {', '.join(unknown)}, which do not belong there"] if unknown else []
        raise ValueError(
            f"{file} {' and '.join(wrong)}; an SAE of its kind has {', '.join(layout)}. Save the "
            "SAE's state dict as it is."
        )
    sizes: dict[str, int] = {}
    by: dict[str, str] = {}
    for name, dimensions in layout.items():
        if name not in tensors:
            continue
        shape = list(tensors[name].shape)
        said = f"{name} in {file} has the shape {shape}"
        if len(shape) != len(dimensions):
            raise ValueError(f"{said}, not [{', '.join(dimensions)}]; save all as it was trained.")
        for dimension, size in zip(dimensions, shape, strict=True):
            if sizes.setdefault(dimension, size) != size:
                raise ValueError(
                    f"{said}, [{', '.join(dimensions)}], but {by[dimension]} has {dimension} = "
                    f"{sizes[dimension]}; save all tensors of the same SAE."
                )
            by.setdefault(dimension, name)
        if "d_in" in dimensions or "d_sae" in dimensions:
            check_tensor(file, name, tensors[name])
    return sizes


def check_tensor(file: Path, name: str, tensor: Tensor) -> None:
    """Raise ValueError for a tensor that is empty, or not of a floating-point type."""
    expect(tensor.is_floating_point(), file, name, tensor.dtype, "of a floating-point type")
    expect(0 not in tensor.shape, file, name, list(tensor.shape), "of an SAE that has latents")


def check_sizes(
    file: Path, said: Mapping[str, object], sizes: Mapping[str, int], weights: str
) -> None:
    """Raise ValueError for a config that states other sizes than its weights have; None is open.

    Args:
        weights: the name of the file with the weights, for messages.
    """
    for name, size in said.items():
        if size is not None and size != sizes[name]:
            raise ValueError(
                f"{file} says {name} = {shown(size)}, but the weights in {weights} have "
                f"{sizes[name]}; copy both files from the same SAE."
            )


def check_k(file: Path, k: object, d_sae: int) -> int:
    """How many latents a TopK SAE keeps; 12.0 counts as 12."""
    whole = int(k) if isinstance(k, float) and k.is_integer() else k
    is_good = type(whole) is int and 1 <= whole <= d_sae
    expect(is_good, file, "k", k, f"a whole number from 1 to {d_sae}, the number of latents")
    return whole  # pyright: ignore[reportReturnType]


def check_positive(file: Path, name: str, value: Any) -> float:
    """A finite number above 0."""
    is_good = type(value) in (int, float) and 0 < value <= sys.float_info.max
    expect(is_good, file, name, value, "a positive number")
    return float(value)


def check_flag(file: Path, config: Mapping[str, object], name: str) -> bool:
    """Whether a config sets a flag; one that is missing or null is not set."""
    value = config.get(name)
    expect(value in (None, True, False), file, name, value, "true or false")
    return bool(value)


def build_sae(
    config: sae_lens.SAEConfig, weights: Mapping[str, Tensor], converted_from: str
) -> sae_lens.SAE[Any]:
    """A sae_lens SAE for inference of given weights, by sae_lens' names; in float32, on the CPU."""
    import torch
    from sae_lens import SAE

    state = {
        name: tensor.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()
        for name, tensor in weights.items()
    }
    with quiet():
        # Made without memory first, as sae_lens does: initial weights would be drawn for nothing,
        # and would advance the caller's random numbers.
        sae = SAE.from_dict({**config.to_dict(), "dtype": "float32", "device": "meta"})
        sae.load_state_dict(state, assign=True)
        sae = sae.to(device="cpu")
    sae.cfg.metadata.converted_from = converted_from
    return sae
