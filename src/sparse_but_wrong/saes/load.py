"""Find out what a path or a name is, and load the SAE that is there."""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sparse_but_wrong.saes.other_libraries import (
    read_dictionary_learning,
    read_gemma_scope,
    read_llama_scope,
    read_sparsify,
)
from sparse_but_wrong.saes.sae_lens_folder import (
    CONFIG,
    FOLDED_IN_TRAINING,
    WEIGHTS,
    check_kind,
    checked_config,
    read_sae_lens,
    scaled_decoder,
)
from sparse_but_wrong.untrusted import environment, one_line, quiet, usable_device, user_path

if TYPE_CHECKING:
    import sae_lens
    from torch import Tensor


class _Kind(NamedTuple):
    """What a library writes for an SAE, as paths in the SAE's folder, and what reads it."""

    library: str
    weights: str
    config: str | None
    read: Callable[[Path], sae_lens.SAE[Any]]
    """From the path of the weights."""
    suffix: str | None = None
    """One that this kind alone has, for weights under names of their own."""


_KINDS = (
    _Kind("sae_lens", WEIGHTS, CONFIG, read_sae_lens),
    _Kind("dictionary_learning", "ae.pt", "config.json", read_dictionary_learning, ".pt"),
    _Kind("sparsify", "sae.safetensors", "cfg.json", read_sparsify),
    _Kind("Gemma Scope", "params.npz", None, read_gemma_scope, ".npz"),
    _Kind("Llama Scope", "checkpoints/final.safetensors", "hyperparams.json", read_llama_scope),
)
_NEVER_OPENED = "trainer_state.pt"
_LONGEST = 1_000
NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
"""What the Hub's client, by its version, and sae_lens reach the network with."""


def load_sae(where: str | Path, device: str = "cpu") -> sae_lens.SAE[Any]:
    """Load an SAE from wherever it is, as a float32 sae_lens SAE for inference.

    It reads activations of shape [batch, d_in] in their original units: what sae_lens has not yet
    folded into the weights is folded. A BatchTopK SAE comes as the JumpReLU SAE that it is used as.
    Weights that are not finite are let through: metrics computed with them are NaN, and say so.
    Nothing is unpickled but tensors.

    Args:
        where: a folder of sae_lens (cfg.json, sae_weights.safetensors; also a checkpoint), of
            `dictionary_learning` (config.json, ae.pt), of EleutherAI's `sparsify` (cfg.json,
            sae.safetensors), of Gemma Scope (params.npz) or of Llama Scope (hyperparams.json,
            checkpoints/final.safetensors), or the file with the weights in it; or, where no such
            path exists, "release/sae_id" of sae_lens' directory of published SAEs, or
            "user/repository/folder" on the Hugging Face Hub. A leading ~ is the home folder. A
            `Path` is never looked up on the Hub.
        device: of the SAE, or "auto": a CUDA GPU if there is one, else the CPU.
    Raises:
        FileNotFoundError: there is no such path, or no SAE in it; the message says what was looked
            for.
        OSError: the Hub cannot be reached, or refuses.
        ValueError: what was found is damaged, contradicts itself, cannot be evaluated (for example
            a transcoder, or thresholds of NaN), or needs more than tensors to be unpickled; a
            release or an id that is not known; a device that is not there.
    """
    usable = usable_device(device, meta=True)
    path = user_path(where)
    if path.exists():
        sae = _load_path(path)
    elif isinstance(where, str) and _is_hub_id(where):
        sae = _load_from_hub(where)
    else:
        raise FileNotFoundError(
            f"there is no folder or file {str(where)!r}; name one, or release/sae_id of an SAE."
        )
    return _ready(sae, str(where)).to(device=usable)


