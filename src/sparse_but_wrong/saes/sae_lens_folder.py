"""SAEs that sae_lens saved: finished ones, for training or for inference, and its checkpoints.

sae_lens loads them, once cfg.json has been checked: it drops fields that it does not know and fills
in defaults for those that are missing. Where either changes what an SAE computes, the field is
honoured here or the SAE is refused:

    activation_fn, activation_fn_str    until version 5 a standard SAE could be a TopK SAE by its
                                        activation, and "tanh-relu" was a third one
    activation_fn_kwargs.k              where k was said before it had a field
    finetuning_scaling_factor           until version 3 latents were scaled before decoding
    rescale_acts_by_decoder_norm        missing where a version wrote none: it did not rescale
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.sae_lens_compat import inference_copy
from sparse_but_wrong.saes.config_types import field_types, of_type
from sparse_but_wrong.saes.weights import (
    check_k,
    check_positive,
    check_sizes,
    check_tensor,
    expect,
    load_with_sae_lens,
    shown,
)
from sparse_but_wrong.untrusted import damaged, quiet, read_json, read_safetensors

if TYPE_CHECKING:
    import sae_lens
    from torch import Tensor

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
_SCALER = "activation_scaler.json"

FOLDED_IN_TRAINING = ("expected_average_only_in", "covariance_whitening")
"""How sae_lens normalises activations outside of the SAE, until it folds that into the weights."""

_CHECKED_ELSEWHERE = ("metadata", "dtype", "device", "normalize_activations")
"""Fields that are replaced, that sae_lens checks, or that have a check of their own."""

_ACTIVATIONS = {"standard": ("relu", "topk"), "topk": ("topk",)}
"""The activation functions that configs of old may name, where not ReLU alone."""

_TOPK_OPTIONS = ("k", "use_sparse_activations")
"""Options of a TopK activation that do not change what it computes."""


def read_sae_lens(file: Path) -> sae_lens.SAE[Any]:
    """The SAE of a weights file of sae_lens, as it is used; in float32, on the CPU.

    An SAE for training becomes what sae_lens would export it as. A checkpoint's weights still read
    normalised activations, which sae_lens folds in at the end of training alone; that is done here,
    from activation_scaler.json. Its trainer_state.pt, which is a pickle, is never opened.

    Raises:
        FileNotFoundError: cfg.json is missing.
        ValueError: damaged files, an architecture that sae_lens does not know or that cannot be
            evaluated, weights that do not fit the config.
    """
    folder, config_file = file.parent, file.parent / CONFIG
    config, tensors = read_json(config_file), read_safetensors(file)
    for name, tensor in tensors.items():
        if tensor.ndim or name == "topk_threshold":
            check_tensor(file, name, tensor)
    with quiet():
        sae_class, config = checked_config(config_file, config, tensors)
        tensors = scaled_decoder(config_file, config, tensors)
        sae = load_with_sae_lens(folder, sae_class, config, tensors)
        # What is folded already is read as it is, whatever its checkpoint left beside it.
        if sae.cfg.normalize_activations in FOLDED_IN_TRAINING and (folder / _SCALER).exists():
            _fold_scaler(sae, folder)
        return inference_copy(sae)


def _fold_scaler(sae: sae_lens.SAE[Any], folder: Path) -> None:
    """Fold what a checkpoint's activations were normalised by into its weights."""
    from sparse_but_wrong.sae_lens_compat import ACTIVATION_WHITENING_FILENAME

    scaler, file = read_json(folder / _SCALER), folder / ACTIVATION_WHITENING_FILENAME
    # The whitening is the last to be done to activations, so it is the first to be folded.
    if scaler.get("has_whitening", file.exists()):
        whitening = read_safetensors(file)
        try:
            sae.fold_activation_whitening(
                mean=whitening["mean"],
                whitening_matrix=whitening["matrix"],
                unwhitening_matrix=whitening["inverse_matrix"],
            )
        except Exception as error:
            raise damaged(file, error, "copy the whole checkpoint again") from error
    if (factor := scaler.get("scaling_factor")) is not None:
        factor = check_positive(folder / _SCALER, "scaling_factor", factor)
        sae.fold_activation_norm_scaling_factor(factor)


def check_kind(sae_class: type[sae_lens.SAE[Any]], architecture: str, where: str | Path) -> None:
    """Raise ValueError for a transcoder, an SAE over time or one with signed latents."""
    from sae_lens import AbsTopKSAE, AbsTopKTrainingSAE, TemporalSAE, Transcoder

    kinds = {
        (AbsTopKSAE, AbsTopKTrainingSAE): "SAEs whose latents are 0 or positive",
        (Transcoder, TemporalSAE): "SAEs that reconstruct each activation from itself",
    }
    for refused, wanted in kinds.items():
        if issubclass(sae_class, refused):
            raise ValueError(
                f"{where} is of the architecture {architecture!r}, and only {wanted} can be "
                "evaluated; choose one of those."
            )


