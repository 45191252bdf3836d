"""SAEs of dictionary_learning, sparsify, Gemma Scope and Llama Scope, as SAEs of sae_lens.

Each reader takes the file with the weights and returns an SAE in float32 on the CPU. A missing
config is a FileNotFoundError; damaged or odd files, transcoders, and whatever sae_lens has no SAE
for, are a ValueError. With x of shape [batch, d_in], this is what they compute.

dictionary_learning (ae.pt, config.json), and the architecture that its classes have in sae_lens:

    AutoEncoder             relu((x − bias)·Eᵀ + e)                            standard
    AutoEncoderNew          relu(x·Eᵀ + e), the input as it is                 standard
    GatedAutoEncoder        (p + gate_bias > 0)·relu(exp(r_mag)·p + mag_bias)  gated
                            with p = (x − decoder_bias)·Eᵀ
    AutoEncoderTopK         top k of relu((x − b_dec)·Eᵀ + e)                  topk
    BatchTopKSAE, Matryoshka…  the same where above one threshold, else 0      jumprelu
    JumpReluAutoEncoder     x·W_enc + b_enc where above its threshold, else 0  jumprelu

It scales biases back before it saves, so that the SAE reads activations in their original units.
Source: dictionary_learning 0.1.0, `dictionary.py`, `trainers/top_k.py`, `trainers/batch_top_k.py`,
`trainers/matryoshka_batch_top_k.py`.

sparsify (sae.safetensors, cfg.json): the same as AutoEncoderTopK, whatever `normalize_decoder` and
`multi_topk` say, which matter in training alone.
Source: `SparseCoder.encode` and `.decode` of eai-sparsify 1.3.3. sae_lens' own loader is wrong:
it asks for the layer in the folder's name, transposes `W_dec`, which lies as sae_lens has it, and
leaves `b_dec` out of the encoder where the decoder was normalised in training.

Gemma Scope (params.npz in a folder such as layer_20/width_16k/average_l0_71): the same as
JumpReluAutoEncoder, and what sae_lens' `gemma_2_sae_huggingface_loader` gives, but that reads from
the Hub alone.

Llama Scope (checkpoints/final.safetensors, hyperparams.json) reads x·s with
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
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.saes.weights import (
    LINEAR,
    OPTIONAL,
    PLAIN,
    build_sae,
    by_sae_lens_names,
    check_choice,
    check_k,
    check_positive,
    check_sizes,
    check_tensor,
    expect,
    read_npz,
    read_torch,
    refuse_transcoder,
    shown,
)
from sparse_but_wrong.untrusted import read_json, read_safetensors

if TYPE_CHECKING:
    import sae_lens
    from torch import Tensor

_TOPK = {**LINEAR, "b_dec": "b_dec", "k": "k", "threshold": "one_threshold"}
_CLASSES = {
    "AutoEncoder": ("standard", {**LINEAR, "bias": "b_dec"}),
    "AutoEncoderNew": ("standard", {**LINEAR, "decoder.bias": "b_dec"}),
    "GatedAutoEncoder": (
        "gated",
        {
            "encoder.weight": "W_enc.T",
            "decoder.weight": "W_dec.T",
            "decoder_bias": "b_dec",
            "r_mag": "r_mag",
            "gate_bias": "b_gate",
            "mag_bias": "b_mag",
        },
    ),
    "AutoEncoderTopK": ("topk", _TOPK),
    "BatchTopKSAE": ("jumprelu", _TOPK),
    "MatryoshkaBatchTopKSAE": (
        "jumprelu",
        {**PLAIN, "k": "k", "threshold": "one_threshold", "group_sizes": "group_sizes"},
    ),
    "JumpReluAutoEncoder": ("jumprelu", {**PLAIN, "threshold": "threshold"}),
}
"""The classes of dictionary_learning: sae_lens' architecture, and its names for their tensors."""

_OWN_NAMES = ("AutoEncoder", "GatedAutoEncoder", "MatryoshkaBatchTopKSAE")
"""Those that the names of their tensors tell apart, even from what others write."""

_INPUT_AS_IT_IS = ("AutoEncoderNew", "JumpReluAutoEncoder")
_HOOK_POINT = re.compile(r"embed_tokens|(?:\w+\.)+\d+(?:\.\w+)*")
"""The path of a module in sparsify, such as layers.5.mlp, from the base model on."""

_NORMS = "dataset_average_activation_norm"
_NEAR = 4
"""How many of the folders that a file of Gemma Scope lies in may be part of its published name."""


