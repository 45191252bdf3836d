"""Whatever SAE a user has, as one that can be measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.saes import dictionary_learning, hub, sae_lens_folder, sparsify
from sparse_but_wrong.untrusted import one_line

if TYPE_CHECKING:
    import sae_lens

_KINDS: dict[str, tuple[str, str, Callable[[Path], sae_lens.SAE[Any]]]] = {
    sae_lens_folder.WEIGHTS: (
        "sae_lens",
        sae_lens_folder.CONFIG,
        lambda file: sae_lens_folder.read_sae_lens(file.parent),
    ),
    dictionary_learning.WEIGHTS: (
        "dictionary_learning",
        dictionary_learning.CONFIG,
        dictionary_learning.read_dictionary_learning,
    ),
    sparsify.WEIGHTS: (
        "sparsify",
        sparsify.CONFIG,
        lambda file: sparsify.read_sparsify(file.parent),
    ),
}
"""By the file that holds the weights: the library, its config and what reads it."""

_NEVER_OPENED = "trainer_state.pt"


def load_sae(where: str | Path, device: str = "cpu") -> sae_lens.SAE[Any]:
    """Load an SAE from wherever it is, as a float32 sae_lens SAE for inference.

    It reads activations of shape [batch, d_in] in their original units: what sae_lens has not yet
    folded into the weights is folded. A BatchTopK SAE comes as the JumpReLU SAE that it is used as.
    Weights that are not finite are let through: what is measured with them is NaN, and says so.
    Nothing is unpickled but tensors.

    Args:
        where: a folder of sae_lens (cfg.json, sae_weights.safetensors; also a checkpoint), of
            `dictionary_learning` (config.json, ae.pt) or of EleutherAI's `sparsify` (cfg.json,
            sae.safetensors), or the file with the weights in it; or, where no such path exists,
            "release/sae_id" of sae_lens' directory of published SAEs, or "user/repository/folder"
            on the Hugging Face Hub. A `Path` is never looked up on the Hub.
        device: of the SAE.
    Raises:
        FileNotFoundError: there is no such path, or no SAE in it; the message says what was looked
            for.
        OSError: the Hub cannot be reached, or refuses.
        ValueError: what was found is damaged, contradicts itself, cannot be measured (a transcoder,
            say), or needs more than tensors to be unpickled; a release or an id that is not known;
            a device that is not there.
    """
    _check_device(device)
    path = Path(where).expanduser()
    if path.exists():
        sae = _load_path(path)
    elif isinstance(where, str) and hub.is_hub_id(where):
        sae = hub.load_from_hub(where)
    else:
        raise FileNotFoundError(
            f"there is no folder or file {str(where)!r}; give one with an SAE in it, or the "
            "release/sae_id of a published SAE."
        )
    return _ready(sae, str(where)).to(device=device)


def _load_path(path: Path) -> sae_lens.SAE[Any]:
    file = path if path.is_file() else _weights_file(path)
    if file.name == _NEVER_OPENED:
        raise ValueError(
            f"{file} holds the state of sae_lens' trainer, not an SAE, and is never opened; name "
            "the folder that it lies in."
        )
    if file.name in _KINDS:
        return _KINDS[file.name][2](file)
    if file.name == sae_lens_folder.CONFIG:
        return _load_path(file.parent)
    if file.suffix == ".pt":
        return dictionary_learning.read_dictionary_learning(file)
    raise ValueError(
        f"{file} is not a file with an SAE that is known; name the folder that it lies in, or "
        f"{' or '.join(_KINDS)}."
    )


def _weights_file(folder: Path) -> Path:
    files = [folder / name for name in _KINDS if (folder / name).is_file()]
    if len(files) > 1:
        raise ValueError(
            f"{folder} holds more than one SAE ({', '.join(file.name for file in files)}); name "
            "one of these files."
        )
    if files:
        return files[0]
    looked_for = "; ".join(f"{c} and {w} ({library})" for w, (library, c, _) in _KINDS.items())
    below = sorted(
        {f.parent for w in _KINDS for depth in ("*", "*/*") for f in folder.glob(f"{depth}/{w}")}
    )
    below += sorted(f for f in folder.glob("*.pt") if f.name != _NEVER_OPENED)
    hint = f" Name one of those in it, such as {below[0]}." if below else ""
    raise FileNotFoundError(f"there is no SAE in {folder}: looked for {looked_for}.{hint}")


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    # Without CUDA, torch raises an AssertionError.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"the device {device!r} cannot be used ({one_line(error)}); choose 'cpu' or one "
            "that this machine has."
        ) from error


def _ready(sae: sae_lens.SAE[Any], where: str) -> sae_lens.SAE[Any]:
    """The SAE, set to read flat activations, once nothing speaks against measuring it."""
    import torch
    from sae_lens import TemporalSAE, Transcoder

    if isinstance(sae, (Transcoder, TemporalSAE)):
        raise ValueError(
            f"{where} is of the architecture {sae.cfg.architecture()!r}, and only SAEs that "
            "reconstruct each activation from itself can be measured; choose one of those."
        )
    normalised = sae.cfg.normalize_activations
    if normalised in sae_lens_folder.FOLDED_IN_TRAINING:
        raise ValueError(
            f"{where} reads activations that were normalised ({normalised}), and nothing there "
            "says by what, so it cannot be given activations in their original units. Add the "
            "activation_scaler.json of its checkpoint, or load it with sae_lens, fold the factor "
            "with sae.fold_activation_norm_scaling_factor(factor) and save it with save_model."
        )
    shape, fits = list(sae.W_dec.shape), [sae.W_enc.shape[1], sae.W_enc.shape[0]]
    if shape != fits:
        raise ValueError(
            f"{where} has W_dec of the shape {shape}, but its W_enc asks for {fits}; save both "
            "from the same SAE."
        )
    if sae.hook_z_reshaping_mode:
        # Only within a model do the activations of attention heads come head by head.
        sae.turn_off_forward_pass_hook_z_reshaping()
    return sae.to(dtype=torch.float32).eval()
