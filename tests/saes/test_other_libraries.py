"""SAEs of other libraries against their own formulas by hand, and files of ill will."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
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

D_IN, D_SAE = 6, 12
GEMMA_FOLDER = "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
LLAMA_FOLDER = "Llama3_1-8B-Base-L15R-8x"
NAN, INF = float("nan"), float("inf")


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = draw(40, D_IN, seed=99)
W_ENC, B_ENC = draw(D_IN, D_SAE, seed=1), 0.3 * draw(D_SAE, seed=2)
W_DEC, B_DEC = draw(D_SAE, D_IN, seed=3), draw(D_IN, seed=4)
THRESHOLD = draw(D_SAE, seed=5).abs()
RAW = X @ W_ENC + B_ENC
PRE = (X - B_DEC) @ W_ENC + B_ENC
VALUES, AT = relu(PRE).topk(3, dim=-1)
TOP_3 = torch.zeros_like(PRE).scatter(-1, AT, VALUES)

PLAIN = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
ENCODER = {"encoder.weight": W_ENC.T.contiguous(), "encoder.bias": B_ENC}
LINEAR = {**ENCODER, "decoder.weight": W_DEC.T.contiguous()}
ONE = {"k": torch.tensor(3, dtype=torch.int32), "threshold": torch.tensor(0.8)}
GATED = {
    "encoder.weight": ENCODER["encoder.weight"],
    "decoder.weight": LINEAR["decoder.weight"],
    "decoder_bias": B_DEC,
    "r_mag": 0.5 * draw(D_SAE, seed=6),
    "gate_bias": 0.3 * draw(D_SAE, seed=7),
    "mag_bias": 0.3 * draw(D_SAE, seed=8),
}
CLASSES: dict[str, dict[str, Tensor]] = {
    "AutoEncoder": {**LINEAR, "bias": B_DEC},
    "AutoEncoderNew": {**LINEAR, "decoder.bias": B_DEC},
    "GatedAutoEncoder": GATED,
    # It ignores the threshold that it also saves.
    "AutoEncoderTopK": {**LINEAR, "b_dec": B_DEC, **ONE, "threshold": torch.tensor(-1.0)},
    "BatchTopKSAE": {**LINEAR, "b_dec": B_DEC, **ONE},
    "MatryoshkaBatchTopKSAE": {**PLAIN, **ONE, "group_sizes": torch.tensor([4, 8])},
    "JumpReluAutoEncoder": {**PLAIN, "threshold": THRESHOLD},
}
SPARSIFY = {**ENCODER, "W_dec": W_DEC, "b_dec": B_DEC}
# As SparseCoder.save_to_disk writes it; num_latents = 0 leaves the width to the factor.
SPARSIFY_CONFIG: dict[str, Any] = json.loads(
    '{"activation": "topk", "expansion_factor": 2, "normalize_decoder": true, "num_latents": 0,'
    '"k": 3, "multi_topk": false, "skip_connection": false, "transcode": false, "d_in": 6}'
)
GEMMA = {**PLAIN, "threshold": THRESHOLD}
LLAMA = {**LINEAR, "decoder.bias": B_DEC}
HOOK, NORM, THETA = "blocks.15.hook_resid_post", 12.0, 5.0
LLAMA_CONFIG: dict[str, Any] = json.loads(
    '{"hook_point_in": "blocks.15.hook_resid_post", "hook_point_out": "blocks.15.hook_resid_post",'
    '"use_decoder_bias": true, "apply_decoder_bias_to_pre_encoder": false, "d_model": 6,'
    '"d_sae": 12, "act_fn": "jumprelu", "jump_relu_threshold": 5.0, "use_glu_encoder": false,'
    '"norm_activation": "dataset-wise", "sparsity_include_decoder_norm": true, "top_k": 50,'
    '"dataset_average_activation_norm": {"in": 12.0, "out": 12.0}}'
)
Changes = Mapping[str, Any]
NOTHING: Changes = {}
Write = Callable[..., Path]


def changed(tensors: Changes, changes: Changes) -> dict[str, Any]:
    return {name: value for name, value in {**tensors, **changes}.items() if value is not None}


def write(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file.parent


def dictionary(
    of: str, folder: Path, changes: Changes = NOTHING, io: Any = None, **trainer: Any
) -> Path:
    """As dictionary_learning saves its class `of`; without a class the config is left out."""
    if trainer.setdefault("dict_class", of) is not None:
        buffer = {"ctx_len": 128} | ({} if io is None else {"io": io})
        write(folder / "config.json", {"trainer": trainer, "buffer": buffer})
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(changed(CLASSES[of], changes), folder / "ae.pt")
    return folder


def sparsify(folder: Path, changes: Changes = NOTHING, **config: Any) -> Path:
    write(folder / "cfg.json", SPARSIFY_CONFIG | config)
    save_file(changed(SPARSIFY, changes), folder / "sae.safetensors")
    return folder


def gemma(folder: Path, changes: Changes = NOTHING) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **changed({k: t.numpy() for k, t in GEMMA.items()}, changes))
    return folder


def llama(folder: Path, changes: Changes = NOTHING, **config: Any) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    save_file(changed(LLAMA, changes), folder / "checkpoints/final.safetensors")
    return write(folder / "hyperparams.json", LLAMA_CONFIG | config)


batch_topk, topk, matryoshka, jumprelu = (
    partial(dictionary, name)
    for name in ("BatchTopKSAE", "AutoEncoderTopK", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder")
)


def agrees(sae: SAE[Any], x: Tensor, latents: Tensor, reconstruction: Tensor) -> None:
    # The formulas are those of the libraries to the letter, in another order of summation.
    torch.testing.assert_close(sae.encode(x), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(x), reconstruction, atol=1e-4, rtol=1e-5)
    assert {p.dtype for p in sae.parameters()} == {torch.float32}
    assert 0 < (latents > 0).float().mean() < 1


def origin(sae: SAE[Any]) -> tuple[str | None, str | None]:
    return sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name


GATE = ((X - B_DEC) @ W_ENC + GATED["gate_bias"] > 0).float()
MAGNITUDE = relu(GATED["r_mag"].exp() * ((X - B_DEC) @ W_ENC) + GATED["mag_bias"])


@pytest.mark.parametrize(
    ("write", "latents", "architecture", "library"),
    [
        (partial(dictionary, "AutoEncoderNew"), relu(RAW), "standard", None),
        (partial(dictionary, "GatedAutoEncoder"), GATE * MAGNITUDE, "gated", None),
        (topk, TOP_3, "topk", "dictionary_learning AutoEncoderTopK"),
        (partial(topk, k=3), TOP_3, "topk", None),
        (partial(topk, changes={"k": None}, k=3), TOP_3, "topk", None),
        (partial(batch_topk, k=3), relu(PRE) * (PRE > 0.8), "jumprelu", None),
        (partial(matryoshka, k=3), relu(PRE) * (PRE > 0.8), "jumprelu", None),
        (jumprelu, relu(RAW * (RAW > THRESHOLD)), "jumprelu", None),
        (sparsify, TOP_3, "topk", "sparsify"),
        (partial(sparsify, normalize_decoder=False), TOP_3, "topk", None),
        (partial(sparsify, multi_topk=True), TOP_3, "topk", None),
        (partial(sparsify, num_latents=D_SAE, signed=False), TOP_3, "topk", None),
        (gemma, relu(RAW * (RAW > THRESHOLD)), "jumprelu", "Gemma Scope"),
    ],
)
def test_formulas(
    write: Write, latents: Tensor, architecture: str, library: str | None, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    sae = load_sae(write(tmp_path / "anything"))
    assert torch.equal(torch.get_rng_state(), before)
    agrees(sae, X, latents, latents @ W_DEC + B_DEC)
    assert sae.cfg.architecture() == architecture
    assert library in (None, sae.cfg.metadata.converted_from)
    assert origin(sae) == (None, None)


def test_an_autoencoder_comes_with_its_decoder_scaled_to_unit_norm(tmp_path: Path) -> None:
    sae = load_sae(dictionary("AutoEncoder", tmp_path))
    # The library's from_pretrained divides the decoder by its norms and multiplies the encoder.
    agrees(sae, X, relu(PRE) * W_DEC.norm(dim=1), relu(PRE) @ W_DEC + B_DEC)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert sae.cfg.architecture() == "standard"


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("bias_first", [True, False])
def test_the_formula_of_llama_scope(include: bool, bias_first: bool, tmp_path: Path) -> None:
    """As its authors compute it: scale to √d_in, gate, scale back."""
    folder = llama(
        tmp_path / LLAMA_FOLDER,
        sparsity_include_decoder_norm=include,
        apply_decoder_bias_to_pre_encoder=bias_first,
    )
    sae, raw, scale = load_sae(folder), 5 * X, math.sqrt(D_IN) / NORM
    pre = (scale * raw - bias_first * B_DEC) @ W_ENC + B_ENC
    latents = pre * (pre / scale * (W_DEC.norm(dim=1) if include else 1.0) > THETA)
    agrees(sae, raw, latents, (latents @ W_DEC + B_DEC) / scale)
    assert sae.cfg.metadata.converted_from == "Llama Scope"
    assert origin(sae) == ("meta-llama/Llama-3.1-8B", HOOK)
    for file in ("checkpoints/final.safetensors", "hyperparams.json"):
        assert torch.equal(load_sae(folder / file)(raw), sae(raw))


def test_one_that_is_folded_already_is_not_folded_again(tmp_path: Path) -> None:
    options = {"norm_activation": "inference", "sparsity_include_decoder_norm": False}
    sae = load_sae(llama(tmp_path, **options))
    assert torch.equal(sae.W_enc, W_ENC)
    assert torch.equal(sae.state_dict()["threshold"], torch.full((D_SAE,), THETA))


def test_numbers_of_other_types_become_float32(tmp_path: Path) -> None:
    sae = load_sae(jumprelu(tmp_path, {name: t.bfloat16() for name, t in GEMMA.items()}))
    assert {p.dtype for p in sae.parameters()} == {torch.float32}
    assert torch.equal(sae.W_dec, W_DEC.bfloat16().float())
    big_endian = load_sae(gemma(tmp_path / "gemma", {"b_dec": B_DEC.numpy().astype(">f8")}))
    assert torch.equal(big_endian.b_dec, B_DEC)
    # Tensors that share their numbers are loaded.
    tied = load_sae(topk(tmp_path / "tied", {"decoder.weight": ENCODER["encoder.weight"].T}))
    assert torch.equal(tied.W_dec, tied.W_enc.T)


def test_the_class_is_told_from_names_that_only_one_has(tmp_path: Path) -> None:
    for of, architecture in (
        ("AutoEncoder", "standard"),
        ("GatedAutoEncoder", "gated"),
        ("MatryoshkaBatchTopKSAE", "jumprelu"),
    ):
        sae = load_sae(dictionary(of, tmp_path, dict_class=None))
        assert sae.cfg.architecture() == architecture


def test_a_checkpoint_has_its_config_one_folder_up(tmp_path: Path) -> None:
    file = topk(tmp_path) / "ae.pt"
    (tmp_path / "checkpoints").mkdir()
    file = file.rename(tmp_path / "checkpoints/ae_500.pt")
    assert load_sae(file).cfg.architecture() == "topk"


def test_a_checkpoint_from_while_k_was_annealed_keeps_its_own(tmp_path: Path) -> None:
    """The config is written before training and says the last k, 2."""
    sae = load_sae(topk(tmp_path, {"k": torch.tensor(5, dtype=torch.int32)}, k=2))
    assert sae.cfg.k == 5
    assert (sae.encode(X) > 0).sum(1).max() == 5


def test_a_config_of_an_older_version_of_sparsify_says_less(tmp_path: Path) -> None:
    write(sparsify(tmp_path) / "cfg.json", {"k": 3, "d_in": D_IN})
    for name in ("", "sae.safetensors", "cfg.json"):
        assert load_sae(tmp_path / name).cfg.d_sae == D_SAE


@pytest.mark.parametrize(
    ("trainer", "io", "hook"),
    [
        ({"layer": 3, "submodule_name": "resid_post"}, "out", "blocks.3.hook_resid_post"),
        ({"layer": 3, "submodule_name": "resid_post"}, None, "blocks.3.hook_resid_post"),
        ({"layer": 3, "submodule_name": "resid_post"}, "in", None),
        ({"layer": 3, "submodule_name": "resid_post_layer_3"}, None, "blocks.3.hook_resid_post"),
        ({"layer": 3, "submodule_name": "gpt_neox.layers.3.mlp"}, None, "gpt_neox.layers.3.mlp"),
        ({"layer": "x", "submodule_name": 3}, None, None),
        ({"layer": 3}, None, None),
    ],
)
def test_where_dictionary_learning_reads_is_noted(
    trainer: dict[str, Any], io: str | None, hook: str | None, tmp_path: Path
) -> None:
    sae = load_sae(topk(tmp_path, io=io, lm_name="some/model", **trainer))
    assert origin(sae) == ("some/model", hook)


def test_where_sparsify_reads_is_told_from_its_folder_and_its_run(tmp_path: Path) -> None:
    sparsify(tmp_path / "run/layers.5.mlp")
    write(tmp_path / "run/config.json", {"model": "EleutherAI/pythia-160m"})
    sae = load_sae(tmp_path / "run/layers.5.mlp")
    assert origin(sae) == ("EleutherAI/pythia-160m", "layers.5.mlp")


def test_where_gemma_scope_reads_is_told_from_its_folder(tmp_path: Path) -> None:
    sae = load_sae(gemma(tmp_path / GEMMA_FOLDER))
    assert origin(sae) == ("gemma-2-2b", "blocks.20.hook_resid_post")
    assert torch.equal(load_sae(tmp_path / GEMMA_FOLDER / "params.npz")(X), sae(X))
    # In the cache of the Hub, files are links to blobs whose names say nothing.
    cache = tmp_path / "models--google--gemma-scope-9b-pt-mlp"
    blob = gemma(cache / "blobs") / "params.npz"
    folder = cache / "snapshots/c0ffee/layer_3/width_16k/average_l0_10"
    folder.mkdir(parents=True)
    (folder / "params.npz").symlink_to(blob.rename(cache / "blobs/0123"))
    assert origin(load_sae(folder)) == ("gemma-2-9b", "blocks.3.hook_mlp_out")


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


def test_llama_scope_is_as_sae_lens_makes_it_of_what_it_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = LLAMA["decoder.weight"]
    local = llama(tmp_path / LLAMA_FOLDER, {"decoder.weight": decoder / decoder.norm(dim=0)})

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


def no_class(of: str, changes: Changes = NOTHING) -> Write:
    return partial(dictionary, of, changes=changes, dict_class=None)


EMPTY = {name: t[:0] if t.ndim else t for name, t in CLASSES["AutoEncoderTopK"].items()}
ONLY_A_WEIGHT = {**dict.fromkeys(CLASSES["AutoEncoder"]), "weight": B_DEC}


@pytest.mark.parametrize(
    ("write", "changes", "config", "says"),
    [
        (batch_topk, {"threshold": None}, {}, "has no threshold: .*threshold_start_step"),
        (batch_topk, {"threshold": torch.tensor(-1.0)}, {}, "has the threshold -1: none was"),
        (batch_topk, {"threshold": torch.tensor(NAN)}, {}, "has the threshold nan"),
        (batch_topk, {"threshold": torch.tensor(1)}, {}, "threshold .* torch.int64"),
        (matryoshka, {"threshold": torch.tensor(INF)}, {}, "has the threshold inf"),
        (jumprelu, {"threshold": torch.full((D_SAE,), NAN)}, {}, "threshold of NaN in 12 of 12"),
        (jumprelu, {"threshold": torch.tensor(0.1)}, {}, r"mismatch for threshold: .*\[12\]"),
        (partial(dictionary, "AutoEncoder"), {"bias": None}, {}, "misses bias; .* encoder.weight"),
        (topk, {"extra": B_DEC}, {}, "holds extra, which do not belong"),
        (topk, {"b_dec": B_DEC[:5]}, {}, r"mismatch for b_dec: .*\[5\].*\[6\]"),
        (topk, {"decoder.weight": W_DEC}, {}, r"mismatch for W_enc: .*\[6, 12\].*\[12, 6\]"),
        (topk, {"decoder.weight": B_DEC}, {}, "mT"),
        (batch_topk, {"encoder.weight": W_DEC[None]}, {}, "mismatch for W_enc"),
        (jumprelu, {"W_dec": B_DEC}, {}, r"shape of the decoder .* \[6\]"),
        (topk, {"b_dec": B_DEC.long()}, {}, "b_dec .* torch.int64"),
        (topk, EMPTY, {}, r"\[0, 6\]"),
        (topk, {"k": torch.tensor(7)}, {"k": 3}, "annealing from 6"),
        (topk, {"k": torch.tensor(13)}, {}, "is 13"),
        (topk, {"k": None}, {}, "no k"),
        (topk, {}, {"k": 4}, "says k = 3, but config.json says k = 4"),
        (topk, {}, {"k": "3"}, "k in .*config.json is '3'"),
        (topk, {}, {"k": 2, "activation_dim": 7}, "d_in = 7, but the weights"),
        (topk, {}, {"dict_class": "IdentityDict"}, "'IdentityDict'.*Available: AutoEncoder"),
        (topk, {}, {"dict_class": ["AutoEncoderTopK"]}, r"class \['AutoEncoderTopK'\]"),
        (topk, {}, {"io": "in_and_out"}, r"config\.json .*transcoder \(buffer\.io is"),
        (topk, {}, {"io": ["in", "out"]}, r"config\.json .*transcoder \(buffer\.io is"),
        # Names that others may use do not tell the class.
        (no_class("BatchTopKSAE"), {}, {}, "AutoEncoderTopK or BatchTopKSAE.*config.json"),
        (no_class("JumpReluAutoEncoder"), {}, {}, "Matryoshka.* or JumpRelu.*config.json"),
        (no_class("AutoEncoderNew"), {}, {}, "could belong to AutoEncoderNew.*config.json"),
        (no_class("AutoEncoder", ONLY_A_WEIGHT), {}, {}, r"\(weight\) belong to no known class"),
        (sparsify, {"W_skip": draw(D_IN, D_IN, seed=5)}, {}, "holds W_skip, which do not belong"),
        (sparsify, {}, {"transcode": True}, r"transcoder \(transcode is set\)"),
        (sparsify, {}, {"skip_connection": True}, r"transcoder \(skip_connection is set\)"),
        (sparsify, {}, {"activation": "groupmax"}, "activation .* is 'groupmax'"),
        (sparsify, {}, {"signed": True}, "signed .* is True"),
        (sparsify, {}, {"k": 13}, "k in .* is 13; .* 1 to 12"),
        (sparsify, {}, {"d_in": "6"}, "d_in = '6'"),
        (sparsify, {}, {"d_in": 7}, "says d_in = 7, but the weights in sae.safetensors have 6"),
        (sparsify, {}, {"num_latents": 11}, "says d_sae = 11, but the weights .* have 12"),
        (sparsify, {}, {"expansion_factor": 3}, "says d_sae = 18"),
        (gemma, {"threshold": None}, {}, "misses threshold"),
        (gemma, {"b_dec": np.array(["a"] * D_IN)}, {}, "params.npz is damaged"),
        (gemma, {"b_dec": np.array([None] * D_IN)}, {}, "params.npz is damaged.*pickle"),
        (gemma, {"b_dec": np.arange(D_IN)}, {}, "torch.int64"),
        (gemma, {"threshold": np.full(D_SAE, INF)}, {}, "threshold of inf in all"),
        (llama, {}, {"hook_point_out": "blocks.15.hook_mlp_out"}, "transcoder"),
        (llama, {}, {"act_fn": "topk"}, "act_fn .* is 'topk'"),
        (llama, {}, {"act_fn": [1]}, r"act_fn .* is \[1\]"),
        (llama, {}, {"use_glu_encoder": True}, "use_glu_encoder .* is True"),
        (llama, {}, {"sparsity_include_decoder_norm": "no"}, "norm in .* is 'no'"),
        (llama, {}, {"norm_activation": "token-wise"}, "'token-wise'"),
        (llama, {}, {"dataset_average_activation_norm": None}, "norm in .* is None"),
        (llama, {}, {"dataset_average_activation_norm": {"in": 0}}, "norm.in in .* is 0"),
        (llama, {}, {"dataset_average_activation_norm": {"in": 12.0, "out": 1.0}}, "transcoder"),
        (llama, {}, {"jump_relu_threshold": NAN}, "threshold in .* is nan"),
        (llama, {}, {"jump_relu_threshold": None}, "threshold in .* is None"),
        (llama, {}, {"d_sae": 11}, "d_sae = 11, but the weights in final.safetensors have 12"),
    ],
)
def test_what_does_not_make_an_sae_is_refused(
    write: Write, changes: Changes, config: Changes, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        load_sae(write(tmp_path, **(changes and {"changes": changes}), **config))


@pytest.mark.parametrize(
    "folder", ["gemma-scope-2b-{}/layer_1/a/b", "models--google--gemma-scope-{}/snapshots/a/b/c/d"]
)
def test_transcoders_of_gemma_scope_are_refused(folder: str, tmp_path: Path) -> None:
    load_sae(gemma(tmp_path / folder.format("res")))
    for name in (folder.format("pt-transcoders"), "transcoders/layer_1"):
        with pytest.raises(ValueError, match="transcoder"):
            load_sae(gemma(tmp_path / name))


def test_a_folder_without_its_config_and_a_folder_of_them(tmp_path: Path) -> None:
    (llama(tmp_path / LLAMA_FOLDER) / "hyperparams.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"hyperparams.json is missing"):
        load_sae(tmp_path / LLAMA_FOLDER)
    with pytest.raises(FileNotFoundError, match=rf"such as .*{LLAMA_FOLDER}\.$"):
        load_sae(tmp_path)


class Bomb:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(
    old_format: bool, tmp_path: Path
) -> None:
    file, trace = topk(tmp_path) / "ae.pt", tmp_path / "trace"
    # The second would take a terabyte of memory.
    bombs = {"mkdir": Bomb(os.mkdir, str(trace)), "bytearray": Bomb(bytearray, 10**12)}
    for says, bomb in bombs.items():
        content = {**CLASSES["AutoEncoderTopK"], "config": bomb}
        torch.save(content, file, _use_new_zipfile_serialization=not old_format)
        with pytest.raises(ValueError, match=rf"ae\.pt .*more than tensors.*{says}"):
            load_sae(tmp_path)
    assert not trace.exists()
    torch.save(bombs["mkdir"], file)
    torch.load(file, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize("name", ["ae.pt", "params.npz"])
@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04 half a file", b"\x93NUMPY\x01\x00", None]
)
def test_a_damaged_file_is_refused(name: str, content: bytes | None, tmp_path: Path) -> None:
    file = (topk if name == "ae.pt" else gemma)(tmp_path) / name
    file.write_bytes(file.read_bytes()[:500] if content is None else content)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        load_sae(tmp_path)


@pytest.mark.parametrize("content", [[1.0], {"W": [1.0]}, torch.ones(2), {1: torch.ones(2)}])
def test_something_else_than_tensors_by_name_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, topk(tmp_path) / "ae.pt")
    with pytest.raises(ValueError, match="something else than tensors by name"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (ENCODER["encoder.weight"].to_sparse(), "no plain tensor .*sparse"),
        (ENCODER["encoder.weight"].to("meta"), "no plain tensor .*meta"),
        (torch.ones(1).expand(200_000, 100_000), "claims to hold 80,000,0.* bytes"),
        (torch.empty(10**9, 10**9, device="meta"), "no plain tensor"),
    ],
)
def test_a_tensor_that_is_more_than_its_file_is_never_written_out(
    weight: Tensor, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"ae\.pt {says}|ae\.pt is {says}"):
        load_sae(topk(tmp_path, {"encoder.weight": weight}))


def test_a_packed_file_is_not_unpacked(tmp_path: Path) -> None:
    """torch unpacks what is compressed, which torch.save never writes: a megabyte can be 1 GB."""
    file = topk(tmp_path, {"encoder.weight": torch.zeros(1000, 1000)}) / "ae.pt"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert torch.load(file, weights_only=True)["encoder.weight"].shape == (1000, 1000)
    with pytest.raises(ValueError, match=r"ae\.pt claims to hold 4,0.* bytes"):
        load_sae(tmp_path)
    (tmp_path / "gemma").mkdir()
    zeros = np.zeros((D_IN, 100_000), np.float32)
    np.savez_compressed(tmp_path / "gemma/params.npz", W_enc=zeros)
    with pytest.raises(ValueError, match="claims to hold 2,400,128 bytes"):
        load_sae(tmp_path / "gemma")
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 6), }\n" % 10**13
    with zipfile.ZipFile(tmp_path / "gemma/params.npz", "w") as archive:
        size = len(header).to_bytes(2, "little")  # of a header that claims more than there is
        archive.writestr("W_enc.npy", b"\x93NUMPY\x01\x00" + size + header)
    with pytest.raises(ValueError, match=r"params\.npz is damaged"):
        load_sae(tmp_path / "gemma")