def read_dictionary_learning(file: Path) -> sae_lens.SAE[Any]:
    """The SAE in a file of `dictionary_learning`.

    Its config.json lies beside it, or one folder up for checkpoints/ae_1000.pt. Without one, the
    class is told from the names of the tensors where they can belong to one class only.
    """
    import torch

    tensors = read_torch(file)
    config_file = file.parent / "config.json"
    if not config_file.exists() and file.parent.name == "checkpoints":
        config_file = file.parent.parent / config_file.name
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
    elif not isinstance(dict_class, str) or dict_class not in _CLASSES:
        raise ValueError(
            f"Unknown class {shown(dict_class)} in {config_file}. Available: {', '.join(_CLASSES)}."
        )
    architecture, layout = _CLASSES[dict_class]
    weights = by_sae_lens_names(file, tensors, layout)
    d_sae, d_in = weights["W_dec"].shape
    said = {"d_in": trainer.get("activation_dim"), "d_sae": trainer.get("dict_size")}
    check_sizes(config_file, file.name, weights["W_dec"], **said)
    own_k, threshold, _ = (weights.pop(name, None) for name in OPTIONAL)
    options: dict[str, Any] = {"apply_b_dec_to_input": dict_class not in _INPUT_AS_IT_IS}
    if architecture == "topk":
        options["k"] = _k(file, own_k, config_file, trainer.get("k"), d_in, d_sae)
    elif architecture == "jumprelu" and "threshold" not in weights:
        weights["threshold"] = _measured(file, threshold).repeat(d_sae)
    sae = build_sae(
        file,
        architecture,
        weights,
        f"dictionary_learning {dict_class}",
        hook_name=_hook_name(trainer, buffer),
        model_name=trainer.get("lm_name"),
        **options,
    )
    norms = sae.W_dec.detach().norm(dim=-1)
    # As the library does when it loads this class.
    if dict_class == "AutoEncoder" and not torch.allclose(norms, torch.ones_like(norms)):
        sae.fold_W_dec_norm()
    return sae


def _class_from_names(file: Path, tensors: Mapping[str, Tensor]) -> str:
    names, could_be = set(tensors), []
    for dict_class, (_, layout) in _CLASSES.items():
        if dict_class in _OWN_NAMES and names == set(layout):
            return dict_class
        if {name for name in layout if layout[name] not in OPTIONAL} <= names <= set(layout):
            could_be.append(dict_class)
    could = f"could belong to {' or '.join(could_be)}" if could_be else "belong to no known class"
    raise ValueError(
        f"the class of the SAE in {file} is not known: its tensors ({', '.join(sorted(names))}) "
        f"{could}. Put its config.json beside it, at least "
        f'{{"trainer": {{"dict_class": "…"}}}} with one of {", ".join(_CLASSES)}.'
    )


def _k(
    file: Path, own: Tensor | None, config_file: Path, configured: object, d_in: int, d_sae: int
) -> int:
    """The k of a TopK SAE.

    The library writes the config before it trains, and a checkpoint with its state. Where it
    anneals k, it comes down to that of the config from d_in, so in between a checkpoint was trained
    with, and is used with, its own.
    """
    if own is None and configured is None:
        raise ValueError(f"the TopK SAE in {file} has no k; write trainer.k into config.json.")
    final = None if configured is None else check_k(config_file, configured, d_sae)
    k = check_k(file, final if own is None else own.item(), d_sae)
    if final not in (None, k) and not final < k <= d_in:
        raise ValueError(
            f"{file} says k = {k}, but config.json says k = {final}, which annealing from {d_in} "
            "does not explain; copy both files from the same SAE."
        )
    return k


def _measured(file: Path, threshold: Tensor | None) -> Tensor:
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


def _hook_name(trainer: Mapping[str, Any], buffer: Mapping[str, Any]) -> str | None:
    """Where an SAE reads: in TransformerLens' words for a residual stream, else as it is named."""
    name, layer = trainer.get("submodule_name"), trainer.get("layer")
    # The input of a module is nobody's output by that name.
    if not isinstance(name, str) or buffer.get("io") == "in":
        return None
    if isinstance(layer, int) and name in ("resid_post", f"resid_post_layer_{layer}"):
        return f"blocks.{layer}.hook_resid_post"
    return name


def read_sparsify(file: Path) -> sae_lens.SAE[Any]:
    """The SAE of a weights file of `sparsify`, whose cfg.json lies beside it."""
    folder, config_file = file.absolute().parent, file.parent / "cfg.json"
    config = read_json(config_file)
    for flag in ("transcode", "skip_connection"):
        if config.get(flag):
            refuse_transcoder(config_file, f"{flag} is set")
    check_choice(config_file, config, "activation", "topk")
    check_choice(config_file, config, "signed", False, None)  # latents must be 0 or positive
    layout = {"encoder.weight": "W_enc.T", "encoder.bias": "b_enc"}
    layout |= {"W_dec": "W_dec", "b_dec": "b_dec"}
    weights = by_sae_lens_names(file, read_safetensors(file), layout)
    d_sae, d_in = weights["W_dec"].shape
    width, factor = config.get("num_latents") or None, config.get("expansion_factor")
    # num_latents = 0 is sparsify's way to say that the factor holds.
    if width is None and isinstance(factor, int):
        width = d_in * factor
    check_sizes(config_file, file.name, weights["W_dec"], d_in=config.get("d_in"), d_sae=width)
    # A run has a folder per hook point beside its config.
    run_file = folder.parent / "config.json"
    return build_sae(
        file,
        "topk",
        weights,
        "sparsify",
        k=check_k(config_file, config.get("k"), d_sae),
        hook_name=folder.name if _HOOK_POINT.fullmatch(folder.name) else None,
        model_name=read_json(run_file).get("model") if run_file.is_file() else None,
    )


