"""SAEs that `dictionary_learning` saved: ae.pt and config.json.

What each of its classes computes from x of shape [batch, d_in], and what it becomes in sae_lens:

    AutoEncoder             relu((x − bias)·Eᵀ + e)                            standard
    AutoEncoderNew          relu(x·Eᵀ + e), the input as it is                 standard
    GatedAutoEncoder        (p + gate_bias > 0)·relu(exp(r_mag)·p + mag_bias)  gated
                            with p = (x − decoder_bias)·Eᵀ
    AutoEncoderTopK         top k of relu((x − b_dec)·Eᵀ + e)                  topk
    BatchTopKSAE, Matryoshka…  the same where above one threshold, else 0      jumprelu
    JumpReluAutoEncoder     x·W_enc + b_enc where above its threshold, else 0  jumprelu

Source: dictionary_learning 0.1.0, `dictionary.py`, `trainers/top_k.py`, `trainers/batch_top_k.py`,
`trainers/matryoshka_batch_top_k.py`. It scales biases back before it saves, so that the SAE reads
activations in their original units whatever it was trained on.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.saes.build import (
    LINEAR,
    PLAIN,
    build_sae,
    check_k,
    check_sizes,
    check_tensor,
    check_tensors,
    refuse_transcoder,
    shown,
)
from sparse_but_wrong.untrusted import damaged, one_line, quiet, read_json

if TYPE_CHECKING:
    import sae_lens
    from torch import Tensor

WEIGHTS, CONFIG = "ae.pt", "config.json"

_MOST = 4
"""How many times the size of its file a content may have. torch.save and numpy.savez do not
compress, and weights of float32 shrink to half at best where they do."""

_LAYOUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "AutoEncoder": {**LINEAR, "bias": ("d_in",)},
    "AutoEncoderNew": {**LINEAR, "decoder.bias": ("d_in",)},
    "GatedAutoEncoder": {
        "encoder.weight": ("d_sae", "d_in"),
        "decoder.weight": ("d_in", "d_sae"),
        "decoder_bias": ("d_in",),
        "r_mag": ("d_sae",),
        "gate_bias": ("d_sae",),
        "mag_bias": ("d_sae",),
    },
    "AutoEncoderTopK": {**LINEAR, "b_dec": ("d_in",), "k": (), "threshold": ()},
    "BatchTopKSAE": {**LINEAR, "b_dec": ("d_in",), "k": (), "threshold": ()},
    "MatryoshkaBatchTopKSAE": {**PLAIN, "k": (), "threshold": (), "group_sizes": ("groups",)},
    "JumpReluAutoEncoder": {**PLAIN, "threshold": ("d_sae",)},
}
_TOPK = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
# Older versions of the library saved less; what is needed of these is checked where it is needed.
_OPTIONAL = ("k", "threshold", "group_sizes")

_OWN_NAMES = ("AutoEncoder", "GatedAutoEncoder", "MatryoshkaBatchTopKSAE")
"""The classes that the names of their tensors tell apart, even from what others write."""


def read_dictionary_learning(file: Path) -> sae_lens.SAE[Any]:
    """The SAE in a file of `dictionary_learning`, as a sae_lens SAE; in float32, on the CPU.

    Args:
        file: ae.pt, or another file with an SAE's state dict. Its config.json lies beside it; that
            of checkpoints/ae_1000.pt one folder up. Without one, the class is told from the names
            of the tensors where they can belong to one class only.
    Raises:
        ValueError: a file with more in it than tensors, which is not loaded, or that would unpack
            to more than it takes; a class that is not known; a transcoder; tensors that are
            missing, unknown or of odd shapes; a BatchTopK SAE without a threshold.
    """
    tensors = _read_tensors(file)
    config_file = _config_file(file)
    config = read_json(config_file) if config_file.exists() else {}
    trainer, buffer = (
        part if isinstance(part := config.get(name), dict) else {} for name in ("trainer", "buffer")
    )
    # Transcoders are trained with the classes of SAEs; only the buffer tells.
    if buffer.get("io") not in (None, "in", "out"):
        refuse_transcoder(config_file, f"buffer.io is {shown(buffer['io'])}")
    dict_class = trainer.get("dict_class")
    if dict_class is None:
        dict_class = _class_from_names(file, tensors)
    elif not isinstance(dict_class, str) or dict_class not in _LAYOUTS:
        raise ValueError(
            f"Unknown class {shown(dict_class)} in {config_file}. Available: {', '.join(_LAYOUTS)}."
        )
    optional = _OPTIONAL if dict_class in _TOPK else ()
    sizes = check_tensors(file, tensors, _LAYOUTS[dict_class], optional)
    said = {"d_in": trainer.get("activation_dim"), "d_sae": trainer.get("dict_size")}
    check_sizes(config_file, said, sizes, file.name)
    sae = _convert(dict_class, file, tensors, trainer.get("k"), sizes)
    sae.cfg.metadata.model_name = trainer.get("lm_name")
    sae.cfg.metadata.hook_name = _hook_name(trainer, buffer)
    return sae


def _hook_name(trainer: Mapping[str, Any], buffer: Mapping[str, Any]) -> str | None:
    """Where an SAE reads: in TransformerLens' words for a residual stream, else as it is named."""
    name, layer = trainer.get("submodule_name"), trainer.get("layer")
    # The input of a module is nobody's output by that name.
    if not isinstance(name, str) or buffer.get("io") == "in":
        return None
    if isinstance(layer, int) and name in ("resid_post", f"resid_post_layer_{layer}"):
        return f"blocks.{layer}.hook_resid_post"
    return name


