"""Folders of sae_lens: finished SAEs, and checkpoints that its own trainer wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
    Transcoder,
    TranscoderConfig,
)
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparse_but_wrong.saes.load import load_sae
from sparse_but_wrong.training.lens import inference_copy, make_trainer, training_class
from sparse_but_wrong.training.options import TrainOptions

D_IN, D_SAE = 6, 10
SIZES: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE}
CONFIGS = {
    "standard": StandardTrainingSAEConfig(**SIZES, l1_coefficient=0.1),
    "gated": GatedTrainingSAEConfig(**SIZES, l1_coefficient=0.1),
    "jumprelu": JumpReLUTrainingSAEConfig(**SIZES, l0_coefficient=0.1),
    "topk": TopKTrainingSAEConfig(**SIZES, k=3),
    "topk, norms as they are": TopKTrainingSAEConfig(
        **SIZES, k=3, rescale_acts_by_decoder_norm=False, apply_b_dec_to_input=False
    ),
    "batchtopk": BatchTopKTrainingSAEConfig(**SIZES, k=2.5, topk_threshold_lr=0.3),
}


def activations(seed: int, n: int = 64) -> Tensor:
    """Far from 0 and from unit norm, so that normalising them matters."""
    x = torch.randn(n, D_IN, generator=torch.Generator().manual_seed(seed))
    return 7 * x + torch.arange(D_IN)


def batches() -> Iterator[Tensor]:
    seed = 0
    while True:
        yield activations(seed)
        seed += 1


def trained(config: Any, steps: int = 6) -> Any:
    """sae_lens' own trainer after a few steps, in the middle of its training."""
    options = TrainOptions(
        total_training_samples=64 * 100,
        train_batch_size_samples=64,
        lr=0.05,
        n_batches_for_norm_estimate=20,
    )
    torch.manual_seed(0)
    sae = training_class(config)(config)
    trainer = make_trainer(sae, options, batches())
    if config.normalize_activations == "expected_average_only_in":
        trainer.activation_scaler.estimate_scaling_factor(D_IN, batches(), 20)
    if config.normalize_activations == "covariance_whitening":
        trainer.activation_scaler.estimate_whitening(D_IN, batches(), 20)
    source = batches()
    for _ in range(steps):
        trainer.step(next(source))
    return trainer


def rewrite(folder: Path, **changes: Any) -> None:
    file = folder / "cfg.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("normalised", ["none", "expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_reads_activations_in_their_original_units(
    name: str, normalised: str, tmp_path: Path
) -> None:
    config = type(CONFIGS[name]).from_dict(
        {**CONFIGS[name].to_dict(), "normalize_activations": normalised}
    )
    trainer = trained(config)
    trainer.save_checkpoint("half", base_path=tmp_path)
    folder = tmp_path / "half"
    assert (folder / "trainer_state.pt").exists()
    assert (folder / "activation_whitening.safetensors").exists() == (
        normalised == "covariance_whitening"
    )
    (folder / "trainer_state.pt").write_bytes(b"whoever opens this fails")

    sae = load_sae(folder)
    x, scaler = activations(seed=1000), trainer.activation_scaler
    as_trained = inference_copy(trainer.sae)
    expected = scaler.unscale(as_trained(scaler.scale(x)))
    # Folding multiplies the same numbers in another order, over values of up to 30.
    torch.testing.assert_close(sae(x), expected, atol=2e-4, rtol=1e-4)
    assert torch.equal(sae.encode(x) > 0, as_trained.encode(scaler.scale(x)) > 0)
    assert 0 < (sae.encode(x) > 0).float().mean() < 1
    assert not isinstance(sae, TrainingSAE)
    assert sae.cfg.normalize_activations == "none"
    if normalised != "none":
        assert (as_trained(x) - expected).abs().max() > 0.1


