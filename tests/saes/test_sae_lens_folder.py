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
    GatedSAE,
    GatedSAEConfig,
    GatedTrainingSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    StandardTrainingSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
    Transcoder,
    TranscoderConfig,
)
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparse_but_wrong.sae_lens_compat import inference_copy, make_trainer, training_class
from sparse_but_wrong.saes.load import load_sae
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
    trainer = make_trainer(sae, options.trainer_settings())
    if config.normalize_activations == "expected_average_only_in":
        trainer.activation_scaler.estimate_scaling_factor(D_IN, batches(), 20)
    if config.normalize_activations == "covariance_whitening":
        trainer.activation_scaler.estimate_whitening(D_IN, batches(), 20)
    source = batches()
    for _ in range(steps):
        trainer.step(next(source))
    return trainer


MISSING = object()


def rewrite(folder: Path, **changes: Any) -> None:
    file = folder / "cfg.json"
    content = {**json.loads(file.read_text()), **changes}
    content = {name: value for name, value in content.items() if value is not MISSING}
    file.write_text(json.dumps(content))


def change_weights(folder: Path, **changes: Any) -> dict[str, Tensor]:
    """Change tensors, leave out those that are None, and return those there were."""
    file = folder / "sae_weights.safetensors"
    tensors = load_file(file)
    changed: dict[str, Any] = {**tensors, **changes}
    save_file({name: t.clone() for name, t in changed.items() if t is not None}, file)
    return tensors


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


def test_weights_that_do_not_agree_are_refused(tmp_path: Path) -> None:
    weights = plain(tmp_path).state_dict()
    change_weights(tmp_path, W_dec=weights["W_dec"][:9])
    with pytest.raises(ValueError, match=r"d_sae = 10, but the weights .* 9"):
        load_sae(tmp_path)
    change_weights(tmp_path, W_dec=weights["W_dec"], W_enc=weights["W_enc"][:, :9])
    with pytest.raises(ValueError, match="size mismatch for W_enc"):
        load_sae(tmp_path)
    change_weights(tmp_path, W_enc=None)
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
    plain(tmp_path, normalize_activations="expected_average_only_in")
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": factor}))
    with pytest.raises(ValueError, match=r"scaling_factor in .* positive number"):
        load_sae(tmp_path)


def test_a_whitening_that_is_missing_or_damaged_is_refused(tmp_path: Path) -> None:
    plain(tmp_path, normalize_activations="covariance_whitening")
    scaler = {"scaling_factor": None, "has_whitening": True}
    (tmp_path / "activation_scaler.json").write_text(json.dumps(scaler))
    with pytest.raises(ValueError, match=r"activation_whitening.safetensors is missing"):
        load_sae(tmp_path)
    save_file({"mean": torch.zeros(D_IN)}, tmp_path / "activation_whitening.safetensors")
    with pytest.raises(ValueError, match=r"whitening.* is damaged \(KeyError: 'matrix'\)"):
        load_sae(tmp_path)


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    trained(CONFIGS["batchtopk"]).sae.save_model(tmp_path)
    before = torch.get_rng_state()
    load_sae(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def old(folder: Path, **config: Any) -> StandardSAE:
    """A folder as versions before 6 wrote it: everything on one level, and an activation."""
    sae = plain(folder)
    written = {
        **SIZES,
        "dtype": "torch.float32",
        "device": "cpu",
        "model_name": "gpt2-small",
        "hook_name": "blocks.0.hook_resid_post",
        "hook_layer": 0,
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "normalize_activations": "none",
        **config,
    }
    (folder / "cfg.json").write_text(json.dumps(written))
    return sae


def pre_activations(sae: StandardSAE, x: Tensor) -> Tensor:
    return ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).detach()


def test_an_old_folder_with_relu_notes_where_it_is_from(tmp_path: Path) -> None:
    sae, x = old(tmp_path), activations(seed=1000)
    loaded = load_sae(tmp_path)
    torch.testing.assert_close(loaded.encode(x), pre_activations(sae, x).relu())
    metadata = loaded.cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == ("gpt2-small", "blocks.0.hook_resid_post")


