"""Published SAEs, without a network: what is asked of sae_lens, and what is said when it fails."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import errors
from sae_lens import SAE, StandardSAE, StandardSAEConfig, Transcoder, TranscoderConfig
from sae_lens.loading import pretrained_sae_loaders as loaders

from sparse_but_wrong.saes.load import load_sae

Calls = list[tuple[str, str]]
RELEASE = "gemma-scope-2b-pt-res"
SAE_ID = "layer_0/width_16k/average_l0_105"
FORCE, FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def answer(monkeypatch: pytest.MonkeyPatch, reply: Callable[[], Any]) -> Calls:
    """Let sae_lens reply without a network; what it was asked for is noted."""
    calls: Calls = []

    def from_pretrained(release: str, sae_id: str, **_: Any) -> Any:
        calls.append((release, sae_id))
        return reply()

    monkeypatch.setattr(SAE, "from_pretrained", from_pretrained)
    return calls


def small(**config: Any) -> StandardSAE:
    return StandardSAE(StandardSAEConfig(d_in=6, d_sae=10, **config))


def raises(error: Exception) -> Callable[[], Any]:
    def reply() -> Any:
        raise error

    return reply


def http_error(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    response: Any = SimpleNamespace(headers={}, request=None, status_code=status)
    return kind("it says\nmany things", response=response)


# Which client the Hub's library speaks through depends on its version.
ConnectError = type("ConnectError", (Exception,), {"__module__": "httpx._exceptions"})


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        (f"{RELEASE}/{SAE_ID}", (RELEASE, SAE_ID)),
        ("user/repo/folder", ("user/repo", "folder")),
        ("user/repo/a/b c/d", ("user/repo", "a/b c/d")),
    ],
)
def test_what_is_asked_for(
    name: str, asked: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = small()

    def reply() -> Any:
        warnings.warn("You are loading an SAE using the repo_id directly", stacklevel=1)  # stays in
        return sae

    calls = answer(monkeypatch, reply)
    assert load_sae(name) is sae
    assert calls == [asked]


def test_a_local_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answer(monkeypatch, small)
    small().save_model(tmp_path / RELEASE / SAE_ID)
    monkeypatch.chdir(tmp_path)
    load_sae(f"{RELEASE}/{SAE_ID}")
    assert calls == []
    # Another SAE of the release is still a published one.
    load_sae(f"{RELEASE}/layer_1/width_16k/average_l0_102")
    assert calls == [(RELEASE, "layer_1/width_16k/average_l0_102")]


@pytest.mark.parametrize("before", [{}, {FORCE: "0"}, {FORCE_NOT: "1"}])
def test_no_loader_unpickles_meanwhile(
    before: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "trace"),)

    for name in (FORCE, FORCE_NOT):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    torch.save(Bomb(), tmp_path / "bomb.pt")
    answer(monkeypatch, lambda: torch.load(tmp_path / "bomb.pt", weights_only=False))
    with pytest.raises(ValueError, match="is a pickle with more in it than tensors"):
        load_sae("user/repo/folder")
    assert not (tmp_path / "trace").exists()
    assert {n: os.environ[n] for n in (FORCE, FORCE_NOT) if n in os.environ} == before


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (f"{RELEASE}/layer_0/width_16k/average_l0_106", f"not found .*Similar .* {SAE_ID}"),
        (f"{RELEASE}/ÿ", r"no path here.*ÿ not found .*\.\.\."),
        ("gemma-scope-2b-pt-rez/x", "no path here.*not found .*Similar .* gemma-scope-2b-pt-res"),
    ],
)
def test_an_unknown_release_or_id_names_near_ones(name: str, says: str) -> None:
    """sae_lens looks into its directory before it asks the Hub."""
    with pytest.raises(ValueError, match=says):
        load_sae(name)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (errors.LocalEntryNotFoundError("no"), ConnectionError, "cannot be reached.*local folder"),
        (errors.OfflineModeIsEnabled("no"), ConnectionError, "cannot be reached.*local folder"),
        (ConnectError("no"), ConnectionError, "cannot be reached.*local folder"),
        (TimeoutError("no"), ConnectionError, "cannot be reached.*local folder"),
        (http_error(errors.GatedRepoError, 403), PermissionError, "accept them"),
        (
            http_error(errors.RepositoryNotFoundError, 404),
            ValueError,
            "no repository .* 'user/repo",
        ),
        (http_error(errors.RemoteEntryNotFoundError, 404), ValueError, "could not load it"),
        (http_error(errors.HfHubHTTPError, 500), OSError, "could not be fetched .*many things"),
        (OSError("disk full"), OSError, "could not be fetched .*disk full"),
        (errors.HFValidationError("bad id"), ValueError, "could not load it .*bad id"),
        (KeyError("batchtopk"), ValueError, "could not load it .*batchtopk.*folder"),
        (pickle.UnpicklingError("no"), ValueError, "is a pickle with more in it"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(
    error: Exception, kind: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, raises(error))
    with pytest.raises(kind, match=says) as raised:
        load_sae("user/repo/folder")
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)
    assert "user/repo" in str(raised.value)
    with pytest.raises(kind) as raised:  # perhaps it was a slip in the release
        load_sae(f"gemma-scope-2b-pt-rez/{SAE_ID}")
    if kind in (ValueError, ConnectionError) and not isinstance(error, pickle.UnpicklingError):
        assert "Similar names are gemma-scope-2b-pt-res" in str(raised.value)


def test_without_a_network_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Through sae_lens and the Hub's own client, told to stay offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("user/repo/folder", f"{RELEASE}/{SAE_ID}"):
        with pytest.raises(ConnectionError, match=f"{name} is not in the .* cannot be reached"):
            load_sae(name)


def test_published_saes_are_checked_as_local_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    transcoder = TranscoderConfig(d_in=6, d_sae=10, d_out=6, apply_b_dec_to_input=False)
    for sae, says in (
        (Transcoder(transcoder), "is of the architecture 'transcoder'"),
        (small(normalize_activations="expected_average_only_in"), "normalised"),
    ):
        answer(monkeypatch, lambda sae=sae: sae)
        with pytest.raises(ValueError, match=f"user/repo/folder .*{says}"):
            load_sae("user/repo/folder")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"activation_fn_str": "tanh-relu"}, "'tanh-relu'"),
        ({"activation_fn_str": "topk"}, "k = None"),
        ({"d_sae": "10"}, "d_sae in user/repo/folder/cfg.json is '10'"),
    ],
)
def test_a_folder_of_sae_lens_is_checked_as_local_ones_are(
    change: dict[str, Any], says: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = small()
    sae.save_model(tmp_path)
    file = tmp_path / "cfg.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))

    def download(repo_id: str, filename: str, **_: Any) -> str:
        assert repo_id == "user/repo"
        if "sparsity" in filename:
            raise errors.EntryNotFoundError("no such file")
        return str(tmp_path / Path(filename).name)

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    if says is None:
        x = torch.randn(5, 6)
        assert torch.equal(load_sae("user/repo/folder")(x), sae(x))
    else:
        with pytest.raises(ValueError, match=f"user/repo/folder .*could not load it .*{says}"):
            load_sae("user/repo/folder")