def test_whitening_on_top_of_scaling_is_folded_in_the_order_it_was_done(tmp_path: Path) -> None:
    config = StandardTrainingSAEConfig(**SIZES, normalize_activations="covariance_whitening")
    trainer = trained(config)
    trainer.activation_scaler.scaling_factor = 0.3
    trainer.save_checkpoint("half", base_path=tmp_path)
    x, scaler = activations(seed=1000), trainer.activation_scaler
    expected = scaler.unscale(trainer.sae(scaler.scale(x)))
    torch.testing.assert_close(load_sae(tmp_path / "half")(x), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_sae_for_training_comes_as_it_is_used(name: str, tmp_path: Path) -> None:
    trainer = trained(CONFIGS[name])
    trainer.sae.save_model(tmp_path)
    sae, x = load_sae(tmp_path), activations(seed=1000)
    torch.testing.assert_close(sae(x), inference_copy(trainer.sae)(x))
    assert not isinstance(sae, TrainingSAE)
    assert not sae.training


def test_batchtopk_is_thresholded(tmp_path: Path) -> None:
    trainer = trained(CONFIGS["batchtopk"])
    trainer.sae.save_model(tmp_path)
    sae, x = load_sae(tmp_path), activations(seed=1000)
    assert sae.cfg.architecture() == "jumprelu"
    threshold = trainer.sae.topk_threshold
    assert threshold > 0
    hidden = (x - trainer.sae.b_dec) @ trainer.sae.W_enc + trainer.sae.b_enc
    hidden = hidden * trainer.sae.W_dec.norm(dim=1)
    torch.testing.assert_close(sae.encode(x), hidden * (hidden > threshold), atol=1e-4, rtol=1e-4)
    # One sample alone does what it does in a batch.
    torch.testing.assert_close(sae.encode(x[:1]), sae.encode(x)[:1])


@pytest.mark.parametrize("name", CONFIGS)
def test_an_sae_for_inference_comes_as_it_is(name: str, tmp_path: Path) -> None:
    trainer = trained(CONFIGS[name])
    trainer.sae.save_inference_model(tmp_path)
    loaded, there, x = load_sae(tmp_path), SAE.load_from_disk(tmp_path), activations(seed=1000)
    assert type(loaded) is type(there)
    assert torch.equal(loaded(x), there(x))
    assert torch.equal(load_sae(tmp_path / "sae_weights.safetensors")(x), there(x))
    assert torch.equal(load_sae(tmp_path / "cfg.json")(x), there(x))


def plain(folder: Path, **config: Any) -> StandardSAE:
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(**SIZES, **config))
    sae.save_model(folder)
    return sae


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_precisions_become_float32(dtype: str, tmp_path: Path) -> None:
    sae = plain(tmp_path, dtype=dtype)
    loaded = load_sae(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.W_dec, sae.W_dec.float())
    assert loaded.cfg.dtype == "float32"


def test_a_folder_from_before_version_6(tmp_path: Path) -> None:
    sae = plain(tmp_path)
    old = {**SIZES, "dtype": "torch.float32", "hook_name": "blocks.0.hook_resid_post"}
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    x = activations(seed=1000)
    assert torch.equal(load_sae(tmp_path)(x), sae(x))


def test_warnings_of_sae_lens_stay_in(tmp_path: Path) -> None:
    metadata = SAEMetadata(model_from_pretrained_kwargs={"center_writing_weights": False})
    with pytest.warns(UserWarning, match="model_from_pretrained_kwargs"):
        plain(tmp_path, metadata=metadata)
    # Any warning would be an error here.
    assert load_sae(tmp_path).cfg.metadata.model_from_pretrained_kwargs


def test_saes_of_attention_heads_read_flat_activations(tmp_path: Path) -> None:
    metadata = SAEMetadata(hook_name="blocks.0.attn.hook_z")
    sae = plain(tmp_path, metadata=metadata, reshape_activations="hook_z")
    x = activations(seed=1000)
    heads = sae(x.reshape(-1, 2, 3))
    torch.testing.assert_close(load_sae(tmp_path)(x), heads.reshape(-1, D_IN))


