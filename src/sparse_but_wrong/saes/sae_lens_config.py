"""A cfg.json of sae_lens, of whatever version, checked before anything is made from it.

sae_lens drops fields that it does not know and fills in defaults for those that are missing. Where
either changes what an SAE computes, the field is honoured here or the SAE is refused:

    activation_fn, activation_fn_str    until version 5 a standard SAE could be a TopK SAE by its
                                        activation, and "tanh-relu" was a third one
    activation_fn_kwargs.k              where k was said before it had a field
    finetuning_scaling_factor           until version 3 latents were scaled before decoding
    rescale_acts_by_decoder_norm        missing where a version wrote none: it did not rescale
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.saes.build import check_k, check_positive, check_sizes, shown
from sparse_but_wrong.training.config_types import field_types, of_type

if TYPE_CHECKING:
    import sae_lens
    from torch import Tensor


def check_kind(sae_class: type[sae_lens.SAE[Any]], architecture: str, where: str | Path) -> None:
    """Check that SAEs of a class can be measured.

    Args:
        architecture: sae_lens' name of it, for messages.
        where: where the SAE is, for messages.
    Raises:
        ValueError: a transcoder, an SAE over time or one with signed latents.
    """
    from sae_lens import AbsTopKSAE, AbsTopKTrainingSAE, TemporalSAE, Transcoder

    if issubclass(sae_class, (AbsTopKSAE, AbsTopKTrainingSAE)):
        raise ValueError(
            f"{where} is of the architecture {architecture!r}, whose latents are signed, and only "
            "SAEs whose latents are 0 or positive can be measured; choose one of those."
        )
    if issubclass(sae_class, (Transcoder, TemporalSAE)):
        raise ValueError(
            f"{where} is of the architecture {architecture!r}, and only SAEs that reconstruct each "
            "activation from itself can be measured; choose one of those."
        )


def checked_config(
    file: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], weights_name: str
) -> tuple[type[sae_lens.SAE[Any]], dict[str, Any]]:
    """The class that a config asks for, and the config as sae_lens reads it rightly.

    Args:
        file: the config, for messages.
        weights: the tensors that belong to it, by sae_lens' names.
        weights_name: the name of the file that they are in, for messages.
    Returns:
        what loads it (sae_lens.SAE, or TrainingSAE for an SAE as it is trained), and the config.
    Raises:
        ValueError: an architecture that is not registered, or that cannot be measured; a field of
            another type than the architecture's; an activation function that no SAE of sae_lens
            has today; sizes other than those of the weights; a k that is missing or odd.
    """
    from sae_lens import SAE, TrainingSAE

    from sparse_but_wrong.sae_lens_compat import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    # Before version 4 there was one architecture, which went without saying; version 6 began to
    # keep metadata apart.
    if "metadata" in config and "architecture" not in config:
        raise ValueError(
            f"{file} says no architecture, which every version that writes metadata does; copy it "
            "again from its source."
        )
    config = {**config, **_activation(file, config)}
    architecture = config.setdefault("architecture", "standard")
    known = {*SAE_CLASS_REGISTRY, *SAE_TRAINING_CLASS_REGISTRY}
    if not isinstance(architecture, str) or architecture not in known:
        raise ValueError(
            f"{file} asks for the architecture {shown(architecture)}, which is not registered with "
            f"sae_lens; it knows {', '.join(sorted(known))}. Register it, or choose another SAE."
        )
    # Most architectures go by one name in training and in use; only the configs of SAEs for
    # training say how the decoder began.
    trains = architecture not in SAE_CLASS_REGISTRY or (
        architecture in SAE_TRAINING_CLASS_REGISTRY and "decoder_init_norm" in config
    )
    registry: Mapping[str, Any] = SAE_TRAINING_CLASS_REGISTRY if trains else SAE_CLASS_REGISTRY
    sae_class, config_class = registry[architecture]
    check_kind(sae_class, architecture, file)

    types = field_types(config_class)
    hints = {f.name: types[f.name] for f in fields(config_class) if f.name in types}
    for name, hint in hints.items():
        if name in config and name not in _CHECKED_ELSEWHERE:
            config[name] = _checked(file, name, config[name], hint)
    if trains and "rescale_acts_by_decoder_norm" in hints:
        config.setdefault("rescale_acts_by_decoder_norm", False)
    _check_metadata(file, config.get("metadata"))
    sizes = _sizes(weights)
    if sizes:
        missing = [name for name in sizes if name not in config]
        if missing:
            raise ValueError(
                f"{file} misses {' and '.join(missing)}; copy it again from its source."
            )
        check_sizes(file, {name: config[name] for name in sizes}, sizes, weights_name)
        if hints.get("k") is int:
            config["k"] = check_k(file, config.get("k"), sizes["d_sae"])
            # Of configs from before version 6, sae_lens reads this one.
            config["activation_fn_kwargs"] = {"k": config["k"]}
    for name in ("k", "max_iterations"):
        if name in hints and config.get(name) is not None:
            check_positive(file, name, config[name])
    return (TrainingSAE if trains else SAE), config


def _activation(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the activation function asks for, in the fields that sae_lens has for it today."""
    architecture = config.get("architecture", "standard")
    options = config.get("activation_fn_kwargs") or {}
    if not isinstance(options, dict):
        raise ValueError(
            f"activation_fn_kwargs in {file} is {shown(options)}, not an object; copy the file "
            "again from its source."
        )
    named = [config.get(key) for key in ("activation_fn", "activation_fn_str")]
    named = [name for name in named if name is not None]
    if not named and options.get("k") is not None and architecture != "topk":
        raise ValueError(
            f"{file} gives a k in activation_fn_kwargs but names no activation function, which old "
            "versions took for ReLU; write the one that it was trained with as activation_fn."
        )
    for name in named:
        fits = ("topk",) if architecture == "topk" else ("relu",)
        if name in fits or (name == "topk" and architecture == "standard"):
            continue
        raise ValueError(
            f"{file} asks for the activation function {shown(name)}, which no SAE of the "
            f"architecture {shown(architecture)} has in sae_lens today: without it, other latents "
            "would be active. Measure it with the version that wrote it, or choose another SAE."
        )
    if "topk" not in named and architecture != "topk":
        return {}
    odd = [key for key, value in options.items() if value and key not in _TOPK_OPTIONS]
    if odd:
        raise ValueError(
            f"{file} asks for a TopK activation with {shown(odd[0])}, which no SAE of sae_lens has "
            "today; choose one with non-negative latents and k alone."
        )
    said = [k for k in (config.get("k"), options.get("k")) if k is not None]
    if not said:
        raise ValueError(
            f"{file} describes a TopK SAE without a k, how many latents it keeps; write the k that "
            "it was trained with into it, as k."
        )
    if len(said) == 2 and said[0] != said[1]:
        raise ValueError(
            f"{file} says k = {shown(said[0])} and activation_fn_kwargs.k = {shown(said[1])}; "
            "keep the one that the SAE was trained with."
        )
    return {"architecture": "topk", "k": said[0]}