def checked_config(
    file: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[type[sae_lens.SAE[Any]], dict[str, Any]]:
    """The class that a config asks for, and the config as sae_lens reads it rightly.

    Args:
        file: the config, for messages.
        weights: the tensors that belong to it, by sae_lens' names.
    Returns:
        what loads it (sae_lens.SAE, or TrainingSAE for an SAE as it is trained), and the config.
    Raises:
        ValueError: an architecture that is not registered, or that cannot be evaluated; a field of
            another type than the architecture's; an activation function that no SAE of sae_lens
            has today; sizes other than those of the weights; a k that is missing or odd.
    """
    from sae_lens import SAE, TrainingSAE

    from sparse_but_wrong.sae_lens_compat import (
        SAE_CLASS_REGISTRY,
        SAE_TRAINING_CLASS_REGISTRY,
        SAEMetadata,
    )

    # Before version 4 there was one architecture, which went without saying; version 6 began to
    # keep metadata apart.
    needed = ("d_in", "d_sae", *(("architecture",) if "metadata" in config else ()))
    if missing := [name for name in needed if name not in config]:
        raise ValueError(f"{file} misses {' and '.join(missing)}; copy it again from its source.")
    config = {"architecture": "standard", **config}
    known = {*SAE_CLASS_REGISTRY, *SAE_TRAINING_CLASS_REGISTRY}
    if not isinstance(config["architecture"], str) or config["architecture"] not in known:
        raise ValueError(
            f"Unknown architecture {shown(config['architecture'])} in {file}. Available: "
            f"{', '.join(sorted(known))}. Others can be registered with sae_lens."
        )
    config |= _activation(file, config)
    architecture: str = config["architecture"]
    # Most architectures go by one name in training and in use; only the configs of SAEs for
    # training say how the decoder began.
    trains = architecture not in SAE_CLASS_REGISTRY or (
        architecture in SAE_TRAINING_CLASS_REGISTRY and "decoder_init_norm" in config
    )
    registry: Mapping[str, Any] = SAE_TRAINING_CLASS_REGISTRY if trains else SAE_CLASS_REGISTRY
    sae_class, config_class = registry[architecture]
    check_kind(sae_class, architecture, file)

    types = field_types(config_class)
    for name, kind in types.items():
        if name not in config or name in _CHECKED_ELSEWHERE:
            continue
        try:
            of_type(config[name], kind)
        except TypeError:  # a class of somebody's own, which knows itself what to make of it
            continue
        except ValueError as error:
            raise ValueError(f"{name} in {file} is {shown(config[name])}, but {error}.") from error
    if trains and "rescale_acts_by_decoder_norm" in types:
        config.setdefault("rescale_acts_by_decoder_norm", False)
    metadata: Any = config.get("metadata")
    expect(isinstance(metadata, dict | None), file, "metadata", metadata, "an object")
    for name in metadata or {}:  # sae_lens makes each of them an attribute
        taken = name == "self" or hasattr(SAEMetadata, name)
        expect(not taken, file, "an entry of metadata", name, "a name that sae_lens leaves free")
    decoder = weights.get("W_dec")
    if decoder is not None and decoder.ndim == 2:
        check_sizes(file, WEIGHTS, decoder, d_sae=config["d_sae"], d_in=config["d_in"])
    if types.get("k") is int:
        config["k"] = check_k(file, config.get("k"), config["d_sae"])
        # In configs from before version 6, sae_lens reads this one.
        config["activation_fn_kwargs"] = {"k": config["k"]}
    for name in ("k", "max_iterations"):
        if name in types and config.get(name) is not None:
            check_positive(file, name, config[name])
    return (TrainingSAE if trains else SAE), config


def _activation(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the activation function asks for, in the fields that sae_lens has for it today."""
    architecture, options = config["architecture"], config.get("activation_fn_kwargs") or {}
    expect(isinstance(options, dict), file, "activation_fn_kwargs", options, "an object")
    named = [config.get(key) for key in ("activation_fn", "activation_fn_str")]
    named = [name for name in named if name is not None]
    strange = [name for name in named if name not in _ACTIVATIONS.get(architecture, ("relu",))]
    is_topk = architecture == "topk" or "topk" in named
    odd = [key for key, value in options.items() if value and key not in _TOPK_OPTIONS]
    ks = [k for k in (config.get("k"), options.get("k")) if k is not None]
    wrong = ""
    if strange:
        wrong = (
            f"asks for the activation function {shown(strange[0])}, which no SAE of the "
            f"architecture {architecture!r} has in sae_lens today; evaluate it with the version "
            "that wrote it"
        )
    elif not is_topk and not named and options.get("k") is not None:
        wrong = (
            "gives a k in activation_fn_kwargs but names no activation function, which old "
            "versions took for ReLU; write the one that it was trained with as activation_fn"
        )
    elif is_topk and odd:
        wrong = f"asks for a TopK activation with {shown(odd[0])}, which sae_lens no longer has"
    elif is_topk and (not ks or ks[1:] not in ([], ks[:1])):
        wrong = f"gives k = {' and '.join(map(shown, ks)) or None}; write the k of its training"
    if wrong:
        raise ValueError(f"{file} {wrong}.")
    return {"architecture": "topk", "k": ks[0]} if is_topk else {}


def scaled_decoder(
    file: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights, with the factors that old versions scaled latents by in the decoder.

    Raises:
        ValueError: factors that the config does not speak of, or the other way round.
    """
    import torch

    weights = dict(weights)
    factors = weights.pop("scaling_factor", weights.pop("finetuning_scaling_factor", None))
    asked = bool(config.get("finetuning_scaling_factor"))
    # For a while all of them were written, whether they were trained or not.
    if not asked and (factors is None or torch.allclose(factors.float(), torch.ones(()))):
        return weights
    decoder = weights.get("W_dec", torch.empty(0))
    fits = factors is not None and decoder.ndim == 2 and factors.shape == decoder.shape[:1]
    if factors is None or not fits or not asked:
        has = "none" if factors is None else f"scaling_factor of the shape {list(factors.shape)}"
        raise ValueError(
            f"{file} says finetuning_scaling_factor = {asked}, which asks for one factor for each "
            f"latent or none, but {WEIGHTS} has {has}; copy both from the same SAE."
        )
    return {**weights, "W_dec": decoder * factors[:, None]}