def _read_tensors(file: Path) -> dict[str, Tensor]:
    import pickle

    import torch

    remedy = (
        "only plain tensors are loaded, because anything else can run any code: if you trust its "
        "source, save it again with torch.save(sae.state_dict(), 'ae.pt')"
    )
    check_zip(file)
    try:
        if _makes_bytes(file):
            raise pickle.UnpicklingError("it asks for a bytearray")
        with quiet():
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch wraps the reason in a page of advice, part of which is to load it all the same.
        reason = one_line(error.__cause__ or error.__context__ or error)
        raise damaged(file, f"perhaps more than tensors: {reason}", remedy) from error
    except OSError:
        raise
    except Exception as error:  # there is no end to what torch may stumble over
        raise damaged(file, error) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise ValueError(f"{file} holds something else than tensors by name; {remedy}.")
    for name, tensor in content.items():
        if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} in {file} is no plain tensor ({tensor.layout}, {tensor.device.type}); "
                "save it dense and with its numbers, with sae.to('cpu')."
            )
    # One number may stand for a whole tensor (stride 0), and what works on it writes it out.
    _check_claim(file, sum(tensor.numel() * tensor.element_size() for tensor in content.values()))
    return {name: tensor.detach() for name, tensor in content.items()}


def check_zip(file: Path) -> None:
    """Check that a zip archive holds no more than its size allows, before anything unpacks it.

    A file that is no zip archive passes: what reads it says so.

    Raises:
        ValueError: it is damaged, or would unpack to much more than it takes.
    """
    if not _is_zip(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
    except OSError:
        raise
    except Exception as error:  # not only the module's own
        raise damaged(file, error) from error
    _check_claim(file, claimed)


def _makes_bytes(file: Path) -> bool:
    """Whether a file of torch.save asks for a bytearray, which may be of any length.

    It is one of the few things that torch.load makes besides tensors, and no state dict holds one.
    """
    name = b"bytearray"
    if _is_zip(file):
        with zipfile.ZipFile(file) as archive:
            pickles = [member for member in archive.namelist() if member.endswith(".pkl")]
            return any(name in archive.read(member) for member in pickles)
    if not file.stat().st_size:
        return False
    with file.open("rb") as content, mmap(content.fileno(), 0, access=ACCESS_READ) as everything:
        return everything.find(name) >= 0


def _is_zip(file: Path) -> bool:
    with file.open("rb") as content:  # as torch and numpy tell
        return content.read(4) == b"PK\x03\x04"


def _check_claim(file: Path, claimed: int) -> None:
    size = file.stat().st_size
    if claimed > _MOST * size:
        raise ValueError(
            f"{file} claims to hold {claimed:,} bytes of numbers but has {size:,}; it was not "
            "unpacked. Save the SAE again from a source that you trust, uncompressed and with its "
            "tensors contiguous."
        )


def _config_file(file: Path) -> Path:
    beside = file.parent / CONFIG
    if not beside.exists() and file.parent.name == "checkpoints":
        return file.parent.parent / CONFIG
    return beside


def _class_from_names(file: Path, tensors: Mapping[str, Tensor]) -> str:
    names = set(tensors)
    for dict_class in _OWN_NAMES:
        if names == set(_LAYOUTS[dict_class]):
            return dict_class
    could_be = [
        dict_class
        for dict_class, layout in _LAYOUTS.items()
        if set(layout) - set(_OPTIONAL if dict_class in _TOPK else ()) <= names <= set(layout)
    ]
    could = f"could belong to {' or '.join(could_be)}" if could_be else "belong to no known class"
    raise ValueError(
        f"the class of the SAE in {file} is not known: its tensors ({', '.join(sorted(names))}) "
        f"{could}. Put its {CONFIG} beside it, at least "
        f'{{"trainer": {{"dict_class": "…"}}}} with one of {", ".join(_LAYOUTS)}.'
    )


def _convert(
    dict_class: str, file: Path, tensors: Mapping[str, Tensor], k: object, sizes: dict[str, int]
) -> sae_lens.SAE[Any]:
    import torch
    from sae_lens import GatedSAEConfig, JumpReLUSAEConfig, StandardSAEConfig, TopKSAEConfig

    d_in, d_sae = sizes["d_in"], sizes["d_sae"]
    if "W_enc" in tensors:
        weights = {name: tensors[name] for name in PLAIN}
    else:
        b_dec = next(n for n in ("bias", "decoder.bias", "decoder_bias", "b_dec") if n in tensors)
        weights = {
            "W_enc": tensors["encoder.weight"].T,
            "W_dec": tensors["decoder.weight"].T,
            "b_dec": tensors[b_dec],
        }
        if "encoder.bias" in tensors:
            weights["b_enc"] = tensors["encoder.bias"]

    options: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae}
    if dict_class in ("AutoEncoderNew", "JumpReluAutoEncoder"):
        options["apply_b_dec_to_input"] = False
    if dict_class in ("AutoEncoder", "AutoEncoderNew"):
        kind = StandardSAEConfig
    elif dict_class == "GatedAutoEncoder":
        kind = GatedSAEConfig
        weights["r_mag"] = tensors["r_mag"]
        weights["b_gate"], weights["b_mag"] = tensors["gate_bias"], tensors["mag_bias"]
    elif dict_class == "AutoEncoderTopK":
        kind = TopKSAEConfig
        options["k"] = _k(file, tensors, k, d_sae)
    else:
        kind = JumpReLUSAEConfig
        has_own = dict_class == "JumpReluAutoEncoder"
        threshold = tensors["threshold"] if has_own else _threshold(file, tensors).repeat(d_sae)
        weights["threshold"] = threshold
    sae = build_sae(kind(**options), weights, f"dictionary_learning {dict_class}")
    norms = sae.W_dec.detach().norm(dim=-1)
    # As the library does when it loads this class.
    if dict_class == "AutoEncoder" and not torch.allclose(norms, torch.ones_like(norms)):
        sae.fold_W_dec_norm()
    return sae


