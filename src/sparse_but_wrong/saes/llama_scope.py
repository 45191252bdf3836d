"""SAEs of Llama Scope: hyperparams.json and checkpoints/final.safetensors.

They read x·s with s = √d_in / (mean norm of the activations in training), and with p of the scaled
input, θ the one threshold of all latents and D the rows of the decoder:

    p = (x·s)·Eᵀ + e
    latents = p where p > θ·s/‖D‖, else 0
    reconstruction = (latents·D + b_dec) / s

The threshold is in the units of unscaled activations (hence θ·s), and is compared with p·‖D‖ where
`sparsity_include_decoder_norm` is set, else with p.
Source: `SparseAutoEncoder` of OpenMOSS' Language-Model-SAEs (llamascopium 2.0), and sae_lens'
`llama_scope_sae_huggingface_loader`, which reads from the Hub alone and leaves ‖D‖ out: the same
where decoder rows have norm 1.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.saes.build import (
    build_sae,
    check_flag,
    check_positive,
    check_sizes,
    check_tensors,
    shown,
)
from sparse_but_wrong.untrusted import read_json, read_safetensors

if TYPE_CHECKING:
    import sae_lens

CONFIG = "hyperparams.json"
WEIGHTS = "checkpoints/final.safetensors"

_LAYOUT = {
    "encoder.weight": ("d_sae", "d_in"),
    "encoder.bias": ("d_sae",),
    "decoder.weight": ("d_in", "d_sae"),
    "decoder.bias": ("d_in",),
}


def read_llama_scope(file: Path) -> sae_lens.SAE[Any]:
    """The SAE in a folder of Llama Scope, as a sae_lens JumpReLU SAE; in float32, on the CPU.

    Args:
        file: the weights; the config lies one folder up.
    Raises:
        FileNotFoundError: hyperparams.json is missing.
        ValueError: a transcoder, another activation than JumpReLU, a normalisation that cannot be
            folded into the weights, or damaged or odd files.
    """
    import torch
    from sae_lens import JumpReLUSAEConfig

    config_file = file.absolute().parent.parent / CONFIG
    config = read_json(config_file)
    _check_kind(config_file, config)
    tensors = read_safetensors(file)
    sizes = check_tensors(file, tensors, _LAYOUT)
    said = {"d_in": config.get("d_model"), "d_sae": config.get("d_sae")}
    check_sizes(config_file, said, sizes, file.name)
    d_in, d_sae = sizes["d_in"], sizes["d_sae"]
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    scale = _scale(config_file, config, d_in)
    theta = check_positive(config_file, "jump_relu_threshold", config.get("jump_relu_threshold"))
    threshold = torch.full((d_sae,), theta * scale)
    if check_flag(config_file, config, "sparsity_include_decoder_norm"):
        threshold = threshold / weights["decoder.weight"].norm(dim=0)
    sae = build_sae(
        JumpReLUSAEConfig(
            d_in,
            d_sae,
            apply_b_dec_to_input=check_flag(
                config_file, config, "apply_decoder_bias_to_pre_encoder"
            ),
        ),
        {
            "W_enc": weights["encoder.weight"].T * scale,
            "b_enc": weights["encoder.bias"],
            "W_dec": weights["decoder.weight"].T / scale,
            "b_dec": weights["decoder.bias"] / scale,
            "threshold": threshold,
        },
    )
    sae.cfg.metadata.converted_from = "Llama Scope"
    sae.cfg.metadata.hook_name = config.get("hook_point_in")
    if any(name.startswith("Llama3_1-8B-Base") for name in config_file.parts):
        sae.cfg.metadata.model_name = "meta-llama/Llama-3.1-8B"
    return sae


def _check_kind(file: Path, config: dict[str, Any]) -> None:
    read, written = config.get("hook_point_in"), config.get("hook_point_out")
    if written is not None and written != read:
        raise ValueError(
            f"{file} describes a transcoder (from {shown(read)} to {shown(written)}), and only "
            "autoencoders can be measured."
        )
    activation, glu = config.get("act_fn", "jumprelu"), check_flag(file, config, "use_glu_encoder")
    if activation != "jumprelu" or glu:
        raise ValueError(
            f"{file} asks for the activation {shown(activation)}"
            f"{' with a GLU encoder' if glu else ''}, and of Llama Scope "
            "only SAEs with 'jumprelu' and a linear encoder can be loaded."
        )


def _scale(file: Path, config: dict[str, Any], d_in: int) -> float:
    """What the SAE multiplies its input by."""
    how = config.get("norm_activation", "dataset-wise")
    # Folded into the weights already.
    if how == "inference":
        return 1.0
    norms = config.get("dataset_average_activation_norm")
    if how != "dataset-wise" or not isinstance(norms, dict):
        raise ValueError(
            f"{file} normalises activations by {shown(how)} with the norms {shown(norms)}; only "
            "'dataset-wise' with a mean norm of its input (in), or 'inference', can be loaded."
        )
    norm = check_positive(file, "dataset_average_activation_norm.in", norms.get("in"))
    if norms.get("out", norm) != norm:
        raise ValueError(
            f"{file} gives the norm {norm:g} for the input and {shown(norms['out'])} for the "
            "output, which an autoencoder does not tell apart; only autoencoders can be measured."
        )
    return math.sqrt(d_in) / norm