def read_gemma_scope(file: Path) -> sae_lens.SAE[Any]:
    """The SAE in a file of Gemma Scope.

    The file names no model, hook point or kind: they are told from the folders that it lies in, as
    far as these have kept their published names.
    """
    from sparse_but_wrong.sae_lens_compat import get_gemma_2_config_from_hf

    folders = file.absolute().parts[:-1]
    near = folders[-_NEAR:]
    if any("transcoder" in name and (name in near or "gemma-scope" in name) for name in folders):
        refuse_transcoder(file, "by the name of its folder")
    tensors = {re.sub("^w_", "W_", name): tensor for name, tensor in read_npz(file).items()}
    weights = by_sae_lens_names(file, tensors, {**PLAIN, "threshold": "threshold"})
    if "embedding" in near:
        # These read embeddings before the model scales them; sae_lens scales the weights.
        scale = math.sqrt(weights["W_dec"].shape[1])
        weights["W_enc"], weights["W_dec"] = weights["W_enc"] / scale, weights["W_dec"] * scale
    at = max((i for i, name in enumerate(folders) if "gemma-scope" in name), default=len(folders))
    repository, inside, published = "".join(folders[at : at + 1]), "/".join(folders[at + 1 :]), {}
    with suppress(ValueError):  # of names that were never published
        published = get_gemma_2_config_from_hf(repository, inside, device="cpu")
    origin = {name: published.get(name) for name in ("hook_name", "model_name")}
    return build_sae(file, "jumprelu", weights, "Gemma Scope", apply_b_dec_to_input=False, **origin)


def read_llama_scope(file: Path) -> sae_lens.SAE[Any]:
    """The SAE in a folder of Llama Scope, whose hyperparams.json lies one folder above the file."""
    import torch

    config_file = file.absolute().parent.parent / "hyperparams.json"
    config = read_json(config_file)
    hook_name, written = config.get("hook_point_in"), config.get("hook_point_out")
    if written is not None and written != hook_name:
        refuse_transcoder(config_file, f"from {shown(hook_name)} to {shown(written)}")
    check_choice(config_file, config, "act_fn", "jumprelu")
    check_choice(config_file, config, "use_glu_encoder", False, None)
    layout = {**LINEAR, "decoder.bias": "b_dec"}
    weights = by_sae_lens_names(file, read_safetensors(file), layout)
    d_sae, d_in = weights["W_dec"].shape
    said = {"d_in": config.get("d_model"), "d_sae": config.get("d_sae")}
    check_sizes(config_file, file.name, weights["W_dec"], **said)
    weights = {name: tensor.float() for name, tensor in weights.items()}
    scale = _scale(config_file, config, d_in)
    theta = check_positive(config_file, "jump_relu_threshold", config.get("jump_relu_threshold"))
    weights["threshold"] = torch.full((d_sae,), theta * scale)
    if check_choice(config_file, config, "sparsity_include_decoder_norm", False, True, None):
        weights["threshold"] /= weights["W_dec"].norm(dim=1)
    weights["W_enc"] = weights["W_enc"] * scale
    weights["W_dec"], weights["b_dec"] = weights["W_dec"] / scale, weights["b_dec"] / scale
    bias = "apply_decoder_bias_to_pre_encoder"
    is_base = any(name.startswith("Llama3_1-8B-Base") for name in config_file.parts)
    return build_sae(
        file,
        "jumprelu",
        weights,
        "Llama Scope",
        apply_b_dec_to_input=bool(check_choice(config_file, config, bias, False, True, None)),
        hook_name=hook_name,
        model_name="meta-llama/Llama-3.1-8B" if is_base else None,
    )


def _scale(file: Path, config: Mapping[str, Any], d_in: int) -> float:
    """What the SAE multiplies its input by."""
    if check_choice(file, config, "norm_activation", "dataset-wise", "inference") == "inference":
        return 1.0  # folded into the weights already
    norms = config.get(_NORMS)
    expect(isinstance(norms, dict), file, _NORMS, norms, "an object")
    norm = check_positive(file, f"{_NORMS}.in", norms.get("in"))  # pyright: ignore[reportOptionalMemberAccess]
    if norms.get("out", norm) != norm:  # pyright: ignore[reportOptionalMemberAccess]
        refuse_transcoder(file, f"with the norm {norm:g} of its input and another of its output")
    return math.sqrt(d_in) / norm