def _load_path(path: Path) -> sae_lens.SAE[Any]:
    file = path if path.is_file() else _weights_file(path)
    if file.name in {kind.config for kind in _KINDS}:
        file = _weights_file(file.parent)
    if file.name == _NEVER_OPENED:
        raise ValueError(f"{file} holds no SAE and is never opened; name the folder it lies in.")
    names = {Path(kind.weights).name: kind for kind in _KINDS}
    kind = names.get(file.name) or next((k for k in _KINDS if k.suffix == file.suffix), None)
    if kind is None:
        raise ValueError(
            f"{file} is not a known file of an SAE; name its folder, or {' or '.join(names)}."
        )
    try:
        return kind.read(file)
    except OSError:
        raise
    except Exception as error:  # one SAE of many must not end the others
        # Names of tensors, say, are somebody else's, and may be of any length.
        is_short = len(str(error)) <= _LONGEST and "\n" not in str(error)
        if isinstance(error, ValueError) and is_short:
            raise
        raise ValueError(
            f"the SAE in {path} cannot be loaded ({type(error).__name__}: {one_line(error)}); copy "
            "it again from its source."
        ) from error


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
        file.parents[kind.weights.count("/")]
        for kind in _KINDS
        for depth in ("*", "*/*")
        for file in folder.glob(f"{depth}/{kind.weights}")
    )
    below += sorted(f for f in folder.glob("*.pt") if f.name != _NEVER_OPENED)
    hint = f" Name one of those in it, such as {below[0]}." if below else ""
    raise FileNotFoundError(f"there is no SAE in {folder}: looked for {looked_for}.{hint}")


def _ready(sae: sae_lens.SAE[Any], where: str) -> sae_lens.SAE[Any]:
    """The SAE, set to read flat activations, once nothing speaks against evaluating it."""
    import torch

    check_kind(type(sae), sae.cfg.architecture(), where)
    # NaN in what decides whether latents are active would show in no metric. A threshold of
    # infinity switches a latent off, which some do on purpose; not all of them.
    for name in ("threshold", "b_gate"):
        gate = getattr(sae, name, None)
        if gate is None:
            continue
        n_nan = int(gate.isnan().sum())
        if n_nan or (name == "threshold" and bool(gate.isinf().all())):
            odd = f"NaN in {n_nan}" if n_nan else f"{gate.flatten()[0].item():g} in all"
            raise ValueError(
                f"{where} has a {name} of {odd} of {gate.numel()} latents, which decides whether "
                "they are active; its training diverged or its file is damaged. Use an earlier "
                "checkpoint."
            )
    for name in ("hook_name", "model_name"):
        if not isinstance(sae.cfg.metadata[name], str):
            sae.cfg.metadata[name] = None
    normalised = sae.cfg.normalize_activations
    if normalised in FOLDED_IN_TRAINING:
        raise ValueError(
            f"{where} reads activations that were normalised ({normalised}), and nothing there "
            "says by what. Add the activation_scaler.json of its checkpoint, or fold the factor "
            "with sae.fold_activation_norm_scaling_factor(factor) and save it again."
        )
    if sae.W_dec.shape != sae.W_enc.shape[::-1]:
        raise ValueError(
            f"{where} has W_enc of the shape {list(sae.W_enc.shape)} and W_dec of the shape "
            f"{list(sae.W_dec.shape)}; save both from the same SAE."
        )
    if sae.hook_z_reshaping_mode:
        # Only within a model do the activations of attention heads come head by head.
        sae.turn_off_forward_pass_hook_z_reshaping()
    return sae.to(dtype=torch.float32).eval()


def _is_hub_id(text: str) -> bool:
    """Whether a text has the form of an id, not of a path that is mistyped below a folder here."""
    parts = text.split("/")
    if len(parts) < 2 or "\\" in text or not all(parts) or parts[0][0] in ".~":
        return False
    return not Path(parts[0]).is_dir() or parts[0] in _releases()


