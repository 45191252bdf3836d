"""SAEs that EleutherAI's `sparsify` saved: cfg.json and sae.safetensors.

There, with x of shape [batch, d_in]:

    latents = top k of relu((x − b_dec)·encoder.weightᵀ + encoder.bias)
    reconstruction = latents·W_dec + b_dec

whatever `normalize_decoder` and `multi_topk` say: both matter in training alone.
Source: `SparseCoder.encode` and `.decode` of eai-sparsify 1.3.3. sae_lens' own loader is wrong:
it asks for the layer in the folder's name, transposes `W_dec`, which lies as sae_lens has it, and
leaves `b_dec` out of the encoder where the decoder was normalised in training.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.saes.build import (
    LINEAR,
    PLAIN,
    build_sae,
    check_k,
    check_sizes,
    check_tensors,
    expect,
    refuse_transcoder,
)
from sparse_but_wrong.untrusted import read_json, read_safetensors

if TYPE_CHECKING:
    import sae_lens

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"
_HOOK_POINT = re.compile(r"embed_tokens|(?:\w+\.)+\d+(?:\.\w+)*")
"""The path of a module, such as layers.5 or layers.5.mlp, from the base model on."""

_ALL = {**LINEAR, **PLAIN}
_LAYOUT = {n: _ALL[n] for n in ("encoder.weight", "encoder.bias", "W_dec", "b_dec")}


def read_sparsify(file: Path) -> sae_lens.SAE[Any]:
    """The SAE of a weights file of `sparsify`, as a sae_lens TopK SAE; in float32, on the CPU.

    Raises:
        FileNotFoundError: cfg.json is missing.
        ValueError: a transcoder, an activation other than TopK, or damaged or odd files.
    """
    from sae_lens import TopKSAEConfig

    folder, config_file = file.absolute().parent, file.parent / CONFIG
    config = read_json(config_file)
    for flag in ("transcode", "skip_connection"):
        if config.get(flag):
            refuse_transcoder(config_file, f"{flag} is set")
    activation = config.get("activation", "topk")
    expect(activation == "topk", config_file, "activation", activation, "'topk'")
    signed = config.get("signed")
    expect(not signed, config_file, "signed", signed, "false: latents must be 0 or positive")
    tensors = read_safetensors(file)
    sizes = check_tensors(file, tensors, _LAYOUT)
    said = {"d_in": config.get("d_in"), "d_sae": config.get("num_latents") or None}
    factor = config.get("expansion_factor")
    # num_latents = 0 is sparsify's way to say that the factor holds.
    if said["d_sae"] is None and isinstance(factor, int):
        said["d_sae"] = sizes["d_in"] * factor
    check_sizes(config_file, said, sizes, WEIGHTS)
    k = check_k(config_file, config.get("k"), sizes["d_sae"])
    sae = build_sae(
        TopKSAEConfig(d_in=sizes["d_in"], d_sae=sizes["d_sae"], k=k, apply_b_dec_to_input=True),
        {
            "W_enc": tensors["encoder.weight"].T,
            "b_enc": tensors["encoder.bias"],
            "W_dec": tensors["W_dec"],
            "b_dec": tensors["b_dec"],
        },
        "sparsify",
    )
    # A run has a folder per hook point beside its config.
    if _HOOK_POINT.fullmatch(folder.name):
        sae.cfg.metadata.hook_name = folder.name
    if (folder.parent / "config.json").is_file():
        sae.cfg.metadata.model_name = read_json(folder.parent / "config.json").get("model")
    return sae