@pytest.mark.parametrize(
    "config",
    [
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}},
        {"activation_fn": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3.0}},
        {"architecture": "topk", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}},
        {"architecture": "topk", "activation_fn_str": None, "k": 3.0},
    ],
)
def test_an_old_topk_keeps_k_latents(config: dict[str, Any], tmp_path: Path) -> None:
    sae, x = old(tmp_path, **config), activations(seed=1000)
    pre = pre_activations(sae, x)
    values, at = pre.topk(3, dim=-1)
    expected = torch.zeros_like(pre).scatter(-1, at, values.relu())
    loaded = load_sae(tmp_path)
    torch.testing.assert_close(loaded.encode(x), expected)
    assert (loaded.cfg.architecture(), loaded.cfg.k, type(loaded.cfg.k)) == ("topk", 3, int)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"activation_fn_str": "tanh-relu"}, "'tanh-relu'"),
        ({"activation_fn": "tanh-relu", "activation_fn_str": "relu"}, "'tanh-relu'"),
        ({"activation_fn_str": ["relu"]}, r"\['relu'\]"),
        ({"activation_fn_str": None, "activation_fn_kwargs": {"k": 3}}, "names no activation"),
        ({"activation_fn_str": "topk"}, "without a k"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": None}, "without a k"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": [3]}, r"kwargs in .* \[3\]"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": "3"}}, "k in .* is '3'"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "k": 4}, "k = 4 .*k = 3"),
        (
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3, "signed": True}},
            "'signed'",
        ),
        ({"architecture": "gated", "activation_fn_str": "topk"}, "'topk'.*'gated'"),
        ({"architecture": "topk", "activation_fn_str": "relu", "k": 3}, "'relu'.*'topk'"),
    ],
)
def test_an_activation_of_old_that_none_has_today_is_refused_by_name(
    config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    old(tmp_path, **config)
    for _ in range(2):
        with pytest.raises(ValueError, match=says) as error:
            load_sae(tmp_path)
        assert "cfg.json" in str(error.value)
        plain(tmp_path)  # a config of today says its activation too
        rewrite(tmp_path, **config)


def test_latents_that_finetuning_scaled_are_scaled(tmp_path: Path) -> None:
    sae, x = old(tmp_path, finetuning_scaling_factor=True), activations(seed=1000)
    factors = torch.linspace(0.5, 2, D_SAE)
    change_weights(tmp_path, scaling_factor=factors)
    latents = pre_activations(sae, x).relu()
    loaded = load_sae(tmp_path)
    torch.testing.assert_close(loaded.encode(x), latents)
    torch.testing.assert_close(loaded(x), (latents * factors) @ sae.W_dec + sae.b_dec)
    # Unscaled, its reconstruction is another one.
    assert (sae(x) - loaded(x)).abs().max() > 1


@pytest.mark.parametrize(
    ("asked", "factors", "says"),
    [
        (True, None, "no factors"),
        (False, torch.full((D_SAE,), 2.0), "such factors"),
        (True, torch.ones(9), r"scaling_factor in .* \[9\]"),
        (False, torch.ones(D_SAE), None),  # never trained: they change nothing
    ],
)
def test_factors_that_config_and_weights_disagree_about_are_refused(
    asked: bool, factors: Tensor | None, says: str | None, tmp_path: Path
) -> None:
    sae, x = old(tmp_path, finetuning_scaling_factor=asked), activations(seed=1000)
    change_weights(tmp_path, scaling_factor=factors)
    if says is None:
        assert torch.equal(load_sae(tmp_path)(x), sae(x))
    else:
        with pytest.raises(ValueError, match=says):
            load_sae(tmp_path)


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_before_acts_could_be_rescaled_they_were_not(name: str, tmp_path: Path) -> None:
    """Version 6.0 wrote no such field; today it is true unless it is written."""
    config = type(CONFIGS[name]).from_dict(
        {**CONFIGS[name].to_dict(), "rescale_acts_by_decoder_norm": False}
    )
    trainer = trained(config)
    trainer.sae.save_model(tmp_path)
    rewrite(tmp_path, rescale_acts_by_decoder_norm=MISSING)
    x = activations(seed=1000)
    torch.testing.assert_close(load_sae(tmp_path)(x), inference_copy(trainer.sae)(x))


def test_what_is_folded_already_is_not_folded_again(tmp_path: Path) -> None:
    sae, x = plain(tmp_path), activations(seed=1000)
    scaler = {"scaling_factor": 0.3, "has_whitening": False}
    (tmp_path / "activation_scaler.json").write_text(json.dumps(scaler))
    assert torch.equal(load_sae(tmp_path)(x), sae(x))


def topk(folder: Path, **changes: Any) -> None:
    torch.manual_seed(0)
    TopKSAE(TopKSAEConfig(**SIZES, k=3)).save_model(folder)
    rewrite(folder, **changes)


@pytest.mark.parametrize(
    "k", [MISSING, None, -1, 0, 11, 300, 2.5, "3", True, float("nan"), [3], 10**30]
)
def test_a_k_that_cannot_be_kept_is_refused(k: object, tmp_path: Path) -> None:
    topk(tmp_path)
    rewrite(tmp_path, k=k)
    with pytest.raises(ValueError, match=r"\bk\b.*cfg\.json|cfg\.json.*\bk\b"):
        load_sae(tmp_path)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), None, 1])
def test_a_batchtopk_threshold_that_decides_nothing_is_refused(
    threshold: float | None, tmp_path: Path
) -> None:
    trained(CONFIGS["batchtopk"]).sae.save_model(tmp_path)
    dtype = torch.int64 if threshold == 1 else torch.float64
    value = None if threshold is None else torch.tensor(threshold, dtype=dtype)
    change_weights(tmp_path, topk_threshold=value)
    with pytest.raises(ValueError, match="threshold"):
        load_sae(tmp_path)


