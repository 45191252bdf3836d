"""Folders of sae_lens: finished SAEs, and checkpoints that its own trainer wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAEConfig,
    GatedSAEConfig,
    GatedTrainingSAEConfig,
    JumpReLUSAEConfig,
    JumpReLUTrainingSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    StandardTrainingSAEConfig,
    TopKSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
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
    return map(activations, count())


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
    for batch in islice(batches(), steps):
        trainer.step(batch)
    return trainer


MISSING: Any = object()
X = activations(seed=1000)


def change(folder: Path, weights: dict[str, Any] | None = None, **config: Any) -> None:
    """Change a folder's config and tensors, or leave out some."""
    file = folder / "cfg.json"
    content = {**json.loads(file.read_text()), **config}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not MISSING}))
    file = folder / "sae_weights.safetensors"
    tensors = {**load_file(file), **(weights or {})}
    save_file({k: v.clone() for k, v in tensors.items() if v is not MISSING}, file)


def saved(folder: Path, config: Any = None, **options: Any) -> Any:
    """An untrained SAE in a folder, a standard one unless a config is given."""
    torch.manual_seed(0)
    config = config or StandardSAEConfig(**SIZES, **options)
    kind = TrainingSAE if isinstance(config, TrainingSAEConfig) else SAE
    sae = kind.from_dict(config.to_dict())
    sae.save_model(folder)
    return sae


def old(folder: Path, **config: Any) -> StandardSAE:
    """A folder as versions before 6 wrote it: everything on one level, and an activation."""
    sae = saved(folder)
    written = json.loads(
        '{"dtype": "torch.float32", "device": "cpu", "model_name": "gpt2-small", "hook_layer": 0,'
        '"hook_name": "blocks.0.hook_resid_post", "activation_fn_str": "relu",'
        '"activation_fn_kwargs": {}, "apply_b_dec_to_input": true,'
        '"finetuning_scaling_factor": false, "normalize_activations": "none"}'
    )
    (folder / "cfg.json").write_text(json.dumps({**SIZES, **written, **config}))
    return sae


def pre_activations(sae: StandardSAE) -> Tensor:
    return ((X - sae.b_dec) @ sae.W_enc + sae.b_enc).detach()


