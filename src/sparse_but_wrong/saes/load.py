"""Whatever SAE a user has, as one that can be measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.saes import (
    dictionary_learning,
    gemma_scope,
    hub,
    llama_scope,
    sae_lens_folder,
    sparsify,
)
from sparse_but_wrong.saes.sae_lens_config import check_kind
from sparse_but_wrong.untrusted import one_line

if TYPE_CHECKING:
    import sae_lens
    from torch import Tensor


@dataclass(frozen=True)
class _Kind:
    """What a library writes for an SAE, as paths in the SAE's folder, and what reads it."""

    library: str
    weights: str
    config: str | None
    read: Callable[[Path], sae_lens.SAE[Any]]
    """From the path of the weights."""

    def folder(self, weights: Path) -> Path:
        return weights.parents[self.weights.count("/")]


_KINDS = (
    _Kind(
        "sae_lens",
        sae_lens_folder.WEIGHTS,
        sae_lens_folder.CONFIG,
        lambda file: sae_lens_folder.read_sae_lens(file.parent),
    ),
    _Kind(
        "dictionary_learning",
        dictionary_learning.WEIGHTS,
        dictionary_learning.CONFIG,
        dictionary_learning.read_dictionary_learning,
    ),
    _Kind(
        "sparsify",
        sparsify.WEIGHTS,
        sparsify.CONFIG,
        lambda file: sparsify.read_sparsify(file.parent),
    ),
    _Kind("Gemma Scope", gemma_scope.WEIGHTS, None, gemma_scope.read_gemma_scope),
    _Kind("Llama Scope", llama_scope.WEIGHTS, llama_scope.CONFIG, llama_scope.read_llama_scope),
)
_BY_NAME = {Path(kind.weights).name: kind for kind in _KINDS}
_BY_SUFFIX = {".pt": _BY_NAME[dictionary_learning.WEIGHTS], ".npz": _BY_NAME[gemma_scope.WEIGHTS]}
"""Suffixes that one kind alone has, for files under names of their own."""

_CONFIGS = {kind.config for kind in _KINDS if kind.config is not None}

_NEVER_OPENED = "trainer_state.pt"
_LONGEST = 1_000


def load_sae(where: str | Path, device: str = "cpu") -> sae_lens.SAE[Any]:
    """Load an SAE from wherever it is, as a float32 sae_lens SAE for inference.

    It reads activations of shape [batch, d_in] in their original units: what sae_lens has not yet
    folded into the weights is folded. A BatchTopK SAE comes as the JumpReLU SAE that it is used as.
    Weights that are not finite are let through: what is measured with them is NaN, and says so.
    Nothing is unpickled but tensors.

    Args:
        where: a folder of sae_lens (cfg.json, sae_weights.safetensors; also a checkpoint), of
            `dictionary_learning` (config.json, ae.pt), of EleutherAI's `sparsify` (cfg.json,
            sae.safetensors), of Gemma Scope (params.npz) or of Llama Scope (hyperparams.json,
            checkpoints/final.safetensors), or the file with the weights in it; or, where no such
            path exists, "release/sae_id" of sae_lens' directory of published SAEs, or
            "user/repository/folder" on the Hugging Face Hub. A leading ~ is the home folder. A
            `Path` is never looked up on the Hub.
        device: of the SAE.
    Raises:
        FileNotFoundError: there is no such path, or no SAE in it; the message says what was looked
            for.
        OSError: the Hub cannot be reached, or refuses.
        ValueError: what was found is damaged, contradicts itself, cannot be measured (a transcoder,
            say, or thresholds that are NaN), or needs more than tensors to be unpickled; a release
            or an id that is not known; a device that is not there. The message is one line.
    """
    _check_device(device)
    path = Path(where)
    # Where there is no such user, the name stands for itself.
    with suppress(RuntimeError):
        path = path.expanduser()
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
    try:
        return _read(path)
    except OSError:
        raise
    except ValueError as error:
        # Names of tensors, say, are somebody else's, and may be of any length.
        if len(str(error)) > _LONGEST or "\n" in str(error):
            raise ValueError(one_line(error)) from error
        raise
    # What nobody has thought of ends here: one SAE of many must not end the others.
    except Exception as error:
        raise ValueError(
            f"the SAE in {path} cannot be loaded ({type(error).__name__}: {one_line(error)}); copy "
            "it again from its source."
        ) from error


def _read(path: Path) -> sae_lens.SAE[Any]:
    file = path if path.is_file() else _weights_file(path)
    if file.name == _NEVER_OPENED:
        raise ValueError(
            f"{file} holds the state of sae_lens' trainer, not an SAE, and is never opened; name "
            "the folder that it lies in."
        )
    if file.name in _CONFIGS:
        return _read(file.parent)
    kind = _BY_NAME.get(file.name) or _BY_SUFFIX.get(file.suffix)
    if kind is None:
        raise ValueError(
            f"{file} is not a file with an SAE that is known; name the folder that it lies in, or "
            f"{' or '.join(_BY_NAME)}."
        )
    return kind.read(file)


def _weights_file(folder: Path) -> Path:
    files = [folder / kind.weights for kind in _KINDS if (folder / kind.weights).is_file()]
    if len(files) > 1:
        raise ValueError(
            f"{folder} holds more than one SAE ({', '.join(file.name for file in files)}); name "
            "one of these files."
        )
    if files:
        return files[0]
    looked_for = "; ".join(
        f"{' and '.join(filter(None, (kind.config, kind.weights)))} ({kind.library})"
        for kind in _KINDS
    )
    below = sorted(
        {
            kind.folder(file)
            for kind in _KINDS
            for depth in ("*", "*/*")
            for file in folder.glob(f"{depth}/{kind.weights}")
        }
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


def _check_gate(name: str, gate: Tensor | None, where: str) -> None:
    """Check what a latent's value is compared with, and is then 0: nothing measured would show it.

    A threshold of infinity switches a latent off, which some do on purpose; not all of them.
    """
    if gate is None:
        return
    n_nan = int(gate.isnan().sum())
    if n_nan or (name == "threshold" and bool(gate.isinf().all())):
        odd = f"NaN in {n_nan}" if n_nan else f"{gate.flatten()[0].item():g} in all"
        raise ValueError(
            f"{where} has a {name} of {odd} of {gate.numel()} latents, which decides whether they "
            "are active, so what is measured would say nothing; its training diverged or its file "
            "is damaged. Choose an earlier checkpoint."
        )


def _ready(sae: sae_lens.SAE[Any], where: str) -> sae_lens.SAE[Any]:
    """The SAE, set to read flat activations, once nothing speaks against measuring it."""
    import torch

    check_kind(type(sae), sae.cfg.architecture(), where)
    for name in ("threshold", "b_gate"):
        _check_gate(name, getattr(sae, name, None), where)
    for name in ("hook_name", "model_name"):
        if not isinstance(sae.cfg.metadata[name], str):
            sae.cfg.metadata[name] = None
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
