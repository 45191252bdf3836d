"""Published SAEs, by sae_lens' directory of them or by their place on the Hugging Face Hub."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.saes.sae_lens_config import checked_config, scaled_decoder
from sparse_but_wrong.saes.sae_lens_folder import CONFIG, WEIGHTS
from sparse_but_wrong.untrusted import one_line, quiet

if TYPE_CHECKING:
    import sae_lens
    from sae_lens import PretrainedSaeHuggingfaceLoader
    from torch import Tensor

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_FORCE_NOT = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
"""What the Hub's client, by its version, and sae_lens reach the network with."""


def is_hub_id(text: str) -> bool:
    """Whether a text can only be meant for the Hub: it has the form of an id, not of a path.

    A text whose first part is a folder here is a path, mistyped further on.
    """
    parts = text.split("/")
    if len(parts) < 2 or "\\" in text or not all(parts) or parts[0][0] in ".~":
        return False
    return not Path(parts[0]).is_dir() or parts[0] in _releases()


def load_from_hub(name: str) -> sae_lens.SAE[Any]:
    """A published SAE, as sae_lens loads it; in float32, on the CPU.

    No loader unpickles anything but tensors meanwhile.

    Args:
        name: "release/sae_id", of sae_lens' directory, or "user/repository/folder", a folder on the
            Hub that sae_lens can read.
    Raises:
        ValueError: a release or an id that is not known (the message names near ones), or a folder
            that cannot be read.
        OSError: the Hub cannot be reached, or refuses.
    """
    with quiet():
        from sae_lens import SAE

        release, sae_id = _parse(name)
        try:
            with _weights_only():
                return SAE.from_pretrained(
                    release, sae_id, device="cpu", dtype="float32", converter=_converter(release)
                )
        # Loaders of many publishers, over a network: there is no end to what they may raise.
        except Exception as error:
            raise _explained(error, name, release) from error


def _converter(release: str) -> PretrainedSaeHuggingfaceLoader | None:
    """sae_lens' reader of its own folders, checked as local ones are; None for those of others."""
    from sparse_but_wrong.sae_lens_compat import (
        get_conversion_loader_name,
        sae_lens_huggingface_loader,
    )

    if get_conversion_loader_name(release) != "sae_lens":
        return None

    def read(
        repo_id: str,
        folder_name: str,
        device: str,
        force_download: bool,
        cfg_overrides: dict[str, Any] | None,
    ) -> tuple[dict[str, Any], dict[str, Tensor], Tensor | None]:
        config, weights, sparsity = sae_lens_huggingface_loader(
            repo_id, folder_name, device, force_download, cfg_overrides
        )
        file = Path(repo_id) / folder_name / CONFIG
        _, config = checked_config(file, config, weights, WEIGHTS)
        return config, scaled_decoder(file, config, weights, WEIGHTS), sparsity

    return read


def _releases() -> dict[str, Any]:
    with quiet():
        from sparse_but_wrong.sae_lens_compat import get_pretrained_saes_directory

        return dict(get_pretrained_saes_directory())


def _parse(name: str) -> tuple[str, str]:
    """The release and the id, or the repository and the folder, that a name stands for."""
    releases = _releases()
    release, sae_id = name.split("/", 1)
    if release in releases:
        ids = releases[release].saes_map
        if sae_id not in ids:
            raise ValueError(
                f"the release {release!r} has no SAE {sae_id!r}; {_near(sae_id, ids, 'it has')}"
            )
        return release, sae_id
    parts = name.split("/", 2)
    if len(parts) < 3:
        raise ValueError(
            f"there is no folder or file {name!r}, and sae_lens' directory of published SAEs has "
            f"no release {release!r}; {_near(release, releases, 'releases are')} A folder on the "
            "Hub is named user/repository/folder."
        )
    return f"{parts[0]}/{parts[1]}", parts[2]


def _near(word: str, known: Iterable[str], otherwise: str) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    more = ", …" if len(known) > 3 else ""
    return f"{otherwise} {', '.join(known[:3])}{more}."


@contextmanager
def _weights_only() -> Iterator[None]:
    """Let torch.load read nothing but tensors, whatever its callers and the environment ask for."""
    before = {name: os.environ.get(name) for name in (_FORCE, _FORCE_NOT)}
    os.environ[_FORCE] = "1"
    # torch refuses to load anything where both are set.
    os.environ.pop(_FORCE_NOT, None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _explained(error: Exception, name: str, release: str) -> Exception:
    """An error that says what to do, for one from somewhere inside sae_lens or the Hub's client."""
    import pickle

    from huggingface_hub import errors

    says = f"{type(error).__name__}: {one_line(error)}"
    # What is not in the directory may be a release with a slip of the pen.
    near = "" if "/" not in release else _hint(name)
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(
            f"{name} lies in a repository that is open only to those who have accepted its terms: "
            "accept them on its page on the Hub, then log in with `hf auth login`."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ValueError(
            f"the Hub has no repository {release!r} that you may see, and there is no such folder "
            f"here.{near}"
        )
    unreachable = isinstance(
        error,
        (
            errors.LocalEntryNotFoundError,
            errors.OfflineModeIsEnabled,
            ConnectionError,
            TimeoutError,
        ),
    )
    from_network = type(error).__module__.split(".")[0] in _NETWORK
    if unreachable or (from_network and not isinstance(error, errors.HfHubHTTPError)):
        return ConnectionError(
            f"the Hugging Face Hub ({_endpoint()}) cannot be reached, and {name} is not in its "
            "cache here. Without a network, give the path of a local folder with the SAE; that "
            f"needs no Hub.{near}"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return ValueError(
            f"{name} has no SAE that sae_lens can read ({says}). If it is one of another library, "
            f"download the folder and give its local path.{near}"
        )
    if isinstance(error, pickle.UnpicklingError):
        return ValueError(
            f"{name} is a pickle with more in it than tensors, which can run any code when it is "
            "loaded; it was not loaded. Choose another SAE, or convert it to a sae_lens folder "
            "yourself if you trust it."
        )
    if isinstance(error, OSError):
        return OSError(f"{name} could not be fetched ({says}); try again, or give a local folder.")
    return ValueError(
        f"{name} could not be loaded by sae_lens ({says}). If it is one of another library, or for "
        f"training, download the folder and give its local path.{near}"
    )


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name.split("/")[0], list(_releases()), n=3, cutoff=0.7)
    return f" If a release was meant: near ones are {', '.join(near)}." if near else ""


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT
