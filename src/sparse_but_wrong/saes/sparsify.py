"""SAEs that EleutherAI's `sparsify` saved: cfg.json and sae.safetensors.

There, with x of shape [batch, d_in]:

    latents = top k of relu((x − b_dec)·encoder.weightᵀ + encoder.bias)
    reconstruction = latents·W_dec + b_dec

whatever `normalize_decoder` and `multi_topk` say: both matter in training alone.
Source: `SparseCoder.encode` and `.decode` of eai-sparsify 1.3.3.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.saes.build import build_sae, check_k, check_sizes, check_tensors, shown
from sparse_but_wrong.untrusted import read_json, read_safetensors

if TYPE_CHECKING:
    import sae_lens

_HOOK_POINT = re.compile(r"embed_tokens|(?:\w+\.)+\d+(?:\.\w+)*")
"""The path of a module, such as layers.5 or layers.5.mlp, from the base model on."""

WEIGHTS = "sae.safetensors"
CONFIG = "cfg.json"

_LAYOUT = {
    "encoder.weight": ("d_sae", "d_in"),
    "encoder.bias": ("d_sae",),
    "W_dec": ("d_sae", "d_in"),
    "b_dec": ("d_in",),
}


def read_sparsify(folder: Path) -> sae_lens.SAE[Any]:
    """The SAE in a folder of `sparsify`, as a sae_lens TopK SAE; in float32, on the CPU.

    sae_lens' own loader of these folders is not used: it asks for the layer in the folder's name,
    transposes `W_dec`, which lies as sae_lens has it, and leaves `b_dec` out of the encoder where
    the decoder was normalised in training.

    Raises:
        FileNotFoundError: cfg.json is missing.
        ValueError: a transcoder, an activation other than TopK, or damaged or odd files.
    """
    from sae_lens import TopKSAEConfig

    config_file, weights_file = folder / CONFIG, folder / WEIGHTS
    config = read_json(config_file)
    _check_kind(config_file, config)
    tensors = read_safetensors(weights_file)
    sizes = check_tensors(weights_file, tensors, _LAYOUT)
    _check_said(config_file, config, sizes)
    k = check_k(config_file, config.get("k"), sizes["d_sae"])
    weights = {
        "W_enc": tensors["encoder.weight"].T,
        "b_enc": tensors["encoder.bias"],
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
    }
    sae = build_sae(
        TopKSAEConfig(d_in=sizes["d_in"], d_sae=sizes["d_sae"], k=k, apply_b_dec_to_input=True),
        weights,
    )
    sae.cfg.metadata.converted_from = "sparsify"
    _note_origin(sae, folder)
    return sae


def _check_kind(file: Path, config: dict[str, Any]) -> None:
    for flag in ("transcode", "skip_connection"):
        if config.get(flag):
            raise ValueError(
                f"{file} describes a transcoder ({flag} is set), whose decoder writes to other "
                "activations than its encoder reads; only autoencoders can be measured."
            )
    activation = config.get("activation", "topk")
    if activation != "topk":
        raise ValueError(
            f"{file} asks for the activation {shown(activation)}, which no SAE of sae_lens has; "
            "only 'topk' can be loaded."
        )
    if config.get("signed"):
        raise ValueError(
            f"{file} describes an SAE with signed latents, and only SAEs whose latents are 0 or "
            "positive can be measured; train one with signed: false."
        )


def _note_origin(sae: sae_lens.SAE[Any], folder: Path) -> None:
    """Note the hook point and the model: a run has a folder per hook point beside its config."""
    name = folder.absolute().name
    if _HOOK_POINT.fullmatch(name):
        sae.cfg.metadata.hook_name = name
    run_config = folder.absolute().parent / "config.json"
    if run_config.is_file():
        sae.cfg.metadata.model_name = read_json(run_config).get("model")


def _check_said(file: Path, config: dict[str, Any], sizes: dict[str, int]) -> None:
    said = {"d_in": config.get("d_in"), "d_sae": config.get("num_latents") or None}
    factor = config.get("expansion_factor")
    # num_latents = 0 is sparsify's way to say that the factor holds.
    if said["d_sae"] is None and isinstance(factor, int):
        said["d_sae"] = sizes["d_in"] * factor
    check_sizes(file, said, sizes, WEIGHTS)