@pytest.mark.parametrize("normalised", ["none", "expected_average_only_in", "covariance_whitening"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_reads_activations_in_their_original_units(
    name: str, normalised: str, tmp_path: Path
) -> None:
    trainer = trained(replace(CONFIGS[name], normalize_activations=normalised))
    trainer.save_checkpoint("half", base_path=tmp_path)
    folder = tmp_path / "half"
    assert (folder / "activation_whitening.safetensors").exists() == (
        normalised == "covariance_whitening"
    )
    assert (folder / "trainer_state.pt").exists()
    (folder / "trainer_state.pt").write_bytes(b"whoever opens this fails")

    before = torch.get_rng_state()
    sae, scaler = load_sae(folder), trainer.activation_scaler
    assert torch.equal(torch.get_rng_state(), before)
    as_trained = inference_copy(trainer.sae)
    expected = scaler.unscale(as_trained(scaler.scale(X)))
    # Folding multiplies the same numbers in another order, over values of up to 30.
    torch.testing.assert_close(sae(X), expected, atol=2e-4, rtol=1e-4)
    assert torch.equal(sae.encode(X) > 0, as_trained.encode(scaler.scale(X)) > 0)
    assert 0 < (sae.encode(X) > 0).float().mean() < 1
    assert not isinstance(sae, TrainingSAE)
    assert sae.cfg.normalize_activations == "none"
    if normalised != "none":
        assert (as_trained(X) - expected).abs().max() > 0.1


def test_whitening_on_top_of_scaling_is_folded_in_the_order_it_was_done(tmp_path: Path) -> None:
    trainer = trained(replace(CONFIGS["standard"], normalize_activations="covariance_whitening"))
    scaler = trainer.activation_scaler
    scaler.scaling_factor = 0.3
    trainer.save_checkpoint("half", base_path=tmp_path)
    expected = scaler.unscale(trainer.sae(scaler.scale(X)))
    torch.testing.assert_close(load_sae(tmp_path / "half")(X), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_finished_sae_comes_as_it_is_used(name: str, tmp_path: Path) -> None:
    trainer = trained(CONFIGS[name])
    trainer.sae.save_model(tmp_path / "for_training")
    sae = load_sae(tmp_path / "for_training")
    torch.testing.assert_close(sae(X), inference_copy(trainer.sae)(X))
    assert not isinstance(sae, TrainingSAE)
    assert not sae.training
    folder = tmp_path / "for_inference"
    trainer.sae.save_inference_model(folder)
    there = SAE.load_from_disk(folder)
    assert type(load_sae(folder)) is type(there)
    for place in ("", "sae_weights.safetensors", "cfg.json"):
        assert torch.equal(load_sae(folder / place)(X), there(X))


def test_batchtopk_is_thresholded(tmp_path: Path) -> None:
    trained_sae = trained(CONFIGS["batchtopk"]).sae
    trained_sae.save_model(tmp_path)
    sae, threshold = load_sae(tmp_path), trained_sae.topk_threshold
    assert sae.cfg.architecture() == "jumprelu"
    assert threshold > 0
    hidden = pre_activations(trained_sae) * trained_sae.W_dec.norm(dim=1)
    torch.testing.assert_close(sae.encode(X), hidden * (hidden > threshold), atol=1e-4, rtol=1e-4)
    # One sample alone does what it does in a batch.
    torch.testing.assert_close(sae.encode(X[:1]), sae.encode(X)[:1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_precisions_become_float32(dtype: str, tmp_path: Path) -> None:
    sae = saved(tmp_path, dtype=dtype)
    loaded = load_sae(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.W_dec, sae.W_dec.float())
    assert loaded.cfg.dtype == "float32"


def test_warnings_of_sae_lens_stay_in(tmp_path: Path) -> None:
    metadata = SAEMetadata(model_from_pretrained_kwargs={"center_writing_weights": False})
    with pytest.warns(UserWarning, match="model_from_pretrained_kwargs"):
        saved(tmp_path, metadata=metadata)
    # Any warning would be an error here.
    assert load_sae(tmp_path).cfg.metadata.model_from_pretrained_kwargs


def test_saes_of_attention_heads_read_flat_activations(tmp_path: Path) -> None:
    metadata = SAEMetadata(hook_name="blocks.0.attn.hook_z")
    heads = saved(tmp_path, metadata=metadata, reshape_activations="hook_z")(X.reshape(-1, 2, 3))
    torch.testing.assert_close(load_sae(tmp_path)(X), heads.reshape(-1, D_IN))


def test_an_old_folder_with_relu_notes_where_it_is_from(tmp_path: Path) -> None:
    sae = old(tmp_path)
    loaded = load_sae(tmp_path)
    torch.testing.assert_close(loaded.encode(X), pre_activations(sae).relu())
    metadata = loaded.cfg.metadata
    assert (metadata.model_name, metadata.hook_name) == ("gpt2-small", "blocks.0.hook_resid_post")
    least = {**SIZES, "dtype": "torch.float32", "hook_name": "blocks.0.hook_resid_post"}
    (tmp_path / "cfg.json").write_text(json.dumps(least))
    assert torch.equal(load_sae(tmp_path)(X), sae(X))


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
    pre = pre_activations(old(tmp_path, **config))
    values, at = pre.topk(3, dim=-1)
    expected = torch.zeros_like(pre).scatter(-1, at, values.relu())
    loaded = load_sae(tmp_path)
    torch.testing.assert_close(loaded.encode(X), expected)
    assert (loaded.cfg.architecture(), loaded.cfg.k, type(loaded.cfg.k)) == ("topk", 3, int)


def test_latents_that_finetuning_scaled_are_scaled(tmp_path: Path) -> None:
    sae, factors = old(tmp_path, finetuning_scaling_factor=True), torch.linspace(0.5, 2, D_SAE)
    change(tmp_path, {"scaling_factor": factors})
    latents, loaded = pre_activations(sae).relu(), load_sae(tmp_path)
    torch.testing.assert_close(loaded.encode(X), latents)
    torch.testing.assert_close(loaded(X), (latents * factors) @ sae.W_dec + sae.b_dec)
    # Unscaled, its reconstruction is another one.
    assert (sae(X) - loaded(X)).abs().max() > 1
    # Never trained, they change nothing.
    change(tmp_path, {"scaling_factor": torch.ones(D_SAE)}, finetuning_scaling_factor=False)
    assert torch.equal(load_sae(tmp_path)(X), sae(X))


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_before_acts_could_be_rescaled_they_were_not(name: str, tmp_path: Path) -> None:
    """Version 6.0 wrote no such field; today it is true unless it is written."""
    sae = trained(replace(CONFIGS[name], rescale_acts_by_decoder_norm=False)).sae
    sae.save_model(tmp_path)
    change(tmp_path, rescale_acts_by_decoder_norm=MISSING)
    torch.testing.assert_close(load_sae(tmp_path)(X), inference_copy(sae)(X))


def test_what_is_folded_already_is_not_folded_again(tmp_path: Path) -> None:
    sae = saved(tmp_path)
    scaler = {"scaling_factor": 0.3, "has_whitening": False}
    (tmp_path / "activation_scaler.json").write_text(json.dumps(scaler))
    assert torch.equal(load_sae(tmp_path)(X), sae(X))


@pytest.mark.parametrize(
    ("normalised", "scaler", "says"),
    [
        ("expected_average_only_in", None, r"normalised \(expected_av.*, and nothing .* Add the"),
        ("covariance_whitening", None, r"normalised \(covariance_wh.*, and nothing .* Add the"),
        *(
            ("expected_average_only_in", {"scaling_factor": factor}, "scaling_factor .* positive")
            for factor in (0, -1.0, "2", float("nan"))
        ),
        ("covariance_whitening", {"has_whitening": True}, "whitening.* is damaged .*'matrix'"),
    ],
)
def test_normalised_by_nobody_knows_what_is_refused(
    normalised: str, scaler: dict[str, Any] | None, says: str, tmp_path: Path
) -> None:
    saved(tmp_path, normalize_activations=normalised)
    if scaler is not None:
        (tmp_path / "activation_scaler.json").write_text(json.dumps(scaler))
    if scaler is not None and "has_whitening" in scaler:
        with pytest.raises(FileNotFoundError, match=r"whitening.safetensors is missing"):
            load_sae(tmp_path)
        save_file({"mean": torch.zeros(D_IN)}, tmp_path / "activation_whitening.safetensors")
    with pytest.raises(ValueError, match=says):
        load_sae(tmp_path)


topk, batchtopk, jumprelu, gated, transcoder = (
    partial(saved, config=config)
    for config in (
        TopKSAEConfig(**SIZES, k=3),
        CONFIGS["batchtopk"],
        JumpReLUSAEConfig(**SIZES),
        GatedSAEConfig(**SIZES),
        TranscoderConfig(**SIZES, d_out=D_IN, apply_b_dec_to_input=False),
    )
)
NAN = float("nan")
OF_TOPK = {"activation_fn_str": "topk"}
# Activations of old that no SAE has today, and ways to say k; configs of today may say them too.
ACTIVATIONS = [
    ({"activation_fn_str": "tanh-relu"}, "'tanh-relu'"),
    ({"activation_fn": "tanh-relu", "activation_fn_str": "relu"}, "'tanh-relu'"),
    ({"activation_fn_str": ["relu"]}, r"\['relu'\]"),
    ({"activation_fn_str": None, "activation_fn_kwargs": {"k": 3}}, "names no activation"),
    (OF_TOPK, "k = None"),
    (OF_TOPK | {"activation_fn_kwargs": None}, "k = None"),
    (OF_TOPK | {"activation_fn_kwargs": [3]}, r"kwargs in .* \[3\]"),
    (OF_TOPK | {"activation_fn_kwargs": {"k": "3"}}, "k in .* is '3'"),
    (OF_TOPK | {"activation_fn_kwargs": {"k": 3}, "k": 4}, "k = 4 and 3"),
    (OF_TOPK | {"activation_fn_kwargs": {"k": 3, "signed": True}}, "'signed'"),
    (OF_TOPK | {"architecture": "gated"}, "'topk'.*'gated'"),
    ({"architecture": "topk", "activation_fn_str": "relu", "k": 3}, "'relu'.*'topk'"),
]
FIELDS = [
    ({"d_sae": 11}, "d_sae = 11, but the weights .* have 10"),
    ({"d_sae": None}, "d_sae in .* is None"),
    ({"d_sae": "x"}, "d_sae in .* is 'x'"),
    ({"d_sae": "10"}, "d_sae in .* is '10'"),
    ({"d_sae": True}, "d_sae in .* is True"),
    ({"d_sae": 0}, "d_sae = 0, but the weights .* have 10"),
    ({"d_sae": -1}, "d_sae = -1"),
    ({"d_sae": 1e12}, "d_sae = 1000000000000"),
    ({"d_in": 10**18}, "d_in = 1000000000000000000"),
    ({"d_in": NAN}, "d_in in .* is nan"),
    ({"metadata": 3}, "metadata in .* is 3"),
    ({"metadata": {"to_dict": 1}}, "metadata in .* is 'to_dict'"),
    ({"metadata": {"self": 1}}, "'self'"),
    ({"sae_lens_version": "odd"}, "cannot be loaded .* copy its config"),
    ({"normalize_activations": "odd"}, "cannot be .*normalize_activations must be"),
    ({"architecture": "quantum"}, "architecture 'quantum'.*Available: .*topk"),
    ({"architecture": [1]}, r"architecture \[1\]"),
    ({"architecture": None}, "architecture None"),
    ({"architecture": "temporal"}, "'temporal', and only SAEs"),
    ({"architecture": "abstopk", "k": 3}, "'abstopk', and only SAEs"),
    ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input in .* is 'false'"),
    ({"apply_b_dec_to_input": 3}, "apply_b_dec_to_input in .* is 3"),
    ({"reshape_activations": "odd"}, "reshape_activations in .* is 'odd'"),
]
STRANGE_K = (MISSING, None, -1, 0, 11, 300, 2.5, "3", True, NAN, [3], 10**30)
WITH_A_NAN = torch.tensor([0.0] * 9 + [NAN])
EMPTY = {"W_dec": torch.zeros(0, 6), "W_enc": torch.zeros(6, 0), "b_enc": torch.zeros(0)}
WEIGHTS = [
    (saved, {"W_dec": torch.zeros(9, 6)}, "d_sae = 10, but the weights .* 9"),
    (saved, {"W_enc": torch.zeros(6, 9)}, "size mismatch for W_enc"),
    (saved, {"W_enc": MISSING}, r"Missing key\(s\) in state_dict: .*W_enc"),
    (saved, EMPTY, r"W_(enc|dec) .*\b0\b.*latents"),
    (saved, {"W_dec": torch.zeros(10, 6).char()}, "W_dec in .* is torch.int8"),
    (saved, {"W_dec": torch.zeros(10, 6).bool()}, "W_dec in .* is torch.bool"),
    (saved, {"W_dec": torch.zeros(10, 6).to(torch.complex64)}, "W_dec in .* is torch.complex64"),
    (saved, {"scaling_factor": torch.full((10,), 2.0)}, r"factor = False, .* \[10\]"),
    (batchtopk, {"topk_threshold": MISSING}, "threshold"),
    (batchtopk, {"topk_threshold": torch.tensor(1)}, "threshold"),
    (batchtopk, {"topk_threshold": torch.tensor(NAN).double()}, "threshold"),
    (batchtopk, {"topk_threshold": torch.tensor(float("inf")).double()}, "threshold"),
    (jumprelu, {"threshold": WITH_A_NAN}, "threshold of NaN in 1 of 10 latents"),
    (gated, {"b_gate": WITH_A_NAN}, "b_gate of NaN in 1 of 10 latents"),
]
SCALED = {"finetuning_scaling_factor": True}


@pytest.mark.parametrize(
    ("make", "config", "says"),
    [
        *((make, config, says) for config, says in ACTIVATIONS for make in (old, saved)),
        *((saved, config, says) for config, says in FIELDS),
        *((make, {"weights": weights}, says) for make, weights, says in WEIGHTS),
        *((topk, {"k": k}, r"\bk\b") for k in STRANGE_K),
        # A TopK SAE has the weights of a standard one, so its architecture is not guessed.
        *((topk, {name: MISSING}, f"misses {name}") for name in ("d_sae", "d_in", "architecture")),
        (transcoder, {}, "of the architecture 'transcoder', and only SAEs"),
        (old, SCALED, "factor = True, .* has none"),
        (old, SCALED | {"weights": {"scaling_factor": torch.ones(9)}}, r"scaling_factor .* \[9\]"),
    ],
)
def test_what_does_not_make_an_sae_is_refused(
    make: Callable[[Path], Any], config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    make(tmp_path)
    change(tmp_path, **config)
    with pytest.raises(ValueError, match=says) as error:
        load_sae(tmp_path)
    assert re.search(f"cfg.json|its config|{tmp_path}", str(error.value))
    assert "\n" not in str(error.value)


def test_what_is_not_finite_is_let_through_elsewhere(tmp_path: Path) -> None:
    jumprelu(tmp_path)
    threshold = torch.zeros(D_SAE)
    threshold[2] = torch.inf  # switches a latent off
    change(tmp_path, {"threshold": threshold})
    assert not load_sae(tmp_path).encode(X)[:, 2].any()
    change(tmp_path, {"W_dec": torch.full((D_SAE, D_IN), torch.inf)})
    assert load_sae(tmp_path).W_dec.isinf().all()


def test_sizes_that_no_machine_has_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    """Also where there is no decoder to compare them with."""
    for config in CONFIGS.values():
        saved(tmp_path, config)
        change(tmp_path, d_sae=10**12, d_in=10**7)
        for tensors in (load_file(tmp_path / "sae_weights.safetensors"), {"b_dec": torch.ones(6)}):
            save_file(tensors, tmp_path / "sae_weights.safetensors")
            with pytest.raises(ValueError, match=r"000000|cannot be loaded"):
                load_sae(tmp_path)


def test_an_origin_of_another_type_is_none(tmp_path: Path) -> None:
    saved(tmp_path, metadata=SAEMetadata(hook_name="blocks.1.hook_resid_pre", model_name=["x"]))
    metadata = load_sae(tmp_path).cfg.metadata
    assert (metadata.hook_name, metadata.model_name) == ("blocks.1.hook_resid_pre", None)
