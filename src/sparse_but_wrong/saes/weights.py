"""Weights that somebody else saved: read safely, checked, and made into SAEs of sae_lens."""

from __future__ import annotations

import pickle
import reprlib
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.untrusted import damaged, one_line, quiet

if TYPE_CHECKING:
    import sae_lens
    from torch import Tensor

OPTIONAL = ("k", "one_threshold", "group_sizes")
"""What an SAE's state dict may hold or lack that is no weight."""

PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
LINEAR = {"encoder.weight": "W_enc.T", "encoder.bias": "b_enc", "decoder.weight": "W_dec.T"}
"""Encoder and decoder as linear layers of PyTorch."""

_MOST = 4
"""How many times the size of its file a content may have. torch.save and numpy.savez do not
compress, and weights of float32 shrink to half at best where they do."""


_ONLY_TENSORS = (
    "only plain tensors are loaded, because anything else can run any code: if you trust its "
    "source, save it again with torch.save(sae.state_dict(), 'ae.pt')"
)


def shown(value: object) -> str:
    """A value from somebody else's file as messages show it: on one line, and never long."""
    return reprlib.repr(value)


def expect(is_good: bool, file: Path, name: str, value: object, wanted: str) -> None:
    """Raise ValueError for a value of a file that is not what it should be."""
    if not is_good:
        raise ValueError(f"{name} in {file} is {shown(value)}; it must be {wanted}.")


def check_choice(file: Path, config: Mapping[str, Any], name: str, *choices: object) -> Any:
    """A field of a config that must be one of these; the first where it is missing."""
    value = config.get(name, choices[0])
    expect(value in choices, file, name, value, " or ".join(map(repr, choices)))
    return value


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


def check_sizes(file: Path, weights_file: str, decoder: Tensor, **said: object) -> None:
    """Raise ValueError for a config whose `d_in` or `d_sae` is not that of its decoder
    [d_sae, d_in]; None is open."""
    for name, size in zip(("d_sae", "d_in"), decoder.shape, strict=True):
        if said[name] is not None and said[name] != size:
            raise ValueError(
                f"{file} says {name} = {shown(said[name])}, but the weights in {weights_file} have "
                f"{size}; copy both files from the same SAE."
            )


def check_tensor(file: Path, name: str, tensor: Tensor) -> None:
    """Raise ValueError for a tensor that is empty, or not of a floating-point type."""
    expect(tensor.is_floating_point(), file, name, tensor.dtype, "of a floating-point type")
    expect(0 not in tensor.shape, file, name, list(tensor.shape), "of an SAE that has latents")


def refuse_transcoder(file: Path, why: str) -> None:
    """Refuse an SAE whose decoder writes to other activations than its encoder reads."""
    raise ValueError(f"{file} is a transcoder ({why}), and only autoencoders can be evaluated.")


def by_sae_lens_names(
    file: Path, tensors: Mapping[str, Tensor], layout: Mapping[str, str]
) -> dict[str, Tensor]:
    """The tensors of a file by sae_lens' names, once they are those that a kind of SAE has.

    Whether their sizes agree is for torch to say when it loads them.

    Args:
        layout: sae_lens' name for every tensor of the kind; "W_enc.T" for one that is transposed.
    Raises:
        ValueError: tensors that are missing or unknown, or weights that are no floating-point
            numbers. Non-finite numbers are let through.
    """
    missing = [name for name, to in layout.items() if name not in tensors and to not in OPTIONAL]
    unknown = [name for name in tensors if name not in layout]
    if missing or unknown:
        wrong = [f"misses {', '.join(missing)}"] if missing else []
        wrong += [f"holds {', '.join(unknown)}, which do not belong there"] if unknown else []
        raise ValueError(
            f"{file} {' and '.join(wrong)}; an SAE of its kind has {', '.join(layout)}. Save the "
            "SAE's state dict as it is."
        )
    weights = {}
    for name, target in layout.items():
        if target not in OPTIONAL:
            check_tensor(file, name, tensors[name])
        if name in tensors:
            is_turned = target.endswith(".T")
            weights[target.removesuffix(".T")] = tensors[name].mT if is_turned else tensors[name]
    shape = list(weights["W_dec"].shape)
    expect(len(shape) == 2, file, "the shape of the decoder", shape, "that of a matrix")
    return weights


