"""Local folders of Llama Scope against its formula and against sae_lens' loader of the Hub."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from safetensors.torch import save_file
from torch import Tensor

from sparse_but_wrong.saes.load import load_sae

D_IN, D_SAE = 6, 10
FOLDER = "Llama3_1-8B-Base-L15R-8x"
HOOK = "blocks.15.hook_resid_post"


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = 5 * draw(40, D_IN, seed=99)
TENSORS = {
    "encoder.weight": draw(D_SAE, D_IN, seed=1),
    "encoder.bias": 0.3 * draw(D_SAE, seed=2),
    "decoder.weight": draw(D_IN, D_SAE, seed=3),
    "decoder.bias": draw(D_IN, seed=4),
}
NORM, THRESHOLD = 12.0, 5.0
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


def save(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_file(TENSORS if tensors is None else tensors, folder / "checkpoints/final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("bias_first", [True, False])
def test_its_formula(include: bool, bias_first: bool, tmp_path: Path) -> None:
    """As its authors compute it: scale to √d_in, gate, scale back."""
    folder = save(
        tmp_path / FOLDER,
        sparsity_include_decoder_norm=include,
        apply_decoder_bias_to_pre_encoder=bias_first,
    )
    sae = load_sae(folder)
    scale = math.sqrt(D_IN) / NORM
    x = scale * X - bias_first * TENSORS["decoder.bias"]
    pre = x @ TENSORS["encoder.weight"].T + TENSORS["encoder.bias"]
    gated = pre / scale * (TENSORS["decoder.weight"].norm(dim=0) if include else 1.0)
    latents = pre * (gated > THRESHOLD)
    assert 0 < (latents > 0).float().mean() < 0.5
    torch.testing.assert_close(sae.encode(X), latents, atol=1e-5, rtol=1e-5)
    reconstruction = (latents @ TENSORS["decoder.weight"].T + TENSORS["decoder.bias"]) / scale
    torch.testing.assert_close(sae(X), reconstruction, atol=1e-4, rtol=1e-5)
    metadata = sae.cfg.metadata
    assert metadata.converted_from == "Llama Scope"
    assert (metadata.model_name, metadata.hook_name) == ("meta-llama/Llama-3.1-8B", HOOK)
    for file in ("checkpoints/final.safetensors", "hyperparams.json"):
        assert torch.equal(load_sae(folder / file)(X), sae(X))


def test_the_same_as_sae_lens_makes_of_what_it_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = TENSORS["decoder.weight"]
    unit = {**TENSORS, "decoder.weight": decoder / decoder.norm(dim=0)}
    local = save(tmp_path / FOLDER, unit)

    def download(_: str = "", filename: str = "", subfolder: str = "", **__: Any) -> str:
        return str(local / (Path(subfolder).name if subfolder else "") / Path(filename).name)

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    config, weights, _ = loaders.llama_scope_sae_huggingface_loader(
        "fnlp/Llama3_1-8B-Base-LXR-8x", FOLDER, cfg_overrides={"dtype": "float32"}
    )
    published = SAE.from_dict({**config, "metadata": {}})
    published.load_state_dict(weights)
    # What sae_lens does with the factor that its directory gives for the release.
    published.fold_activation_norm_scaling_factor(math.sqrt(D_IN) / NORM)
    torch.testing.assert_close(load_sae(local)(X), published(X), atol=1e-5, rtol=1e-5)


def test_one_that_is_folded_already_is_not_folded_again(tmp_path: Path) -> None:
    sae = load_sae(save(tmp_path, norm_activation="inference", sparsity_include_decoder_norm=False))
    assert torch.equal(sae.W_enc, TENSORS["encoder.weight"].T)
    assert torch.equal(sae.state_dict()["threshold"], torch.full((D_SAE,), THRESHOLD))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, "transcoder"),
        ({"act_fn": "topk"}, "activation 'topk'"),
        ({"act_fn": [1]}, r"activation \[1\]"),
        ({"use_glu_encoder": True}, "GLU"),
        ({"sparsity_include_decoder_norm": "no"}, "norm in .* is 'no'"),
        ({"norm_activation": "token-wise"}, "'token-wise'"),
        ({"dataset_average_activation_norm": None}, "norms None"),
        ({"dataset_average_activation_norm": {"in": 0}}, "norm.in in .* is 0"),
        ({"dataset_average_activation_norm": {"in": NORM, "out": 1.0}}, "12 for the input and 1.0"),
        ({"jump_relu_threshold": float("nan")}, "threshold in .* is nan"),
        ({"jump_relu_threshold": None}, "threshold in .* is None"),
        ({"d_sae": 11}, "d_sae = 11, but the weights in final.safetensors have 10"),
        ({"d_model": "x"}, "d_in = 'x'"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        load_sae(save(tmp_path, **config))


def test_a_folder_without_its_config_is_refused(tmp_path: Path) -> None:
    (save(tmp_path) / "hyperparams.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"hyperparams.json is missing"):
        load_sae(tmp_path)


def test_a_folder_of_them_names_one(tmp_path: Path) -> None:
    save(tmp_path / FOLDER)
    with pytest.raises(FileNotFoundError, match=rf"such as .*{FOLDER}\.$"):
        load_sae(tmp_path)