def _load_from_hub(name: str) -> sae_lens.SAE[Any]:
    """A published SAE, as sae_lens loads it; in float32, on the CPU."""
    with quiet():
        from sae_lens import SAE

        release, sae_id = _parse(name)
        # torch.load reads nothing but tensors meanwhile, whatever its callers ask for; it refuses
        # to load anything where both are set.
        tensors_only = environment(
            TORCH_FORCE_WEIGHTS_ONLY_LOAD="1", TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=None
        )
        try:
            with tensors_only:
                return SAE.from_pretrained(
                    release, sae_id, device="cpu", dtype="float32", converter=_converter(release)
                )
        except Exception as error:  # loaders of many publishers, over a network
            raise _explained(error, name, release) from error


def _converter(release: str) -> Any:
    """sae_lens' reader of its own folders, checked as local ones are; None for those of others."""
    from sparse_but_wrong.sae_lens_compat import (
        get_conversion_loader_name,
        sae_lens_huggingface_loader,
    )

    if get_conversion_loader_name(release) != "sae_lens":
        return None

    def read(
        repo_id: str, folder_name: str, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Tensor], Tensor | None]:
        config, weights, sparsity = sae_lens_huggingface_loader(repo_id, folder_name, **options)
        file = Path(repo_id) / folder_name / CONFIG
        _, config = checked_config(file, config, weights)
        return config, scaled_decoder(file, config, weights), sparsity

    return read


def _releases() -> dict[str, Any]:
    with quiet():
        from sparse_but_wrong.sae_lens_compat import get_pretrained_saes_directory

        return dict(get_pretrained_saes_directory())


def _parse(name: str) -> tuple[str, str]:
    """The release and the id, or the repository and the folder, that a name stands for."""
    release, inside = name.split("/", 1)
    if release not in _releases() and "/" in inside:
        repository, inside = inside.split("/", 1)
        release = f"{release}/{repository}"
    return release, inside


_GATED = (
    "is open only to those who have accepted the terms of its repository: accept them on its page "
    "on the Hub, then log in with `hf auth login`."
)
_NOWHERE = "is no folder here, and the Hub has no repository that you may see of the name"
_OFFLINE = (
    "is not in the cache here, and the Hub cannot be reached. Without a network, give the path of "
    "a local folder with the SAE."
)
_PICKLE = (
    "is a pickle with more in it than tensors, which can run any code when it is loaded; it was "
    "not loaded. If you trust it, convert it to a sae_lens folder yourself."
)
_STRANGE = (
    "A published SAE is named release/sae_id or user/repository/folder; one of another library, or "
    "for training, can be downloaded and loaded from its folder."
)


def _explained(error: Exception, name: str, release: str) -> Exception:
    """An error that says what to do, for one from somewhere inside sae_lens or the Hub's client."""
    from huggingface_hub import constants, errors

    says = f"{type(error).__name__}: {one_line(error)}"
    word, inside = name.split("/", 1)
    known: Iterable[str] = _releases()
    if release in known:  # then the slip of the pen is in the id
        word, known = inside, _releases()[release].saes_map
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.7)
    hint = f" Similar names are {', '.join(near)}." if near and word not in near else ""
    unreachable: Any = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
    unreachable += (ConnectionError, TimeoutError)
    if type(error).__module__.split(".")[0] in NETWORK:
        unreachable = Exception
    strange = f"is no path here, and sae_lens could not load it ({says}). {_STRANGE}{hint}"
    explanations: tuple[tuple[Any, type[Exception], str], ...] = (
        (errors.GatedRepoError, PermissionError, _GATED),
        (errors.RepositoryNotFoundError, ValueError, f"{_NOWHERE} {release!r}.{hint}"),
        (unreachable, ConnectionError, f"{_OFFLINE}{hint} The Hub is {constants.ENDPOINT}."),
        (pickle.UnpicklingError, ValueError, _PICKLE),
        (errors.EntryNotFoundError, ValueError, strange),
        (OSError, OSError, f"could not be fetched ({says}); try again, or give a local folder."),
        (Exception, ValueError, strange),
    )
    kind, text = next((kind, text) for of, kind, text in explanations if isinstance(error, of))
    return kind(f"{name} {text}")