@pytest.mark.parametrize("normalised", ["expected_average_only_in", "covariance_whitening"])
def test_normalised_by_nobody_knows_what_is_refused(normalised: str, tmp_path: Path) -> None:
    plain(tmp_path, normalize_activations=normalised)
    with pytest.raises(ValueError, match=rf"normalised \({normalised}\), and nothing .* Add the"):
        load_sae(tmp_path)


def test_a_transcoder_is_refused(tmp_path: Path) -> None:
    config = TranscoderConfig(**SIZES, d_out=D_IN, apply_b_dec_to_input=False)
    Transcoder(config).save_model(tmp_path)
    with pytest.raises(ValueError, match="of the architecture 'transcoder', and only SAEs"):
        load_sae(tmp_path)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    plain(tmp_path)
    rewrite(tmp_path, architecture="quantum")
    with pytest.raises(ValueError, match=r"architecture 'quantum', which is not registered .*topk"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"d_sae": 11}, r"cannot be loaded \(RuntimeError: .*size mismatch for W_enc"),
        ({"d_sae": None}, "cannot be loaded .* copy cfg.json and sae_weights.safetensors again"),
        ({"metadata": 3}, "cannot be loaded"),
        ({"normalize_activations": "odd"}, "cannot be loaded .*normalize_activations must be"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    plain(tmp_path)
    rewrite(tmp_path, **change)
    with pytest.raises(ValueError, match=says) as error:
        load_sae(tmp_path)
    assert "\n" not in str(error.value)


def test_weights_that_do_not_agree_are_refused(tmp_path: Path) -> None:
    plain(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "W_dec": tensors["W_dec"][:9].clone()}, file)
    with pytest.raises(ValueError, match="size mismatch for W_dec"):
        load_sae(tmp_path)
    save_file({"W_dec": tensors["W_dec"]}, file)
    with pytest.raises(ValueError, match=r"Missing key\(s\) in state_dict: .*W_enc"):
        load_sae(tmp_path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    plain(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"sae_weights.safetensors is damaged"):
        load_sae(tmp_path)
    (tmp_path / "cfg.json").write_bytes(b"\xff{")
    with pytest.raises(ValueError, match=r"cfg.json is damaged"):
        load_sae(tmp_path)
    (tmp_path / "cfg.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"cfg.json is missing"):
        load_sae(tmp_path)


@pytest.mark.parametrize("factor", [0, -1.0, "2", float("nan")])
def test_a_damaged_scaling_factor_is_refused(factor: object, tmp_path: Path) -> None:
    plain(tmp_path)
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": factor}))
    with pytest.raises(ValueError, match=r"scaling_factor in .* not a positive number"):
        load_sae(tmp_path)


def test_a_whitening_that_is_missing_or_damaged_is_refused(tmp_path: Path) -> None:
    plain(tmp_path, normalize_activations="covariance_whitening")
    scaler = {"scaling_factor": None, "has_whitening": True}
    (tmp_path / "activation_scaler.json").write_text(json.dumps(scaler))
    with pytest.raises(ValueError, match=r"activation_whitening.safetensors is missing"):
        load_sae(tmp_path)
    save_file({"mean": torch.zeros(D_IN)}, tmp_path / "activation_whitening.safetensors")
    with pytest.raises(ValueError, match=r"cannot be folded into the SAE \(KeyError: 'matrix'\)"):
        load_sae(tmp_path)


def test_weights_that_are_not_finite_are_let_through(tmp_path: Path) -> None:
    plain(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    tensors = load_file(file)
    tensors["W_dec"][0, 0] = float("inf")
    save_file(tensors, file)
    assert load_sae(tmp_path).W_dec.isinf().sum() == 1


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    trained(CONFIGS["batchtopk"]).sae.save_model(tmp_path)
    before = torch.get_rng_state()
    load_sae(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
