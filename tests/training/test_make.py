"""SAEs made from configs: their seeds, their starting points, and what is refused."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    SAEConfig,
    StandardSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
)
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

from sparse_but_wrong import evaluate, init_b_dec_to_mean, make_saes, train_saes
from tests.training import oracle
from tests.training.oracle import NORMALISED, make

SIZES: dict[str, Any] = {"d_in": 12, "d_sae": 9}


def standard(**config: Any) -> StandardTrainingSAEConfig:
    return StandardTrainingSAEConfig(**{**SIZES, **config})


def assert_same(a: SAE[Any], b: SAE[Any]) -> None:
    assert set(a.state_dict()) == set(b.state_dict())
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


def test_weights_are_those_that_sae_lens_draws_from_the_seed_whatever_stands_beside_it() -> None:
    cfgs = [standard(), JumpReLUTrainingSAEConfig(**SIZES), standard()]
    first = make_saes(cfgs, [1, 2, 3])
    again = make_saes([cfgs[2], cfgs[0], cfgs[1]], [3, 1, 2])
    for mine, wanted in zip(first, [again[1], again[2], again[0]], strict=True):
        assert type(mine) is type(wanted)
        assert_same(mine, wanted)
    assert not torch.equal(first[0].W_dec, first[2].W_dec)
    assert torch.equal(make_saes([standard()], [2])[0].W_dec, first[1].W_dec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        assert_same(first[0], StandardTrainingSAE(standard()))


@pytest.mark.parametrize("architecture", sorted(SAE_TRAINING_CLASS_REGISTRY))
def test_every_architecture_that_sae_lens_knows(architecture: str) -> None:
    sae_class, config_class = SAE_TRAINING_CLASS_REGISTRY[architecture]
    sizes = {**SIZES, "decoder_init_norm": 1.0}  # the one that all of them allow
    known = config_class.__dataclass_fields__
    sizes |= {"k": 2} if "k" in known else {}
    sizes |= {"matryoshka_widths": [4, 9]} if "matryoshka_widths" in known else {}
    a, b = make_saes([config_class(**sizes)] * 2, [4, 4])
    assert type(a) is sae_class
    assert_same(a, b)


def test_the_global_generator_is_left_as_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    make_saes([standard(), JumpReLUTrainingSAEConfig(**SIZES)], [1, 2])
    with pytest.raises(ValueError, match="SAE 1"):
        make_saes([standard(), standard(dtype="float9")], [1, 2])
    assert torch.equal(torch.rand(3), expected)


def test_decoder_norms_are_each_configs_own() -> None:
    norms = [0.1, 0.7, None]
    saes = make_saes([standard(decoder_init_norm=norm) for norm in norms], [0, 0, 0])
    for sae, norm in zip(saes[:2], norms[:2], strict=True):
        assert sae.W_dec.norm(dim=1).tolist() == pytest.approx([norm] * 9)
    torch.testing.assert_close(saes[0].W_dec * 7, saes[1].W_dec)
    assert saes[2].W_dec.norm(dim=1).std() > 1e-3  # as they were drawn


def test_a_config_given_several_times_is_copied_and_left_as_it_was() -> None:
    cfg = standard(**NORMALISED)
    before = cfg.to_dict()
    saes = make_saes([cfg] * 3, [0, 1, 2])
    saes[0].cfg.normalize_activations = "none"
    saes[0].cfg.metadata.l0 = 3.0
    assert saes[1].cfg.normalize_activations == "expected_average_only_in"
    assert saes[1].cfg.metadata.l0 is None
    assert cfg.to_dict() == before


def test_devices() -> None:
    on_meta = make_saes([standard(device="meta")], [0])[0]
    assert on_meta.W_dec.device.type == on_meta.cfg.device == "meta"
    elsewhere = make_saes([standard(device="meta")], [0], device="cpu")[0]
    assert elsewhere.W_dec.device.type == elsewhere.cfg.device == "cpu"
    assert_same(elsewhere, make_saes([standard()], [0])[0])


@pytest.mark.parametrize("is_for_inference", [False, True])
def test_one_start_for_all(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, is_for_inference: bool
) -> None:
    start: Any = make("jumprelu", seed=3)
    if is_for_inference:
        start.save_inference_model(tmp_path)
        start = SAE.load_from_disk(tmp_path)
    before = {name: values.clone() for name, values in start.state_dict().items()}
    cfgs = [
        JumpReLUTrainingSAEConfig(**SIZES, l0_coefficient=c, jumprelu_init_threshold=9.0)
        for c in (0.1, 2.0)
    ]
    saes = make_saes(cfgs, [0, 1], start)
    assert [sae.cfg.l0_coefficient for sae in saes] == [0.1, 2.0]
    for i, sae in enumerate(saes):
        assert_same(sae, start)
        with torch.no_grad():
            for parameter in sae.parameters():
                assert parameter.requires_grad
                assert parameter.is_contiguous()
                parameter.add_(1.0)
        sae.save_model(tmp_path / str(i))
    for name, value in start.state_dict().items():
        assert torch.equal(value, before[name]), "the start shares memory with what it started"
    assert caplog.records == []


def test_a_start_for_each_or_for_some() -> None:
    starts = [make("standard", seed=1), None, make("standard", seed=2)]
    saes = make_saes([standard()] * 3, [7, 8, 9], starts)
    for sae, start, alone in zip(saes, starts, make_saes([standard()] * 3, [7, 8, 9]), strict=True):
        assert_same(sae, alone if start is None else start)


def test_a_start_of_other_strides_and_dtype_can_be_saved(tmp_path: Path) -> None:
    start = make("standard", dtype="float64")
    start.W_dec.data = start.W_dec.data.T.contiguous().T
    assert not start.W_dec.is_contiguous()
    sae = make_saes([standard()], [0], start)[0]
    assert sae.W_dec.is_contiguous()
    assert sae.W_dec.dtype == torch.float32
    assert torch.equal(sae.W_dec, start.W_dec.float())
    sae.save_model(tmp_path)


def test_a_batch_top_k_sae_goes_on_with_its_threshold() -> None:
    start = make("batchtopk", k=4)
    start.topk_threshold.fill_(0.37)
    sae = make_saes([BatchTopKTrainingSAEConfig(**SIZES, k=2.5)], [0], start)[0]
    assert sae.cfg.k == 2.5
    assert float(sae.get_buffer("topk_threshold")) == 0.37


def test_another_architecture_as_start_and_what_is_said_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    start = make("standard", seed=3)
    cfgs = [GatedTrainingSAEConfig(**SIZES), GatedTrainingSAEConfig(**SIZES)]
    with caplog.at_level(logging.WARNING, logger="sparse_but_wrong"):
        saes = make_saes(cfgs, [0, 1], start)
    for sae in saes:
        for name in ("W_enc", "W_dec", "b_dec"):
            assert torch.equal(sae.get_parameter(name), start.get_parameter(name))
        assert sae.get_parameter("b_gate").tolist() == [0.0] * 9
    pair = "2 SAEs: a GatedTrainingSAE that starts from a StandardTrainingSAE"
    assert caplog.messages == [
        f"{pair} leaves out its b_enc.",
        f"{pair} begins with its config's own b_gate, b_mag, r_mag.",
    ]


def test_weights_of_another_scale_are_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    normalised = standard(**NORMALISED)
    start = make_saes([normalised], [0])[0]
    make_saes([normalised], [0], start)
    assert caplog.records == []
    options = oracle.options_for(3)
    trained = oracle.train_with_sae_lens(start, oracle.recorded_batches(13), options)
    make_saes([normalised], [0], trained)
    assert len(caplog.messages) == 1
    assert "with normalize_activations='none', not 'expected_average" in caplog.messages[0]


class Unregistered(JumpReLUTrainingSAEConfig):
    """Of an architecture that its author has not told sae_lens of."""

    @classmethod
    def architecture(cls) -> str:
        return "homemade"

    def get_inference_config_class(self) -> type[SAEConfig]:
        return StandardSAEConfig


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seeds": [0]}, ValueError, "2 cfgs but 1 seeds; give one for each"),
        ({"initial_weights": [None] * 3}, ValueError, "2 cfgs but 3 initial_weights"),
        ({"seeds": [0, -1]}, ValueError, r"SAE 1: the seed -1 does not lie in"),
        ({"seeds": [2**64, 0]}, ValueError, r"SAE 0: the seed \d+ does not lie in"),
        ({"seeds": [0, 1.5]}, TypeError, r"SAE 1: the seed 1.5 is no whole number"),
        ({"cfgs": [standard(), StandardSAEConfig(**SIZES)]}, TypeError, "SAE 1: a StandardSAEC"),
        ({"cfgs": [{"d_in": 3}, standard()]}, TypeError, "SAE 0: a dict describes no SAE"),
        ({"cfgs": [standard(), Unregistered(**SIZES)]}, ValueError, "SAE 1: .*'homemade'"),
        ({"initial_weights": {"W_enc": torch.zeros(12, 9)}}, TypeError, "SAE 0: .*not from a dict"),
        (
            {"initial_weights": [None, make("standard", d_sae=8)]},
            ValueError,
            r"SAE 1: its \w+ has shape \[9.*\], but in its initial weights \[8.*\].*d_sae=9",
        ),
    ],
)
def test_refused(
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # While tests run, annotations alone would refuse some.
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(error, match=message):
        make_saes(**{"cfgs": [standard(), standard()], "seeds": [0, 1], **changes})


def each(architecture: str, field: str, *values: object, **others: Any) -> list[Any]:
    return [(architecture, {field: value, **others}) for value in values]


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        *each("jumprelu", "l0_coefficient", -1.0, math.nan, math.inf, None, "3"),
        *each("jumprelu", "jumprelu_bandwidth", 0.0, -1.0, math.nan),
        *each("jumprelu", "jumprelu_init_threshold", math.nan),
        *each("jumprelu", "jumprelu_tanh_scale", math.nan),
        *each("jumprelu", "l0_warm_up_steps", -1),
        *each("jumprelu", "pre_act_loss_coefficient", -1e-6),
        *each("jumprelu", "target_l0", math.nan, jumprelu_sparsity_loss_mode="quadratic"),
        *each("standard", "l1_coefficient", -1.0, math.nan, True),
        *each("standard", "lp_norm", 0.0),
        *each("standard", "decoder_init_norm", math.nan),
        *each("gated", "l1_coefficient", -0.1),
        *each("topk", "k", 0, -1, 10, math.nan, None, "8"),
        *each("abstopk", "k", 0, 10),
        *each("batchtopk", "k", 0.0, -1.0, 9.5, math.nan),
        *each("batchtopk", "aux_loss_coefficient", -1.0, k=2),
        *each("batchtopk", "topk_threshold_lr", math.nan, k=2),
        *each("matching_pursuit", "residual_threshold", math.nan, decoder_init_norm=1.0),
        *each("standard", "d_sae", 0, -1, 2.5, True, None, 10**12),
        *each("standard", "d_in", 0),
    ],
    ids=str,
)
def test_what_nobody_can_train_with_is_refused_and_named(
    architecture: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    _, config_class = SAE_TRAINING_CLASS_REGISTRY[architecture]
    field, *_ = config
    with pytest.raises(ValueError, match=f"SAE 0: .*{field}"):
        make_saes([config_class(**{**SIZES, **config})], [0])


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("jumprelu", {"l0_coefficient": 0, "jumprelu_init_threshold": -0.1}),
        ("jumprelu", {"pre_act_loss_coefficient": None, "target_l0": None}),
        ("standard", {"lp_norm": math.inf, "l1_coefficient": np.float32(0.5)}),
        ("standard", {"decoder_init_norm": None, "d_sae": np.int64(9)}),
        ("batchtopk", {"k": 0.5, "aux_loss_coefficient": 0.0, "topk_threshold_lr": 0.0}),
        ("topk", {"k": 9}),
        ("matching_pursuit", {"residual_threshold": -1.0, "decoder_init_norm": 1.0}),
    ],
    ids=str,
)
def test_what_sae_lens_trains_with_is_made(architecture: str, config: dict[str, Any]) -> None:
    sae_class, config_class = SAE_TRAINING_CLASS_REGISTRY[architecture]
    (sae,) = make_saes([config_class(**{**SIZES, **config})], [0])
    assert type(sae) is sae_class


def shifted() -> torch.Tensor:
    """Activations whose mean is most of them."""
    generator = torch.Generator().manual_seed(0)
    return 4 + torch.randn(5_000, SIZES["d_in"], generator=generator)


@pytest.mark.parametrize("config", [{}, NORMALISED])
def test_b_dec_at_the_mean_in_the_units_of_training(config: dict[str, Any]) -> None:
    (sae,), x = make_saes([standard(**config)], [0]), shifted()
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    init_b_dec_to_mean(sae, x)
    norm = x.norm(dim=1).mean() if config else math.sqrt(SIZES["d_in"])
    expected = {**before, "b_dec": x.mean(0) * math.sqrt(SIZES["d_in"]) / norm}
    for name, value in sae.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "x", "message"),
    [
        ({}, torch.zeros(3, 5), r"\[samples, 12\], got \[3, 5\]"),
        ({}, torch.zeros(0, 12), r"got \[0, 12\]"),
        ({}, torch.full((3, 12), math.inf), "norm of inf"),
        (NORMALISED, torch.zeros(3, 12), "norm of 0"),
        ({"apply_b_dec_to_input": False}, torch.ones(3, 12), "apply_b_dec_to_input=True"),
        ({"normalize_activations": "layer_norm"}, torch.ones(3, 12), "expected_average_only_in"),
    ],
)
def test_what_b_dec_cannot_start_at(config: dict[str, Any], x: torch.Tensor, message: str) -> None:
    (sae,) = make_saes([standard(**config)], [0])
    with pytest.raises(ValueError, match=message):
        init_b_dec_to_mean(sae, x)
    assert not sae.b_dec.any()
    with pytest.raises(TypeError, match="not of a list"):
        init_b_dec_to_mean([sae], x)  # pyright: ignore[reportArgumentType]


def test_from_the_mean_no_latents_die() -> None:
    """190 steps on features of length 5, at an offset of 20."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(10, 12, generator=generator), dim=1)
    fires = (torch.rand(13_824, 10, generator=generator) < 0.2).float()
    x = 5 * fires @ rows + 20 * rows[0]
    config: dict[str, Any] = {**SIZES, **NORMALISED}
    cfgs = [BatchTopKTrainingSAEConfig(**config, k=k) for k in (1, 2, 3)]
    from_zero, from_mean = (make_saes(cfgs, [0, 1, 2]) for _ in range(2))
    for sae in from_mean:
        init_b_dec_to_mean(sae, x[:1000])
    train_saes(
        [*from_zero, *from_mean],
        iter(x[1024:].split(64)),
        oracle.options_for(190, lr=3e-3, n_batches_for_norm_estimate=10),
    )
    zero, mean = (evaluate(saes, x[:1024]) for saes in (from_zero, from_mean))
    for before, after in zip(zero, mean, strict=True):
        assert before.dead_latents >= 3
        assert after.dead_latents == 0
        assert after.variance_explained > before.variance_explained + 0.3
