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
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.saes.archive import check_claim, check_zip, makes_bytes
from sparse_but_wrong.saes.build import (
    PLAIN,
    build_sae,
    check_k,
    check_sizes,
    check_tensor,
    check_tensors,
    shown,
)
from sparse_but_wrong.untrusted import one_line, quiet, read_json

if TYPE_CHECKING:
    import sae_lens
    from torch import Tensor

WEIGHTS = "ae.pt"
CONFIG = "config.json"

_LINEAR = {
    "encoder.weight": ("d_sae", "d_in"),
    "encoder.bias": ("d_sae",),
    "decoder.weight": ("d_in", "d_sae"),
}
_LAYOUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "AutoEncoder": {**_LINEAR, "bias": ("d_in",)},
    "AutoEncoderNew": {**_LINEAR, "decoder.bias": ("d_in",)},
    "GatedAutoEncoder": {
        "encoder.weight": ("d_sae", "d_in"),
        "decoder.weight": ("d_in", "d_sae"),
        "decoder_bias": ("d_in",),
        "r_mag": ("d_sae",),
        "gate_bias": ("d_sae",),
        "mag_bias": ("d_sae",),
    },
    "AutoEncoderTopK": {**_LINEAR, "b_dec": ("d_in",), "k": (), "threshold": ()},
    "BatchTopKSAE": {**_LINEAR, "b_dec": ("d_in",), "k": (), "threshold": ()},
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
    trainer, buffer = _part(config, "trainer"), _part(config, "buffer")
    _check_not_transcoder(config_file, buffer)
    dict_class = trainer.get("dict_class")
    if dict_class is None:
        dict_class = _class_from_names(file, tensors)
    elif not isinstance(dict_class, str) or dict_class not in _LAYOUTS:
        raise ValueError(
            f"{config_file} names the class {shown(dict_class)}, which is not known; known are "
            f"{', '.join(_LAYOUTS)}."
        )
    optional = _OPTIONAL if dict_class in _TOPK else ()
    sizes = check_tensors(file, tensors, _LAYOUTS[dict_class], optional)
    said = {"d_in": trainer.get("activation_dim"), "d_sae": trainer.get("dict_size")}
    check_sizes(config_file, said, sizes, file.name)
    sae = _convert(dict_class, file, tensors, trainer.get("k"), sizes)
    sae.cfg.metadata.converted_from = f"dictionary_learning {dict_class}"
    sae.cfg.metadata.model_name = trainer.get("lm_name")
    sae.cfg.metadata.hook_name = _hook_name(trainer, buffer)
    return sae


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _check_not_transcoder(file: Path, buffer: Mapping[str, Any]) -> None:
    """Refuse what was trained to give a module's output from its input.

    The library trains transcoders with the classes of its SAEs; only the buffer tells.
    """
    if buffer.get("io") not in (None, "in", "out"):
        raise ValueError(
            f"{file} describes a transcoder (buffer.io is {shown(buffer['io'])}), whose decoder "
            "writes to other activations than its encoder reads; only autoencoders can be measured."
        )


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

    mend = (
        "Only plain tensors are loaded, because anything else in such a file can run any code. "
        "Save it again from a source that you trust, with torch.save(sae.state_dict(), 'ae.pt')."
    )
    check_zip(file)
    try:
        if makes_bytes(file):
            raise pickle.UnpicklingError("it asks for a bytearray")
        with quiet():
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch wraps the reason in a page of advice, part of which is to load it all the same.
        reason = one_line(error.__cause__ or error.__context__ or error)
        raise ValueError(
            f"{file} is damaged or holds more than tensors ({reason}). {mend}"
        ) from error
    except OSError:
        raise
    # There is no end to what torch may stumble over in a damaged file.
    except Exception as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {one_line(error)}); copy it again from "
            "its source."
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise ValueError(f"{file} holds something else than tensors by name. {mend}")
    for name, tensor in content.items():
        if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} in {file} is no plain tensor ({tensor.layout}, {tensor.device.type}); "
                "save it dense and with its numbers, with sae.to('cpu')."
            )
    # One number may stand for a whole tensor (stride 0), and what works on it writes it out.
    check_claim(file, sum(tensor.numel() * tensor.element_size() for tensor in content.values()))
    return {name: tensor.detach() for name, tensor in content.items()}


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
        f"nothing says of which class the SAE in {file} is: there is no {CONFIG} with "
        f"trainer.dict_class, and its tensors ({', '.join(sorted(names))}) {could}. Put the "
        f'{CONFIG} of the SAE beside it, at least {{"trainer": {{"dict_class": "…"}}}} with one of '
        f"{', '.join(_LAYOUTS)}."
    )