@pytest.mark.parametrize("field", ["d_sae", "d_in", "architecture"])
def test_what_a_config_of_today_leaves_out_is_not_guessed(field: str, tmp_path: Path) -> None:
    """A TopK SAE has the weights of a standard one."""
    topk(tmp_path)
    rewrite(tmp_path, **{field: MISSING})
    with pytest.raises(ValueError, match=rf"cfg\.json misses {field}"):
        load_sae(tmp_path)


def test_a_gate_of_nan_is_refused_and_latents_can_be_switched_off(tmp_path: Path) -> None:
    JumpReLUSAE(JumpReLUSAEConfig(**SIZES)).save_model(tmp_path / "jumprelu")
    threshold = torch.zeros(D_SAE)
    threshold[2] = float("inf")
    change_weights(tmp_path / "jumprelu", threshold=threshold)
    assert not load_sae(tmp_path / "jumprelu").encode(activations(seed=0))[:, 2].any()
    GatedSAE(GatedSAEConfig(**SIZES)).save_model(tmp_path / "gated")
    threshold[3] = float("nan")
    for folder, name in (("jumprelu", "threshold"), ("gated", "b_gate")):
        change_weights(tmp_path / folder, **{name: threshold})
        with pytest.raises(ValueError, match=f"{name} of NaN in 1 of 10 latents"):
            load_sae(tmp_path / folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"d_sae": 11}, "cfg.json says d_sae = 11, but the weights .* have 10"),
        ({"d_sae": None}, "d_sae in .*cfg.json is None"),
        ({"metadata": 3}, "metadata in .*cfg.json is 3"),
        ({"metadata": {"to_dict": 1}}, "metadata in .*cfg.json is 'to_dict'"),
        ({"sae_lens_version": "odd"}, "cannot be loaded .* copy cfg.json and sae_weights"),
        ({"normalize_activations": "odd"}, "cannot be loaded .*normalize_activations must be"),
        ({"architecture": "quantum"}, "architecture 'quantum'.*Available: .*topk"),
        ({"architecture": [1]}, r"architecture \[1\]"),
        ({"architecture": None}, "architecture None"),
        ({"architecture": "temporal"}, "'temporal', and only SAEs"),
        ({"architecture": "abstopk", "k": 3}, "'abstopk', and only SAEs"),
        ({"d_sae": "x"}, "d_sae in .* is 'x'"),
        ({"d_sae": "10"}, "d_sae in .* is '10'"),
        ({"d_sae": True}, "d_sae in .* is True"),
        ({"d_sae": 0}, "d_sae = 0, but the weights .* have 10"),
        ({"d_sae": -1}, "d_sae = -1"),
        ({"d_sae": 1e12}, "d_sae = 1000000000000"),
        ({"d_in": 10**18}, "d_in = 1000000000000000000"),
        ({"d_in": float("nan")}, "d_in in .* is nan"),
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input in .* is 'false'"),
        ({"apply_b_dec_to_input": 3}, "apply_b_dec_to_input in .* is 3"),
        ({"reshape_activations": "odd"}, "reshape_activations in .* is 'odd'"),
        ({"metadata": {"self": 1}}, "'self'"),
    ],
)
def test_a_field_that_is_not_what_its_architecture_takes_is_refused(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    plain(tmp_path)
    rewrite(tmp_path, **change)
    with pytest.raises(ValueError, match=says) as error:
        load_sae(tmp_path)
    assert "cfg.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_sizes_that_no_machine_has_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    """Also where there is no decoder to compare them with."""
    for config in CONFIGS.values():
        trained(config).sae.save_model(tmp_path)
        rewrite(tmp_path, d_sae=10**12, d_in=10**7)
        for tensors in (load_file(tmp_path / "sae_weights.safetensors"), {"b_dec": torch.ones(6)}):
            save_file(tensors, tmp_path / "sae_weights.safetensors")
            with pytest.raises(ValueError, match=r"000000|cannot be loaded"):
                load_sae(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_without_fractions_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = plain(tmp_path).state_dict()
    change_weights(tmp_path, W_dec=weights["W_dec"].to(dtype))
    with pytest.raises(ValueError, match=f"W_dec in .* is {dtype}"):
        load_sae(tmp_path)


def test_an_sae_without_latents_is_refused_and_one_that_is_not_finite_let_through(
    tmp_path: Path,
) -> None:
    weights = plain(tmp_path).state_dict()
    change_weights(tmp_path, W_dec=torch.full((D_SAE, D_IN), torch.inf))
    assert load_sae(tmp_path).W_dec.isinf().all()
    names = {"W_dec": weights["W_dec"][:0], "W_enc": weights["W_enc"][:, :0]}
    change_weights(tmp_path, **names, b_enc=weights["b_enc"][:0])
    rewrite(tmp_path, d_sae=0)
    with pytest.raises(ValueError, match=r"W_(enc|dec) .*\b0\b.*latents"):
        load_sae(tmp_path)


def test_an_origin_of_another_type_is_none(tmp_path: Path) -> None:
    plain(tmp_path, metadata=SAEMetadata(hook_name="blocks.1.hook_resid_pre", model_name=["x"]))
    metadata = load_sae(tmp_path).cfg.metadata
    assert (metadata.hook_name, metadata.model_name) == ("blocks.1.hook_resid_pre", None)
