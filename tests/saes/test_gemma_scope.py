"""Local folders of Gemma Scope against its formula and against sae_lens' loader of the Hub."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from torch import Tensor
from torch.nn.functional import relu

from sparse_but_wrong.saes.load import load_sae

D_IN, D_SAE = 6, 10
FOLDER = "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = draw(40, D_IN, seed=99)
TENSORS = {
    "W_enc": draw(D_IN, D_SAE, seed=1),
    "b_enc": 0.3 * draw(D_SAE, seed=2),
    "W_dec": draw(D_SAE, D_IN, seed=3),
    "b_dec": draw(D_IN, seed=4),
    "threshold": draw(D_SAE, seed=5).abs(),
}


def save(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in TENSORS.items()}
    arrays |= changes
    np.savez(folder / "params.npz", **{k: v for k, v in arrays.items() if v is not None})
    return folder


def test_its_formula(tmp_path: Path) -> None:
    sae = load_sae(save(tmp_path / FOLDER))
    pre = X @ TENSORS["W_enc"] + TENSORS["b_enc"]
    latents = relu(pre * (pre > TENSORS["threshold"]))
    assert 0 < (latents > 0).float().mean() < 0.5
    torch.testing.assert_close(sae.encode(X), latents, atol=1e-5, rtol=1e-5)
    reconstruction = latents @ TENSORS["W_dec"] + TENSORS["b_dec"]
    torch.testing.assert_close(sae(X), reconstruction, atol=1e-5, rtol=1e-5)
    metadata = sae.cfg.metadata
    assert metadata.converted_from == "Gemma Scope"
    assert (metadata.model_name, metadata.hook_name) == ("gemma-2-2b", "blocks.20.hook_resid_post")
    assert torch.equal(load_sae(tmp_path / FOLDER / "params.npz")(X), sae(X))


@pytest.mark.parametrize(
    "folder", [FOLDER, "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"]
)
def test_the_same_as_sae_lens_makes_of_what_it_downloads(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = save(tmp_path / folder)
    monkeypatch.setattr(loaders, "hf_hub_download", lambda **_: str(local / "params.npz"))
    repo, inside = folder.split("/", 1)
    config, weights, _ = loaders.gemma_2_sae_huggingface_loader(
        repo, inside, cfg_overrides={"d_in": D_IN, "d_sae": D_SAE, "normalize_activations": "none"}
    )
    published = SAE.from_dict({**config, "metadata": {}})
    published.load_state_dict(weights)
    assert torch.equal(load_sae(local)(X), published(X))


def test_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    """There, files are links to blobs whose names say nothing."""
    cache = tmp_path / "models--google--gemma-scope-9b-pt-mlp"
    blob = save(cache / "blobs") / "params.npz"
    folder = cache / "snapshots/c0ffee/layer_3/width_16k/average_l0_10"
    folder.mkdir(parents=True)
    (folder / "params.npz").symlink_to(blob.rename(cache / "blobs/0123"))
    metadata = load_sae(folder).cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == ("gemma-2-9b", "blocks.3.hook_mlp_out")


def test_without_its_published_names_nothing_is_made_up(tmp_path: Path) -> None:
    metadata = load_sae(save(tmp_path / "mine")).cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == (None, None)


@pytest.mark.parametrize(
    "folder",
    [
        "gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_5",
        "models--google--gemma-scope-2b-pt-transcoders/snapshots/a/layer_1/width_16k/average_l0_5",
        "transcoders/layer_1",
    ],
)
def test_transcoders_are_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="transcoder"):
        load_sae(save(tmp_path / folder))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"threshold": None}, "misses threshold"),
        ({"scaling_factor": np.ones(D_SAE)}, "holds scaling_factor"),
        ({"W_dec": TENSORS["W_dec"].T.numpy()}, r"W_dec .* \[6, 10\]"),
        ({"b_dec": np.array(["a"] * D_IN)}, "something else than arrays of numbers"),
        ({"b_dec": np.array([None] * D_IN)}, "something else than arrays of numbers.*pickle"),
        ({"b_dec": np.arange(D_IN)}, "torch.int64"),
        ({"threshold": np.full(D_SAE, np.nan, np.float32)}, "threshold of NaN in 10"),
        ({"threshold": np.full(D_SAE, np.inf, np.float32)}, "threshold of inf in all"),
    ],
)
def test_odd_files_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        load_sae(save(tmp_path, **changes))


def test_other_byte_orders_are_numbers_too(tmp_path: Path) -> None:
    sae = load_sae(save(tmp_path, b_dec=TENSORS["b_dec"].numpy().astype(">f8")))
    assert torch.equal(sae.b_dec, TENSORS["b_dec"])


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04 half a file", b"\x93NUMPY\x01\x00"]
)
def test_damaged_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "params.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"params\.npz is damaged"):
        load_sae(tmp_path)


def test_what_unpacks_to_more_than_it_takes_is_not_unpacked(tmp_path: Path) -> None:
    zeros = np.zeros((D_IN, 100_000), np.float32)
    np.savez_compressed(tmp_path / "params.npz", W_enc=zeros)
    with pytest.raises(ValueError, match="claims to hold 2,400,128 bytes"):
        load_sae(tmp_path)


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 6), }\n" % 10**13
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", content)
    with pytest.raises(ValueError, match=r"params\.npz is damaged"):
        load_sae(tmp_path)
