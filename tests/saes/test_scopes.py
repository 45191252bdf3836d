"""Local folders of Gemma and Llama Scope against their formulas and sae_lens' own loaders."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import relu

from sparse_but_wrong.saes.load import load_sae

D_IN, D_SAE = 6, 10
GEMMA_FOLDER = "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
LLAMA_FOLDER = "Llama3_1-8B-Base-L15R-8x"


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = draw(40, D_IN, seed=99)
GEMMA = {
    "W_enc": draw(D_IN, D_SAE, seed=1),
    "b_enc": 0.3 * draw(D_SAE, seed=2),
    "W_dec": draw(D_SAE, D_IN, seed=3),
    "b_dec": draw(D_IN, seed=4),
    "threshold": draw(D_SAE, seed=5).abs(),
}
LLAMA = {
    "encoder.weight": GEMMA["W_enc"].T.contiguous(),
    "encoder.bias": GEMMA["b_enc"],
    "decoder.weight": GEMMA["W_dec"].T.contiguous(),
    "decoder.bias": GEMMA["b_dec"],
}
HOOK, NORM, THRESHOLD = "blocks.15.hook_resid_post", 12.0, 5.0
CONFIG: dict[str, Any] = {
    "hook_point_in": HOOK,
    "hook_point_out": HOOK,
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "d_model": D_IN,
    "d_sae": D_SAE,
    "act_fn": "jumprelu",
    "jump_relu_threshold": THRESHOLD,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": NORM, "out": NORM},
    "sparsity_include_decoder_norm": True,
    "use_glu_encoder": False,
    "top_k": 50,
}


def gemma(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in GEMMA.items()} | changes
    np.savez(folder / "params.npz", **{k: v for k, v in arrays.items() if v is not None})
    return folder


def llama(folder: Path, tensors: dict[str, Tensor] = LLAMA, **config: Any) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "checkpoints/final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def test_the_formula_of_gemma_scope(tmp_path: Path) -> None:
    sae = load_sae(gemma(tmp_path / GEMMA_FOLDER))
    pre = X @ GEMMA["W_enc"] + GEMMA["b_enc"]
    latents = relu(pre * (pre > GEMMA["threshold"]))
    assert 0 < (latents > 0).float().mean() < 0.5
    torch.testing.assert_close(sae.encode(X), latents, atol=1e-5, rtol=1e-5)
    reconstruction = latents @ GEMMA["W_dec"] + GEMMA["b_dec"]
    torch.testing.assert_close(sae(X), reconstruction, atol=1e-5, rtol=1e-5)
    metadata = sae.cfg.metadata
    assert metadata.converted_from == "Gemma Scope"
    assert (metadata.model_name, metadata.hook_name) == ("gemma-2-2b", "blocks.20.hook_resid_post")
    assert torch.equal(load_sae(tmp_path / GEMMA_FOLDER / "params.npz")(X), sae(X))
    # Without its published names nothing is made up; other byte orders are numbers too.
    other = load_sae(gemma(tmp_path / "mine", b_dec=GEMMA["b_dec"].numpy().astype(">f8")))
    assert torch.equal(other.b_dec, GEMMA["b_dec"])
    assert (other.cfg.metadata.model_name, other.cfg.metadata.hook_name) == (None, None)


@pytest.mark.parametrize(
    "folder", [GEMMA_FOLDER, "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"]
)
def test_gemma_scope_is_as_sae_lens_makes_it_of_what_it_downloads(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = gemma(tmp_path / folder)
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
    blob = gemma(cache / "blobs") / "params.npz"
    folder = cache / "snapshots/c0ffee/layer_3/width_16k/average_l0_10"
    folder.mkdir(parents=True)
    (folder / "params.npz").symlink_to(blob.rename(cache / "blobs/0123"))
    metadata = load_sae(folder).cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == ("gemma-2-9b", "blocks.3.hook_mlp_out")


@pytest.mark.parametrize(
    "folder",
    [
        "gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_5",
        "models--google--gemma-scope-2b-pt-transcoders/snapshots/a/layer_1/width_16k/average_l0_5",
        "transcoders/layer_1",
    ],
)
def test_transcoders_of_gemma_scope_are_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="transcoder"):
        load_sae(gemma(tmp_path / folder))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"threshold": None}, "misses threshold"),
        ({"scaling_factor": np.ones(D_SAE)}, "holds scaling_factor"),
        ({"W_dec": GEMMA["W_dec"].T.numpy()}, r"W_dec .* \[6, 10\]"),
        ({"b_dec": np.array(["a"] * D_IN)}, "params.npz is damaged"),
        ({"b_dec": np.array([None] * D_IN)}, "params.npz is damaged.*pickle"),
        ({"b_dec": np.arange(D_IN)}, "torch.int64"),
        ({"threshold": np.full(D_SAE, np.nan, np.float32)}, "threshold of NaN in 10"),
        ({"threshold": np.full(D_SAE, np.inf, np.float32)}, "threshold of inf in all"),
    ],
)
def test_odd_files_of_gemma_scope_are_refused(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        load_sae(gemma(tmp_path, **changes))


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04 half a file", b"\x93NUMPY\x01\x00", None]
)
def test_damaged_files_of_gemma_scope_are_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "params.npz"
    if content is None:  # a header that claims more than there is
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 6), }\n" % 10**13
        with zipfile.ZipFile(file, "w") as archive:
            size = len(header).to_bytes(2, "little")
            archive.writestr("W_enc.npy", b"\x93NUMPY\x01\x00" + size + header)
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"params\.npz is damaged"):
        load_sae(tmp_path)


def test_what_unpacks_to_more_than_it_takes_is_not_unpacked(tmp_path: Path) -> None:
    zeros = np.zeros((D_IN, 100_000), np.float32)
    np.savez_compressed(tmp_path / "params.npz", W_enc=zeros)
    with pytest.raises(ValueError, match="claims to hold 2,400,128 bytes"):
        load_sae(tmp_path)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("bias_first", [True, False])
def test_the_formula_of_llama_scope(include: bool, bias_first: bool, tmp_path: Path) -> None:
    """As its authors compute it: scale to √d_in, gate, scale back."""
    folder = llama(
        tmp_path / LLAMA_FOLDER,
        sparsity_include_decoder_norm=include,
        apply_decoder_bias_to_pre_encoder=bias_first,
    )
    sae, raw = load_sae(folder), 5 * X
    scale = math.sqrt(D_IN) / NORM
    x = scale * raw - bias_first * LLAMA["decoder.bias"]
    pre = x @ LLAMA["encoder.weight"].T + LLAMA["encoder.bias"]
    gated = pre / scale * (LLAMA["decoder.weight"].norm(dim=0) if include else 1.0)
    latents = pre * (gated > THRESHOLD)
    assert 0 < (latents > 0).float().mean() < 0.5
    torch.testing.assert_close(sae.encode(raw), latents, atol=1e-5, rtol=1e-5)
    reconstruction = (latents @ LLAMA["decoder.weight"].T + LLAMA["decoder.bias"]) / scale
    torch.testing.assert_close(sae(raw), reconstruction, atol=1e-4, rtol=1e-5)
    metadata = sae.cfg.metadata
    assert metadata.converted_from == "Llama Scope"
    assert (metadata.model_name, metadata.hook_name) == ("meta-llama/Llama-3.1-8B", HOOK)
    for file in ("checkpoints/final.safetensors", "hyperparams.json"):
        assert torch.equal(load_sae(folder / file)(raw), sae(raw))


def test_llama_scope_is_as_sae_lens_makes_it_of_what_it_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = LLAMA["decoder.weight"]
    local = llama(
        tmp_path / LLAMA_FOLDER, {**LLAMA, "decoder.weight": decoder / decoder.norm(dim=0)}
    )

    def download(_: str = "", filename: str = "", subfolder: str = "", **__: Any) -> str:
        return str(local / (Path(subfolder).name if subfolder else "") / Path(filename).name)

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    config, weights, _ = loaders.llama_scope_sae_huggingface_loader(
        "fnlp/Llama3_1-8B-Base-LXR-8x", LLAMA_FOLDER, cfg_overrides={"dtype": "float32"}
    )
    published = SAE.from_dict({**config, "metadata": {}})
    published.load_state_dict(weights)
    # What sae_lens does with the factor that its directory gives for the release.
    published.fold_activation_norm_scaling_factor(math.sqrt(D_IN) / NORM)
    torch.testing.assert_close(load_sae(local)(5 * X), published(5 * X), atol=1e-5, rtol=1e-5)


def test_one_that_is_folded_already_is_not_folded_again(tmp_path: Path) -> None:
    options = {"norm_activation": "inference", "sparsity_include_decoder_norm": False}
    sae = load_sae(llama(tmp_path, **options))
    assert torch.equal(sae.W_enc, LLAMA["encoder.weight"].T)
    assert torch.equal(sae.state_dict()["threshold"], torch.full((D_SAE,), THRESHOLD))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, "transcoder"),
        ({"act_fn": "topk"}, "activation .* is 'topk'"),
        ({"act_fn": [1]}, r"activation .* is \[1\]"),
        ({"use_glu_encoder": True}, "use_glu_encoder .* is True"),
        ({"sparsity_include_decoder_norm": "no"}, "norm in .* is 'no'"),
        ({"norm_activation": "token-wise"}, "'token-wise'"),
        ({"dataset_average_activation_norm": None}, "norm in .* is None"),
        ({"dataset_average_activation_norm": {"in": 0}}, "norm.in in .* is 0"),
        ({"dataset_average_activation_norm": {"in": NORM, "out": 1.0}}, "transcoder .* 12"),
        ({"jump_relu_threshold": float("nan")}, "threshold in .* is nan"),
        ({"jump_relu_threshold": None}, "threshold in .* is None"),
        ({"d_sae": 11}, "d_sae = 11, but the weights in final.safetensors have 10"),
        ({"d_model": "x"}, "d_in = 'x'"),
    ],
)
def test_what_cannot_be_loaded_of_llama_scope_is_refused(
    config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        load_sae(llama(tmp_path, **config))


def test_a_folder_without_its_config_and_a_folder_of_them(tmp_path: Path) -> None:
    (llama(tmp_path / LLAMA_FOLDER) / "hyperparams.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"hyperparams.json is missing"):
        load_sae(tmp_path / LLAMA_FOLDER)
    with pytest.raises(FileNotFoundError, match=rf"such as .*{LLAMA_FOLDER}\.$"):
        load_sae(tmp_path)