_CHECKED_ELSEWHERE = ("metadata", "dtype", "device", "normalize_activations")
"""Fields that are replaced, that sae_lens checks, or that have a check of their own."""

_TOPK_OPTIONS = ("k", "use_sparse_activations")
"""What a TopK activation may say without computing anything else."""


def _checked(file: Path, name: str, value: object, hint: Any) -> object:
    """A field's value, once it is of the field's type."""
    try:
        return of_type(value, hint)
    except TypeError:  # a class of somebody's own, which knows itself what to make of it
        return value
    except ValueError as error:
        kind = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise ValueError(
            f"{name} in {file} is {shown(value)}, not of the type {kind}; copy the file again from "
            "its source."
        ) from error


def _check_metadata(file: Path, metadata: object) -> None:
    from sparse_but_wrong.sae_lens_compat import SAEMetadata

    if metadata is None:
        return
    if not isinstance(metadata, dict):
        raise ValueError(
            f"metadata in {file} is {shown(metadata)}, not an object; copy the file again from its "
            "source."
        )
    # sae_lens makes each of them an attribute.
    taken = [name for name in metadata if name == "self" or hasattr(SAEMetadata, name)]
    if taken:
        raise ValueError(
            f"metadata in {file} has the entry {shown(taken[0])}, which sae_lens keeps for itself; "
            "remove it."
        )


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
    decoder = weights.get("W_dec")
    if decoder is None or decoder.ndim != 2:
        return {}
    return {"d_sae": decoder.shape[0], "d_in": decoder.shape[1]}


def scaled_decoder(
    file: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], weights_name: str
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
    if factors is not None and not asked and torch.allclose(factors.float(), torch.ones(())):
        return weights
    if (factors is not None) != asked:
        raise ValueError(
            f"{file} says finetuning_scaling_factor = {asked}, but {weights_name} has "
            f"{'such' if factors is not None else 'no'} factors; copy both from the same SAE."
        )
    if factors is None:
        return weights
    decoder = weights.get("W_dec", torch.empty(0))
    if decoder.ndim != 2 or factors.shape != decoder.shape[:1]:
        raise ValueError(
            f"scaling_factor in {weights_name} beside {file} has the shape {list(factors.shape)}, "
            "not one number for each latent; copy both from the same SAE."
        )
    return {**weights, "W_dec": decoder * factors[:, None]}