def _convert(
    dict_class: str, file: Path, tensors: Mapping[str, Tensor], k: object, sizes: dict[str, int]
) -> sae_lens.SAE[Any]:
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

    if dict_class == "AutoEncoder":
        return _with_unit_decoder(build_sae(StandardSAEConfig(d_in, d_sae), weights))
    if dict_class == "AutoEncoderNew":
        config = StandardSAEConfig(d_in, d_sae, apply_b_dec_to_input=False)
        return build_sae(config, weights)
    if dict_class == "GatedAutoEncoder":
        weights["r_mag"] = tensors["r_mag"]
        weights["b_gate"], weights["b_mag"] = tensors["gate_bias"], tensors["mag_bias"]
        return build_sae(GatedSAEConfig(d_in, d_sae), weights)
    if dict_class == "AutoEncoderTopK":
        return build_sae(TopKSAEConfig(d_in, d_sae, k=_k(file, tensors, k, d_sae)), weights)
    if dict_class == "JumpReluAutoEncoder":
        weights["threshold"] = tensors["threshold"]
        config = JumpReLUSAEConfig(d_in, d_sae, apply_b_dec_to_input=False)
        return build_sae(config, weights)
    weights["threshold"] = _threshold(file, tensors).repeat(d_sae)
    return build_sae(JumpReLUSAEConfig(d_in, d_sae), weights)


def _with_unit_decoder(sae: sae_lens.SAE[Any]) -> sae_lens.SAE[Any]:
    """Move the decoder's norms into the encoder, as the library does when it loads this class."""
    import torch

    norms = sae.W_dec.detach().norm(dim=-1)
    if not torch.allclose(norms, torch.ones_like(norms)):
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
            raise ValueError(
                f"nothing says how many latents the TopK SAE in {file} keeps: write its k into "
                f"{CONFIG}, as trainer.k."
            )
        return check_k(file, configured, d_sae)
    k = check_k(file, tensors["k"].item(), d_sae)
    if configured is None:
        return k
    final, d_in = check_k(_config_file(file), configured, d_sae), len(tensors["b_dec"])
    if k != final and not final < k <= d_in:
        raise ValueError(
            f"{file} says k = {k}, but {CONFIG} says k = {final}, which annealing does not explain "
            f"(it comes down from {d_in}); copy both files from the same SAE."
        )
    return k


def _threshold(file: Path, tensors: Mapping[str, Tensor]) -> Tensor:
    threshold = tensors.get("threshold")
    value = None if threshold is None else threshold.item()
    # The library starts from −1, which means that no threshold has been measured.
    if (
        threshold is None
        or not isinstance(value, int | float)
        or not (value >= 0 and math.isfinite(value))
    ):
        has = "no threshold" if threshold is None else f"the threshold {value:g}"
        raise ValueError(
            f"the BatchTopK SAE in {file} has {has}: none was measured in training, and without "
            "one its latents depend on what else is in the batch. Train it beyond "
            "threshold_start_step, or save it with 'threshold' set to the mean over batches of "
            "its smallest activation that is kept."
        )
    check_tensor(file, "threshold", threshold)
    return threshold
