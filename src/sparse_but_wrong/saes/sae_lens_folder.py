"""SAEs that sae_lens saved: finished ones, for training or for inference, and its checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.training.lens import inference_copy
from sparse_but_wrong.untrusted import one_line, quiet, read_json, read_safetensors

if TYPE_CHECKING:
    import sae_lens

WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"
_SCALER = "activation_scaler.json"

FOLDED_IN_TRAINING = ("expected_average_only_in", "covariance_whitening")
"""How sae_lens normalises activations outside of the SAE, until it folds that into the weights."""


def read_sae_lens(folder: Path) -> sae_lens.SAE[Any]:
    """The SAE in a folder of sae_lens, as it is used; in float32, on the CPU.

    An SAE for training becomes what sae_lens would export it as. A checkpoint's weights still read
    normalised activations, which sae_lens folds in at the end of training alone; that is done here,
    from activation_scaler.json. Its trainer_state.pt, which is a pickle, is never opened.

    Raises:
        FileNotFoundError: cfg.json is missing.
        ValueError: damaged files, an architecture that sae_lens does not know, weights that do not
            fit the config.
    """
    config = read_json(folder / CONFIG)
    with quiet():
        sae = _load(folder, config)
        if (folder / _SCALER).exists():
            _fold_scaler(sae, folder)
        return inference_copy(sae)


def _load(folder: Path, config: dict[str, Any]) -> sae_lens.SAE[Any]:
    from sae_lens import SAE, TrainingSAE
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
    from safetensors import SafetensorError

    # Before version 4 there was one architecture, which went without saying.
    architecture = config.get("architecture", "standard")
    known = {*SAE_CLASS_REGISTRY, *SAE_TRAINING_CLASS_REGISTRY}
    if architecture not in known:
        raise ValueError(
            f"{folder / CONFIG} asks for the architecture {architecture!r}, which is not "
            f"registered with sae_lens; it knows {', '.join(sorted(known))}. Register it, or "
            "choose another SAE."
        )
    # Most architectures go by one name in training and in use; only the configs of SAEs for
    # training say how the decoder began.
    trains = architecture not in SAE_CLASS_REGISTRY or (
        architecture in SAE_TRAINING_CLASS_REGISTRY and "decoder_init_norm" in config
    )
    sae_class = TrainingSAE if trains else SAE
    try:
        return sae_class.load_from_disk(folder, device="cpu", dtype="float32")
    except SafetensorError as error:
        raise ValueError(
            f"{folder / WEIGHTS} is damaged ({one_line(error)}); copy it again from its source."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"the SAE in {folder} cannot be loaded ({type(error).__name__}: {one_line(error)}); "
            f"copy {CONFIG} and {WEIGHTS} again, both from the same SAE."
        ) from error


def _fold_scaler(sae: sae_lens.SAE[Any], folder: Path) -> None:
    """Fold what a checkpoint's activations were normalised by into its weights."""
    from sae_lens.constants import ACTIVATION_WHITENING_FILENAME

    file = folder / _SCALER
    scaler = read_json(file)
    whitening_file = folder / ACTIVATION_WHITENING_FILENAME
    # The whitening is the last to be done to activations, so it is the first to be folded.
    if scaler.get("has_whitening", whitening_file.exists()):
        if not whitening_file.exists():
            raise ValueError(
                f"{file} says that the activations were whitened, but {whitening_file.name} is "
                "missing; copy it from where the checkpoint was saved."
            )
        whitening = read_safetensors(whitening_file)
        try:
            sae.fold_activation_whitening(
                mean=whitening["mean"],
                whitening_matrix=whitening["matrix"],
                unwhitening_matrix=whitening["inverse_matrix"],
            )
        except (KeyError, RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"the whitening in {whitening_file} cannot be folded into the SAE "
                f"({type(error).__name__}: {one_line(error)}); copy the whole checkpoint again."
            ) from error
    factor = scaler.get("scaling_factor")
    if factor is None:
        return
    if not isinstance(factor, (int, float)) or not (math.isfinite(factor) and factor > 0):
        raise ValueError(
            f"scaling_factor in {file} is {factor!r}, not a positive number; copy the checkpoint "
            "again from its source."
        )
    sae.fold_activation_norm_scaling_factor(float(factor))
