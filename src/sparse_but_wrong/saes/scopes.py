"""SAEs of Gemma Scope and of Llama Scope, as JumpReLU SAEs of sae_lens.

Gemma Scope: a params.npz in a folder such as layer_20/width_16k/average_l0_71:

    p = x·W_enc + b_enc
    latents = relu(p) where p > threshold, else 0
    reconstruction = latents·W_dec + b_dec

which is what sae_lens' `gemma_2_sae_huggingface_loader` gives, but that reads from the Hub alone.

Llama Scope: hyperparams.json and checkpoints/final.safetensors. They read x·s with
s = √d_in / (mean norm of the activations in training), and with θ the one threshold of all latents
and D the rows of the decoder:

    p = (x·s)·Eᵀ + e
    latents = p where p > θ·s/‖D‖, else 0
    reconstruction = (latents·D + b_dec) / s

The threshold is in the units of unscaled activations (hence θ·s), and is compared with p·‖D‖ where
`sparsity_include_decoder_norm` is set, else with p.
Source: `SparseAutoEncoder` of OpenMOSS' Language-Model-SAEs (llamascopium 2.0). sae_lens'
`llama_scope_sae_huggingface_loader` reads from the Hub alone and leaves ‖D‖ out: the same where
decoder rows have norm 1.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.saes.build import (
    LINEAR,
    PLAIN,
    build_sae,
    check_flag,
    check_positive,
    check_sizes,
    check_tensors,
    expect,
    refuse_transcoder,
    shown,
)
from sparse_but_wrong.saes.dictionary_learning import check_zip
from sparse_but_wrong.untrusted import damaged, read_json, read_safetensors

if TYPE_CHECKING:
    import sae_lens
    from torch import Tensor

GEMMA_WEIGHTS = "params.npz"
LLAMA_WEIGHTS, LLAMA_CONFIG = "checkpoints/final.safetensors", "hyperparams.json"
_NEAR = 4
"""How many of the folders that a file lies in may be part of its published name."""


def read_gemma_scope(file: Path) -> sae_lens.SAE[Any]:
    """The SAE in a file of Gemma Scope; in float32, on the CPU.

    The file names no model, hook point or kind: they are told from the folders that it lies in, as
    far as these have kept their published names.

    Raises:
        ValueError: a transcoder, or a damaged or odd file. Nothing in it is unpickled.
    """
    from sae_lens import JumpReLUSAEConfig

    from sparse_but_wrong.sae_lens_compat import get_gemma_2_config_from_hf

    folders = file.absolute().parts[:-1]
    near = folders[-_NEAR:]
    if any("transcoder" in name and (name in near or "gemma-scope" in name) for name in folders):
        refuse_transcoder(file, "by the name of its folder")
    weights = _read_npz(file)
    sizes = check_tensors(file, weights, {**PLAIN, "threshold": ("d_sae",)})
    if "embedding" in near:
        # These read embeddings before the model scales them; sae_lens scales the weights.
        scale = math.sqrt(sizes["d_in"])
        weights["W_enc"], weights["W_dec"] = weights["W_enc"] / scale, weights["W_dec"] * scale
    config = JumpReLUSAEConfig(sizes["d_in"], sizes["d_sae"], apply_b_dec_to_input=False)
    sae = build_sae(config, weights, "Gemma Scope")
    for at in [i for i, name in enumerate(folders) if "gemma-scope" in name][-1:]:
        try:
            name = "/".join(folders[at + 1 :])
            published = get_gemma_2_config_from_hf(folders[at], name, device="cpu")
        except ValueError:
            continue
        sae.cfg.metadata.model_name = published["model_name"]
        sae.cfg.metadata.hook_name = published["hook_name"]
    return sae


def _read_npz(file: Path) -> dict[str, Tensor]:
    import numpy as np
    import torch

    check_zip(file)
    tensors = {}
    try:
        with np.load(file, allow_pickle=False) as archive:
            for name in archive.files:
                array = archive[name]
                native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
                tensor = torch.from_numpy(native.reshape(array.shape))
                tensors[f"W_{name[2:]}" if name.startswith("w_") else name] = tensor
    except OSError:
        raise
    except Exception as error:  # there is no end to what numpy may stumble over
        raise damaged(file, error) from error
    return tensors


def read_llama_scope(file: Path) -> sae_lens.SAE[Any]:
    """The SAE in a folder of Llama Scope; in float32, on the CPU.

    Args:
        file: the weights; the config lies one folder up.
    Raises:
        FileNotFoundError: hyperparams.json is missing.
        ValueError: a transcoder, another activation than JumpReLU, a normalisation that cannot be
            folded into the weights, or damaged or odd files.
    """
    import torch
    from sae_lens import JumpReLUSAEConfig

    config_file = file.absolute().parent.parent / LLAMA_CONFIG
    config = read_json(config_file)
    read, written = config.get("hook_point_in"), config.get("hook_point_out")
    if written is not None and written != read:
        refuse_transcoder(config_file, f"from {shown(read)} to {shown(written)}")
    activation, glu = config.get("act_fn", "jumprelu"), "use_glu_encoder"
    expect(activation == "jumprelu", config_file, "activation", activation, "'jumprelu'")
    expect(not check_flag(config_file, config, glu), config_file, glu, True, "false")
    tensors = read_safetensors(file)
    sizes = check_tensors(file, tensors, {**LINEAR, "decoder.bias": ("d_in",)})
    said = {"d_in": config.get("d_model"), "d_sae": config.get("d_sae")}
    check_sizes(config_file, said, sizes, file.name)
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    scale = _scale(config_file, config, sizes["d_in"])
    theta = check_positive(config_file, "jump_relu_threshold", config.get("jump_relu_threshold"))
    threshold = torch.full((sizes["d_sae"],), theta * scale)
    if check_flag(config_file, config, "sparsity_include_decoder_norm"):
        threshold = threshold / weights["decoder.weight"].norm(dim=0)
    bias_first = check_flag(config_file, config, "apply_decoder_bias_to_pre_encoder")
    sae = build_sae(
        JumpReLUSAEConfig(sizes["d_in"], sizes["d_sae"], apply_b_dec_to_input=bias_first),
        {
            "W_enc": weights["encoder.weight"].T * scale,
            "b_enc": weights["encoder.bias"],
            "W_dec": weights["decoder.weight"].T / scale,
            "b_dec": weights["decoder.bias"] / scale,
            "threshold": threshold,
        },
        "Llama Scope",
    )
    sae.cfg.metadata.hook_name = read
    if any(name.startswith("Llama3_1-8B-Base") for name in config_file.parts):
        sae.cfg.metadata.model_name = "meta-llama/Llama-3.1-8B"
    return sae


def _scale(file: Path, config: dict[str, Any], d_in: int) -> float:
    """What the SAE multiplies its input by."""
    how = config.get("norm_activation", "dataset-wise")
    if how == "inference":  # folded into the weights already
        return 1.0
    known = "'dataset-wise' with the mean norm of its input (in), or 'inference'"
    expect(how == "dataset-wise", file, "norm_activation", how, known)
    name = "dataset_average_activation_norm"
    norms = config.get(name)
    expect(isinstance(norms, dict), file, name, norms, "an object")
    norm = check_positive(file, f"{name}.in", norms.get("in"))  # pyright: ignore[reportOptionalMemberAccess]
    if norms.get("out", norm) != norm:  # pyright: ignore[reportOptionalMemberAccess]
        refuse_transcoder(file, f"with the norm {norm:g} of its input and another of its output")
    return math.sqrt(d_in) / norm
