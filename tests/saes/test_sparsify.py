"""SAEs of sparsify against its own formulas, written out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import relu

from sparse_but_wrong.saes.load import load_sae

D_IN, D_SAE, K = 6, 12, 4


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TENSORS = {
    "encoder.weight": draw(D_SAE, D_IN, seed=1),
    "encoder.bias": 0.3 * draw(D_SAE, seed=2),
    "W_dec": draw(D_SAE, D_IN, seed=3),
    "b_dec": draw(D_IN, seed=4),
}
# As SparseCoder.save_to_disk writes it; num_latents = 0 leaves the width to the factor.
CONFIG = {
    "activation": "topk",
    "expansion_factor": 2,
    "normalize_decoder": True,
    "num_latents": 0,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D_IN,
}


def save(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(TENSORS if tensors is None else tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"normalize_decoder": False},
        {"multi_topk": True},
        {"num_latents": D_SAE, "signed": False},
    ],
)
def test_topk(config: dict[str, Any], tmp_path: Path) -> None:
    sae = load_sae(save(tmp_path / "anything", **config))
    x = draw(40, D_IN, seed=99)
    pre = relu((x - TENSORS["b_dec"]) @ TENSORS["encoder.weight"].T + TENSORS["encoder.bias"])
    values, at = pre.topk(K, dim=-1)
    latents = torch.zeros_like(pre).scatter(-1, at, values)
    # The formulas are those of the library to the letter, in another order of summation.
    torch.testing.assert_close(sae.encode(x), latents, atol=1e-5, rtol=1e-5)
    reconstruction = latents @ TENSORS["W_dec"] + TENSORS["b_dec"]
    torch.testing.assert_close(sae(x), reconstruction, atol=1e-5, rtol=1e-5)
    assert sae.cfg.architecture() == "topk"
    assert sae.cfg.metadata.converted_from == "sparsify"


def test_a_config_of_an_older_version_says_less(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps({"k": K, "d_in": D_IN}))
    for name in ("", "sae.safetensors", "cfg.json"):
        assert load_sae(tmp_path / name).cfg.d_sae == D_SAE


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"transcode": True}, r"transcoder \(transcode is set\)"),
        ({"skip_connection": True}, r"transcoder \(skip_connection is set\)"),
        ({"activation": "groupmax"}, "activation .* is 'groupmax'"),
        ({"signed": True}, "signed .* is True"),
        ({"k": None}, "k in .* is None"),
        ({"k": "4"}, "k in .* is '4'"),
        ({"k": float("nan")}, "k in .* is nan"),
        ({"activation": [1]}, r"activation .* is \[1\]"),
        ({"d_in": "6"}, "d_in = '6'"),
        ({"k": 13}, "k in .* is 13; .* 1 to 12"),
        ({"d_in": 7}, "says d_in = 7, but the weights in sae.safetensors have 6"),
        ({"num_latents": 11}, "says d_sae = 11, but the weights in sae.safetensors have 12"),
        ({"expansion_factor": 3}, "says d_sae = 18"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        load_sae(save(tmp_path, **config))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"W_skip": draw(D_IN, D_IN, seed=5)}, "holds W_skip, which do not belong"),
        ({"W_dec": TENSORS["W_dec"].T.contiguous()}, r"W_dec .* \[6, 12\].*encoder.weight has"),
        ({"W_dec": None, "b_dec": None}, "misses W_dec, b_dec; an SAE of its kind has"),
    ],
)
def test_odd_tensors_are_refused(
    change: dict[str, Tensor | None], says: str, tmp_path: Path
) -> None:
    changed = {**TENSORS, **change}
    with pytest.raises(ValueError, match=says):
        load_sae(save(tmp_path, {name: t for name, t in changed.items() if t is not None}))


def test_where_it_reads_is_told_from_its_folder_and_its_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(run / "layers.5.mlp")
    (run / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m"}))
    metadata = load_sae(run / "layers.5.mlp").cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == ("EleutherAI/pythia-160m", "layers.5.mlp")
    metadata = load_sae(save(tmp_path / "other" / "my sae")).cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == (None, None)