def read_torch(file: Path) -> dict[str, Tensor]:
    """The tensors by name that torch.save wrote; whatever else a file holds is not loaded."""
    import torch

    with _unpacking(file):
        content = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise ValueError(f"{file} holds something else than tensors by name; {_ONLY_TENSORS}.")
    for name, tensor in content.items():
        if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} in {file} is no plain tensor ({tensor.layout}, {tensor.device.type}); "
                "save it dense and with its numbers, with sae.to('cpu')."
            )
    # One number may stand for a whole tensor (stride 0), and what works on it writes it out.
    _check_claim(file, sum(tensor.numel() * tensor.element_size() for tensor in content.values()))
    return content


def read_npz(file: Path) -> dict[str, Tensor]:
    """The arrays by name that numpy.savez wrote; nothing is unpickled."""
    import numpy as np
    import torch

    tensors = {}
    with _unpacking(file), np.load(file, allow_pickle=False) as archive:
        for name, array in archive.items():
            tensors[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    return tensors


class _Oversized(ValueError):
    """A file that claims to hold much more than its size allows."""


@contextmanager
def _unpacking(file: Path) -> Iterator[None]:
    """While torch or numpy read a file, which they may once it is found harmless.

    Raises:
        ValueError: a zip archive that would unpack to much more than it takes; a pickle with more
            in it than tensors; a damaged file.
    """
    try:
        with file.open("rb") as content:
            is_zip = content.read(4) == b"PK\x03\x04"  # as torch and numpy tell
        if is_zip:
            with zipfile.ZipFile(file) as archive:
                _check_claim(file, sum(member.file_size for member in archive.infolist()))
                pickles = [archive.read(n) for n in archive.namelist() if n.endswith(".pkl")]
        else:
            pickles = [file.read_bytes()]
        # One of the few things that torch.load makes besides tensors, and of any length; no state
        # dict holds one.
        if any(b"bytearray" in pickled for pickled in pickles):
            raise pickle.UnpicklingError("it asks for a bytearray")
        with quiet():
            yield
    except (OSError, _Oversized):
        raise
    except pickle.UnpicklingError as error:
        # torch wraps the reason in a page of advice, part of which is to load it all the same.
        reason = one_line(error.__cause__ or error.__context__ or error)
        raise damaged(file, f"perhaps more than tensors: {reason}", _ONLY_TENSORS) from error
    except Exception as error:  # there is no end to what they may stumble over
        raise damaged(file, error) from error


def _check_claim(file: Path, claimed: int) -> None:
    size = file.stat().st_size
    if claimed > _MOST * size:
        raise _Oversized(
            f"{file} claims to hold {claimed:,} bytes of numbers but has {size:,}; it was not "
            "unpacked. Save the SAE again from a source that you trust, uncompressed and with its "
            "tensors contiguous."
        )


def load_with_sae_lens(
    folder: Path,
    sae_class: type[sae_lens.SAE[Any]],
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
) -> sae_lens.SAE[Any]:
    """The SAE that sae_lens makes of a config and weights; in float32, on the CPU.

    No random numbers are drawn for initial weights, because sae_lens starts without memory.
    """
    import torch

    config = {**config, "dtype": "float32", "device": "cpu"}
    full = {
        name: tensor.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()
        for name, tensor in weights.items()
    }
    try:
        with quiet():
            return sae_class.load_from_disk(folder, converter=lambda *_, **__: (config, full))
    except Exception as error:  # sae_lens and torch each have their own
        says = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(
            f"the SAE in {folder} cannot be loaded ({says}); copy its config and its weights "
            "again, both from the same SAE."
        ) from error


def build_sae(
    file: Path, architecture: str, weights: Mapping[str, Tensor], library: str, **options: Any
) -> sae_lens.SAE[Any]:
    """A sae_lens SAE for inference of weights by sae_lens' names; in float32, on the CPU.

    Args:
        library: where it comes from.
        options: other fields of the architecture's config; hook_name and model_name, if known.
    """
    import sae_lens

    d_sae, d_in = weights["W_dec"].shape
    metadata = {name: options.pop(name, None) for name in ("hook_name", "model_name")}
    metadata |= {"converted_from": library, "sae_lens_version": sae_lens.__version__}
    config = {"architecture": architecture, "d_in": d_in, "d_sae": d_sae, "metadata": metadata}
    return load_with_sae_lens(file.parent, sae_lens.SAE, {**config, **options}, weights)
