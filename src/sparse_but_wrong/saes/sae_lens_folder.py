"""SAEs that sae_lens saved: finished ones, for training or for inference, and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.sae_lens_compat import inference_copy
from sparse_but_wrong.saes.build import check_positive, check_tensor
from sparse_but_wrong.saes.sae_lens_config import checked_config, scaled_decoder
from sparse_but_wrong.untrusted import one_line, quiet, read_json, read_safetensors

if TYPE_CHECKING:
    import sae_lens
    from torch import Tensor

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
        ValueError: damaged files, an architecture that sae_lens does not know or that cannot be
            measured, weights that do not fit the config.
    """
    config_file, weights_file = folder / CONFIG, folder / WEIGHTS
    config, tensors = read_json(config_file), read_safetensors(weights_file)
    for name, tensor in tensors.items():
        if tensor.ndim or name == "topk_threshold":
            check_tensor(weights_file, name, tensor)
    with quiet():
        sae_class, config = checked_config(config_file, config, tensors, WEIGHTS)
        tensors = scaled_decoder(config_file, config, tensors, WEIGHTS)
        sae = _make(folder, sae_class, config, tensors)
        # What is folded already is read as it is, whatever its checkpoint left beside it.
        if sae.cfg.normalize_activations in FOLDED_IN_TRAINING and (folder / _SCALER).exists():
            _fold_scaler(sae, folder)
        return inference_copy(sae)


def _make(
    folder: Path,
    sae_class: type[sae_lens.SAE[Any]],
    config: dict[str, Any],
    tensors: dict[str, Tensor],
) -> sae_lens.SAE[Any]:
    import torch

    def converter(
        path: str | Path, device: str, cfg_overrides: dict[str, Any] | None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        del path  # It has been read.
        return {**config, "device": device, **(cfg_overrides or {})}, {
            name: tensor.to(dtype=torch.float32) for name, tensor in tensors.items()
        }

    try:
        return sae_class.load_from_disk(folder, device="cpu", dtype="float32", converter=converter)
    # Of what is said wrongly, sae_lens and torch each have their own errors.
    except Exception as error:
        raise ValueError(
            f"the SAE in {folder} cannot be loaded ({type(error).__name__}: {one_line(error)}); "
            f"copy {CONFIG} and {WEIGHTS} again, both from the same SAE."
        ) from error


def _fold_scaler(sae: sae_lens.SAE[Any], folder: Path) -> None:
    """Fold what a checkpoint's activations were normalised by into its weights."""
    from sparse_but_wrong.sae_lens_compat import ACTIVATION_WHITENING_FILENAME

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
        except Exception as error:
            raise ValueError(
                f"the whitening in {whitening_file} cannot be folded into the SAE "
                f"({type(error).__name__}: {one_line(error)}); copy the whole checkpoint again."
            ) from error
    factor = scaler.get("scaling_factor")
    if factor is not None:
        sae.fold_activation_norm_scaling_factor(check_positive(file, "scaling_factor", factor))