def _k(file: Path, tensors: Mapping[str, Tensor], configured: object, d_sae: int) -> int:
    """The k of a TopK SAE.

    The library writes the config before it trains, and a checkpoint with its state. Where it
    anneals k, it comes down to that of the config from as many as there are numbers in an
    activation, so in between a checkpoint was trained with, and is used with, its own.
    """
    if "k" not in tensors:
        if configured is None:
            raise ValueError(f"the TopK SAE in {file} has no k; write trainer.k into {CONFIG}.")
        return check_k(file, configured, d_sae)
    k = check_k(file, tensors["k"].item(), d_sae)
    if configured is None:
        return k
    final, d_in = check_k(_config_file(file), configured, d_sae), len(tensors["b_dec"])
    if k != final and not final < k <= d_in:
        raise ValueError(
            f"{file} says k = {k}, but {CONFIG} says k = {final}, which annealing from {d_in} does "
            "not explain; copy both files from the same SAE."
        )
    return k


def _threshold(file: Path, tensors: Mapping[str, Tensor]) -> Tensor:
    threshold = tensors.get("threshold")
    # The library starts from −1, which means that no threshold has been measured.
    if threshold is None or not 0 <= threshold.item() < math.inf:
        has = "no threshold" if threshold is None else f"the threshold {threshold.item():g}"
        raise ValueError(
            f"the BatchTopK SAE in {file} has {has}: none was measured in training. Train it "
            "beyond threshold_start_step, or set 'threshold' to the mean over batches of its "
            "smallest activation that is kept."
        )
    check_tensor(file, "threshold", threshold)
    return threshold
