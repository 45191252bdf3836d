"""From the tensors of another library to a sae_lens SAE."""

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

Layout = Mapping[str, tuple[str, ...]]
"""The name of every tensor -> the names of its sizes, such as ("d_sae", "d_in")."""

PLAIN: dict[str, tuple[str, ...]] = {
    "W_enc": ("d_in", "d_sae"),
    "b_enc": ("d_sae",),
    "W_dec": ("d_sae", "d_in"),
    "b_dec": ("d_in",),
}
"""The tensors of an SAE under sae_lens' names, which others use too."""


def shown(value: object) -> str:
    """A value from somebody else's file as messages show it: on one line, and never long."""
    return reprlib.repr(value)


def check_tensors(
    file: Path, tensors: Mapping[str, Tensor], layout: Layout, optional: Collection[str] = ()
) -> dict[str, int]:
    """Check that a file holds the tensors that a kind of SAE has, of shapes that agree.

    Args:
        file: only named in messages.
        layout: every tensor there may be.
        optional: those of them that may be missing.
    Returns:
        the size that each name in the layout stands for.
    Raises:
        ValueError: tensors that are missing, unknown or not of numbers with a fraction (those
            with sizes), or shapes that do not agree. Non-finite numbers are let through.
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
        if len(shape) != len(dimensions):
            raise ValueError(
                f"{name} in {file} has the shape {shape}, not [{', '.join(dimensions)}]; save the "
                "SAE's state dict as it is."
            )
        for dimension, size in zip(dimensions, shape, strict=True):
            if sizes.setdefault(dimension, size) != size:
                raise ValueError(
                    f"{name} in {file} has the shape {shape}, [{', '.join(dimensions)}], but "
                    f"{by[dimension]} has {dimension} = {sizes[dimension]}; save all tensors of "
                    "the same SAE."
                )
            by.setdefault(dimension, name)
        if "d_in" in dimensions or "d_sae" in dimensions:
            check_tensor(file, name, tensors[name])
    return sizes


def check_tensor(file: Path, name: str, tensor: Tensor) -> None:
    """Check that a tensor can hold weights.

    Raises:
        ValueError: it is empty, or not of a floating-point type.
    """
    if not tensor.is_floating_point():
        raise ValueError(
            f"{name} in {file} is of type {tensor.dtype}, not of a floating-point type; save the "
            "SAE unquantised."
        )
    if 0 in tensor.shape:
        raise ValueError(f"{name} in {file} is empty; save an SAE that has latents.")


def check_sizes(
    file: Path, said: Mapping[str, object], sizes: Mapping[str, int], weights: str
) -> None:
    """Check that a config states the sizes that the weights have.

    Args:
        file: the config, only named in messages.
        said: by name of the size; None where the config leaves it open.
        weights: the name of the file with the weights, for messages.
    Raises:
        ValueError: another size.
    """
    for name, size in said.items():
        if size is not None and size != sizes[name]:
            raise ValueError(
                f"{file} says {name} = {shown(size)}, but the weights in {weights} have "
                f"{sizes[name]}; copy both files from the same SAE."
            )


def check_k(file: Path, k: object, d_sae: int) -> int:
    """How many latents a TopK SAE keeps; 12.0 counts as 12.

    Raises:
        ValueError: not a whole number from 1 to d_sae.
    """
    whole = int(k) if isinstance(k, float) and k.is_integer() else k
    if isinstance(whole, bool) or not isinstance(whole, int) or not 1 <= whole <= d_sae:
        raise ValueError(
            f"k in {file} is {shown(k)}, not a whole number from 1 to {d_sae}, the number of "
            "latents; set it to what the SAE was trained with."
        )
    return whole


def check_positive(file: Path, name: str, value: object) -> float:
    """A finite number above 0 that a config gives.

    Raises:
        ValueError: anything else.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value <= sys.float_info.max
    ):
        raise ValueError(
            f"{name} in {file} is {shown(value)}, not a positive number; copy the file again from "
            "its source."
        )
    return float(value)


def check_flag(file: Path, config: Mapping[str, object], name: str) -> bool:
    """Whether a config sets a flag; one that is missing or null is not set.

    Raises:
        ValueError: anything else than true or false.
    """
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(
            f"{name} in {file} is {shown(value)}, neither true nor false; copy the file again from "
            "its source."
        )
    return bool(value)


def build_sae(config: sae_lens.SAEConfig, weights: Mapping[str, Tensor]) -> sae_lens.SAE[Any]:
    """A sae_lens SAE of given weights, in float32, on the CPU.

    Args:
        config: of a sae_lens SAE for inference.
        weights: by sae_lens' names of them, of the shapes that the config asks for.
    """
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
        return sae.to(device="cpu")
