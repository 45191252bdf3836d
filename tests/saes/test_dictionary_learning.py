"""SAEs of dictionary_learning against its own formulas, written out by hand."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu

from sparse_but_wrong.saes.load import load_sae

D_IN, D_SAE = 6, 10


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = draw(40, D_IN, seed=99)

LINEAR = {
    "encoder.weight": draw(D_SAE, D_IN, seed=1),
    "encoder.bias": 0.3 * draw(D_SAE, seed=2),
    "decoder.weight": draw(D_IN, D_SAE, seed=3),
}
PLAIN = {
    "W_enc": draw(D_IN, D_SAE, seed=1),
    "b_enc": 0.3 * draw(D_SAE, seed=2),
    "W_dec": draw(D_SAE, D_IN, seed=3),
    "b_dec": draw(D_IN, seed=4),
}
BIAS = draw(D_IN, seed=4)
TOPK = {**LINEAR, "b_dec": BIAS, "k": torch.tensor(3, dtype=torch.int32)}
BATCH_TOPK = {**TOPK, "threshold": torch.tensor(0.8)}
MATRYOSHKA = {
    **PLAIN,
    "k": torch.tensor(3, dtype=torch.int32),
    "threshold": torch.tensor(0.8),
    "group_sizes": torch.tensor([4, 6]),
}
JUMPRELU = {**PLAIN, "threshold": draw(D_SAE, seed=5).abs()}
GATED = {
    "encoder.weight": LINEAR["encoder.weight"],
    "decoder.weight": LINEAR["decoder.weight"],
    "decoder_bias": BIAS,
    "r_mag": 0.5 * draw(D_SAE, seed=6),
    "gate_bias": 0.3 * draw(D_SAE, seed=7),
    "mag_bias": 0.3 * draw(D_SAE, seed=8),
}


def save(folder: Path, tensors: object, dict_class: str | None = None, **trainer: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "ae.pt")
    if dict_class is not None:
        config = {"trainer": {"dict_class": dict_class, **trainer}, "buffer": {"ctx_len": 128}}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def agrees(sae: Any, latents: Tensor, reconstruction: Tensor) -> None:
    # The formulas are those of the library to the letter, in another order of summation.
    torch.testing.assert_close(sae.encode(X), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae(X), reconstruction, atol=1e-5, rtol=1e-5)
    assert sae.W_enc.dtype == sae.W_dec.dtype == torch.float32
    assert (latents > 0).any()
    assert (latents == 0).any()


def test_autoencoder_with_its_decoder_scaled_to_unit_norm(tmp_path: Path) -> None:
    sae = load_sae(save(tmp_path, {**LINEAR, "bias": BIAS}, "AutoEncoder", lm_name="some/model"))
    latents = relu((X - BIAS) @ LINEAR["encoder.weight"].T + LINEAR["encoder.bias"])
    reconstruction = latents @ LINEAR["decoder.weight"].T + BIAS
    # The library's from_pretrained divides the decoder by its norms and multiplies the encoder.
    agrees(sae, latents * LINEAR["decoder.weight"].norm(dim=0), reconstruction)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert sae.cfg.architecture() == "standard"
    assert sae.cfg.metadata.model_name == "some/model"
    assert sae.cfg.metadata.converted_from == "dictionary_learning AutoEncoder"


def test_autoencoder_new_encodes_the_input_as_it_is(tmp_path: Path) -> None:
    sae = load_sae(save(tmp_path, {**LINEAR, "decoder.bias": BIAS}, "AutoEncoderNew"))
    latents = relu(X @ LINEAR["encoder.weight"].T + LINEAR["encoder.bias"])
    agrees(sae, latents, latents @ LINEAR["decoder.weight"].T + BIAS)


def test_gated(tmp_path: Path) -> None:
    sae = load_sae(save(tmp_path, GATED, "GatedAutoEncoder"))
    x_enc = (X - BIAS) @ GATED["encoder.weight"].T
    gate = (x_enc + GATED["gate_bias"] > 0).float()
    latents = gate * relu(GATED["r_mag"].exp() * x_enc + GATED["mag_bias"])
    agrees(sae, latents, latents @ GATED["decoder.weight"].T + BIAS)


@pytest.mark.parametrize("k_at", ["file", "config", "both"])
def test_topk(k_at: str, tmp_path: Path) -> None:
    tensors = dict(TOPK)
    if k_at == "config":
        del tensors["k"]
    # It ignores the threshold that it also saves.
    tensors["threshold"] = torch.tensor(-1.0)
    sae = load_sae(
        save(tmp_path, tensors, "AutoEncoderTopK", **({} if k_at == "file" else {"k": 3}))
    )
    pre = relu((X - BIAS) @ LINEAR["encoder.weight"].T + LINEAR["encoder.bias"])
    values, at = pre.topk(3, dim=-1)
    latents = torch.zeros_like(pre).scatter(-1, at, values)
    agrees(sae, latents, latents @ LINEAR["decoder.weight"].T + BIAS)
    assert sae.cfg.architecture() == "topk"


def test_batch_topk_is_used_with_its_threshold(tmp_path: Path) -> None:
    sae = load_sae(save(tmp_path, BATCH_TOPK, "BatchTopKSAE", k=3))
    pre = relu((X - BIAS) @ LINEAR["encoder.weight"].T + LINEAR["encoder.bias"])
    latents = pre * (pre > 0.8)
    agrees(sae, latents, latents @ LINEAR["decoder.weight"].T + BIAS)
    assert sae.cfg.architecture() == "jumprelu"


def test_matryoshka(tmp_path: Path) -> None:
    sae = load_sae(save(tmp_path, MATRYOSHKA, "MatryoshkaBatchTopKSAE", k=3))
    pre = relu((X - PLAIN["b_dec"]) @ PLAIN["W_enc"] + PLAIN["b_enc"])
    latents = pre * (pre > 0.8)
    agrees(sae, latents, latents @ PLAIN["W_dec"] + PLAIN["b_dec"])


def test_jumprelu_encodes_the_input_as_it_is(tmp_path: Path) -> None:
    sae = load_sae(save(tmp_path, JUMPRELU, "JumpReluAutoEncoder"))
    pre = X @ PLAIN["W_enc"] + PLAIN["b_enc"]
    latents = relu(pre * (pre > JUMPRELU["threshold"]))
    agrees(sae, latents, latents @ PLAIN["W_dec"] + PLAIN["b_dec"])


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in JUMPRELU.items()}
    sae = load_sae(save(tmp_path, tensors, "JumpReluAutoEncoder"))
    assert {p.dtype for p in sae.parameters()} == {torch.float32}
    assert torch.equal(sae.W_dec, PLAIN["W_dec"].bfloat16().float())


@pytest.mark.parametrize(
    ("tensors", "architecture"),
    [({**LINEAR, "bias": BIAS}, "standard"), (GATED, "gated"), (MATRYOSHKA, "jumprelu")],
)
def test_the_class_is_told_from_names_that_only_one_has(
    tensors: dict[str, Tensor], architecture: str, tmp_path: Path
) -> None:
    assert load_sae(save(tmp_path, tensors)).cfg.architecture() == architecture


@pytest.mark.parametrize(
    ("tensors", "could"),
    [
        (BATCH_TOPK, "could belong to AutoEncoderTopK or BatchTopKSAE"),
        (JUMPRELU, "could belong to MatryoshkaBatchTopKSAE or JumpReluAutoEncoder"),
        ({**LINEAR, "decoder.bias": BIAS}, "could belong to AutoEncoderNew"),
        ({"weight": BIAS}, r"\(weight\) belong to no known class"),
    ],
)
def test_names_that_others_may_use_do_not_tell_the_class(
    tensors: dict[str, Tensor], could: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"{could}.*config.json"):
        load_sae(save(tmp_path, tensors))


def test_a_checkpoint_has_its_config_one_folder_up(tmp_path: Path) -> None:
    save(tmp_path, TOPK, "AutoEncoderTopK")
    (tmp_path / "checkpoints").mkdir()
    file = (tmp_path / "ae.pt").rename(tmp_path / "checkpoints/ae_500.pt")
    assert load_sae(file).cfg.architecture() == "topk"


class Bomb:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(
    old_format: bool, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    # The second would take a terabyte of memory.
    bombs = {"mkdir": Bomb(os.mkdir, str(trace)), "bytearray": Bomb(bytearray, 10**12)}
    for says, bomb in bombs.items():
        save(tmp_path, {}, "AutoEncoderTopK")
        content = {**TOPK, "config": bomb}
        torch.save(content, tmp_path / "ae.pt", _use_new_zipfile_serialization=not old_format)
        with pytest.raises(ValueError, match=rf"ae\.pt .*more than tensors.*{says}"):
            load_sae(tmp_path)
    assert not trace.exists()
    torch.save(Bomb(os.mkdir, str(trace)), tmp_path / "ae.pt")
    torch.load(tmp_path / "ae.pt", weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 half a file", None])
def test_a_damaged_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = save(tmp_path, TOPK, "AutoEncoderTopK") / "ae.pt"
    file.write_bytes(file.read_bytes()[:500] if content is None else content)
    with pytest.raises(ValueError, match=r"ae.pt is damaged"):
        load_sae(tmp_path)


@pytest.mark.parametrize("content", [[1.0], {"W": [1.0]}, torch.ones(2), {1: torch.ones(2)}])
def test_something_else_than_tensors_by_name_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="something else than tensors by name"):
        load_sae(save(tmp_path, content, "AutoEncoderTopK"))


@pytest.mark.parametrize(
    ("tensors", "dict_class", "trainer", "says"),
    [
        (TOPK, "BatchTopKSAE", {}, "has no threshold: .*threshold_start_step"),
        (
            {**TOPK, "threshold": torch.tensor(-1.0)},
            "BatchTopKSAE",
            {},
            "has the threshold -1: none was measured",
        ),
        (
            {**TOPK, "threshold": torch.tensor(float("nan"))},
            "BatchTopKSAE",
            {},
            "has the threshold nan",
        ),
        ({**TOPK, "threshold": torch.tensor(1)}, "BatchTopKSAE", {}, "threshold .* torch.int64"),
        (
            {**MATRYOSHKA, "threshold": torch.tensor(float("inf"))},
            "MatryoshkaBatchTopKSAE",
            {},
            "has the threshold inf",
        ),
        (
            {**JUMPRELU, "threshold": torch.full((D_SAE,), float("nan"))},
            "JumpReluAutoEncoder",
            {},
            "threshold of NaN in 10 of 10",
        ),
        (TOPK, "IdentityDict", {}, "class 'IdentityDict'.*Available: AutoEncoder"),
        (LINEAR, "AutoEncoder", {}, "misses bias; an SAE of its kind has encoder.weight"),
        ({**TOPK, "extra": BIAS}, "AutoEncoderTopK", {}, "holds extra, which do not belong"),
        ({**TOPK, "b_dec": BIAS[:5]}, "AutoEncoderTopK", {}, r"b_dec .* \[5\].*d_in = 6"),
        (
            {**TOPK, "decoder.weight": LINEAR["decoder.weight"].T},
            "AutoEncoderTopK",
            {},
            r"decoder.weight .* \[10, 6\].*encoder.weight has d_in = 6",
        ),
        ({**TOPK, "b_dec": BIAS[None]}, "AutoEncoderTopK", {}, r"b_dec .* \[1, 6\], not \[d_in\]"),
        ({**TOPK, "b_dec": BIAS.long()}, "AutoEncoderTopK", {}, "b_dec .* torch.int64"),
        (
            {**JUMPRELU, "threshold": torch.tensor(0.1)},
            "JumpReluAutoEncoder",
            {},
            r"threshold .* \[\], not \[d_sae\]",
        ),
        (TOPK, "AutoEncoderTopK", {"k": 4}, "says k = 3, but config.json says k = 4"),
        (TOPK, "AutoEncoderTopK", {"k": "3"}, "k in .*config.json is '3'"),
        (TOPK, "AutoEncoderTopK", {"k": 2, "activation_dim": 7}, "d_in = 7, but the weights"),
        (TOPK, "AutoEncoderTopK", {"dict_size": "x"}, "d_sae = 'x', but the weights"),
        (TOPK, ["AutoEncoderTopK"], {}, r"class \['AutoEncoderTopK'\]"),
        ({**TOPK, "k": torch.tensor(float("nan"))}, "AutoEncoderTopK", {}, "is nan"),
        ({**TOPK, "k": torch.tensor(7)}, "AutoEncoderTopK", {"k": 3}, "annealing from 6"),
        ({**TOPK, "k": torch.tensor(11)}, "AutoEncoderTopK", {}, "is 11"),
        ({**TOPK, "k": torch.tensor(0)}, "AutoEncoderTopK", {}, "is 0"),
        (
            {name: value for name, value in TOPK.items() if name != "k"},
            "AutoEncoderTopK",
            {},
            "no k",
        ),
        (
            {name: value[:0] if value.ndim else value for name, value in TOPK.items()},
            "AutoEncoderTopK",
            {},
            r"\[0, 6\]",
        ),
    ],
)
def test_what_does_not_make_an_sae_is_refused(
    tensors: dict[str, Tensor],
    dict_class: Any,
    trainer: dict[str, Any],
    says: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=says):
        load_sae(save(tmp_path, tensors, dict_class, **trainer))


def test_a_checkpoint_from_while_k_was_annealed_keeps_its_own(tmp_path: Path) -> None:
    """The config is written before training and says the last k, 2."""
    annealed = {**TOPK, "k": torch.tensor(5, dtype=torch.int32)}
    sae = load_sae(save(tmp_path, annealed, "AutoEncoderTopK", k=2))
    assert sae.cfg.k == 5
    assert (sae.encode(X) > 0).sum(1).max() == 5


def with_buffer(folder: Path, io: object, **trainer: object) -> Path:
    save(folder, TOPK, "AutoEncoderTopK", **trainer)
    config = json.loads((folder / "config.json").read_text())
    config["buffer"] = {} if io is None else {"io": io}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("io", ["in_and_out", ["in", "out"], "both"])
def test_a_transcoder_is_refused(io: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json .*transcoder \(buffer\.io is"):
        load_sae(with_buffer(tmp_path, io))


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
def test_where_it_reads_is_noted(
    trainer: dict[str, Any], io: str | None, hook: str | None, tmp_path: Path
) -> None:
    metadata = load_sae(with_buffer(tmp_path, io, lm_name="some/model", **trainer)).cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == ("some/model", hook)


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (LINEAR["encoder.weight"].to_sparse(), "no plain tensor .*sparse"),
        (LINEAR["encoder.weight"].to("meta"), "no plain tensor .*meta"),
        (torch.ones(1).expand(200_000, 100_000), "claims to hold 80,000,0.* bytes"),
        (torch.empty(10**9, 10**9, device="meta"), "no plain tensor"),
    ],
)
def test_a_tensor_that_is_more_than_its_file_is_never_written_out(
    weight: Tensor, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"ae\.pt {says}|ae\.pt is {says}"):
        load_sae(save(tmp_path, {**TOPK, "encoder.weight": weight}, "AutoEncoderTopK"))


def test_a_packed_file_is_not_unpacked(tmp_path: Path) -> None:
    """torch unpacks what is compressed, which torch.save never writes: a megabyte can be 1 GB."""
    file = save(tmp_path, {**TOPK, "encoder.weight": torch.zeros(1000, 1000)}) / "ae.pt"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert torch.load(file, weights_only=True)["encoder.weight"].shape == (1000, 1000)
    with pytest.raises(ValueError, match=r"ae\.pt claims to hold 4,0.* bytes"):
        load_sae(tmp_path)


def test_tensors_that_share_their_numbers_are_loaded(tmp_path: Path) -> None:
    tied = LINEAR["encoder.weight"]
    sae = load_sae(save(tmp_path, {**TOPK, "decoder.weight": tied.T}, "AutoEncoderTopK"))
    assert torch.equal(sae.W_dec, sae.W_enc.T)


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    save(tmp_path, TOPK, "AutoEncoderTopK")
    before = torch.get_rng_state()
    load_sae(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
