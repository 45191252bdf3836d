"""The engine against sae_lens' own trainer: same weights, same batches, same end.

What is active hangs on an order and on thresholds, so a pair of pre-activations that rounding swaps
would part two runs for good. At these sizes, 64 samples of 9 latents for 300 steps, none is so
close.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE
from safetensors.torch import load_file

from sparse_but_wrong.training.loop import train_saes
from tests.training import oracle
from tests.training.oracle import (
    COMPILED,
    NORMALISED,
    assert_close,
    make,
    sparsity_field,
    steps_of,
    trained_values,
    unlike_saes,
)

N_STEPS = 300
FOR_ALL: dict[str, dict[str, Any]] = {
    "as they come": {},
    "b_dec not applied to input": {"apply_b_dec_to_input": False},
    "normalised": NORMALISED,
}
STEP = {"jumprelu_sparsity_loss_mode": "step", "l0_coefficient": 0.1}
QUADRATIC = {**STEP, "jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 2.5}
PRE_ACT = {"pre_act_loss_coefficient": 0.05, "l0_coefficient": 1.0}
JUMPRELU: dict[str, dict[str, Any]] = {
    "tanh scale": {"jumprelu_tanh_scale": 1.5},
    "tanh, ste to input": {"jumprelu_ste_to_input": True},
    "step": STEP,
    "step, ste to input": {**STEP, "jumprelu_ste_to_input": True},
    "quadratic": QUADRATIC,
    "quadratic, ste to input": {**QUADRATIC, "jumprelu_ste_to_input": True},
    "narrow bandwidth": {"jumprelu_bandwidth": 0.25, "jumprelu_init_threshold": 0.3},
    "pre-activation loss": PRE_ACT,
    "pre-activation loss, step": {**STEP, **PRE_ACT},
    "warm-up": {"l0_warm_up_steps": 200},
    "warm-up longer than the run": {"l0_warm_up_steps": 1000},
    "normalised, b_dec not applied": {**NORMALISED, "apply_b_dec_to_input": False},
    # In tanh mode a threshold of 0 has gradient 0 and stays, so the step mode it is.
    "threshold from zero": {**STEP, "jumprelu_init_threshold": 0.0},
    "as the notebook": {**NORMALISED, "l0_warm_up_steps": 200, "l0_coefficient": 0.75},
}
NOT_APPLIED = {**NORMALISED, "apply_b_dec_to_input": False, "l1_warm_up_steps": 50}
L1: dict[str, dict[str, Any]] = {
    "large coefficient": {"l1_coefficient": 3.0},
    "warm-up": {"l1_warm_up_steps": 200},
    "warm-up longer than the run": {"l1_warm_up_steps": 1000},
    "normalised, b_dec not applied": NOT_APPLIED,
}
NO_NORMS = {"rescale_acts_by_decoder_norm": False}
OF_TOPK: dict[str, dict[str, Any]] = {
    "decoder norms left out": NO_NORMS,
    "no auxiliary loss": {"aux_loss_coefficient": 0.0},
    "little auxiliary loss": {"aux_loss_coefficient": 1 / 32},
    "normalised, norms left out": {**NORMALISED, **NO_NORMS},
    "k beyond what is positive": {"k": 8},
}
BY_LEVEL = {"use_matryoshka_aux_loss": True}
MOVES = {"initial_k": 7.5, "transition_k_duration_steps": 90, "transition_k_start_step": 20}
NORMS = {"normalize_acts_by_decoder_norm": True}
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "jumprelu": {**FOR_ALL, **JUMPRELU},
    "standard": {**FOR_ALL, **L1, "p = 1.5": {"lp_norm": 1.5}, "an integer": {"lp_norm": 2}},
    "gated": {**FOR_ALL, **L1},
    **{name: {**FOR_ALL, **OF_TOPK} for name in ("topk", "batchtopk")},
    "matryoshka_batchtopk": {
        **FOR_ALL,
        **OF_TOPK,
        "auxiliary loss by level": BY_LEVEL,
        "auxiliary loss by level, normalised": {**BY_LEVEL, **NORMALISED, **NO_NORMS},
        "many levels": {**BY_LEVEL, "matryoshka_widths": [1, 2, 5, 9]},
        "two levels": {"matryoshka_widths": [8, 9]},
    },
    "enhanced_batchtopk": {
        "as it comes": {},
        "k moves": MOVES,
        "norms count": NORMS,
        "norms count, k moves, normalised": {**NORMS, **MOVES, **NORMALISED},
        "k moves beyond the end": {**MOVES, "transition_k_duration_steps": 700},
    },
}
OPTIONS["topk"]["sparse"] = {"use_sparse_activations": True, **NO_NORMS}
OPTIONS["batchtopk"]["fast threshold"] = {"topk_threshold_lr": 0.5}
# Of a step that is not compiled `test_gradient` compares every option with sae_lens; here it is the
# loop around it that matters.
OF_THE_LOOP = {*FOR_ALL, "warm-up", "as the notebook", "k moves", "fast threshold"}
CASES = [
    (name, option, step)
    for name, options in OPTIONS.items()
    for option in options
    for step in steps_of(name)
    if step == "compiled" or name not in COMPILED or option in OF_THE_LOOP
]

# A short dead-latent window, so that losses on dead latents have some to pull on.
RUN = oracle.options_for(N_STEPS, dead_feature_window=20, feature_sampling_window=70, log_every=20)
BATCHES = oracle.recorded_batches(N_STEPS + 10)


@functools.cache
def as_sae_lens_trains_them(name: str, option: str) -> list[Any]:
    """Once for both steps."""
    saes = unlike_saes(name, **OPTIONS[name][option])
    return [oracle.train_with_sae_lens(sae, BATCHES, RUN) for sae in saes]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(("name", "option", "step"), CASES, indirect=["step"])
def test_a_stack_ends_where_sae_lens_would_bring_each(
    name: str,
    option: str,
    step: str,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    saes = unlike_saes(name, **OPTIONS[name][option])
    starts = [trained_values(sae) for sae in saes]

    log = train_saes(saes, iter(BATCHES), RUN)

    expected = as_sae_lens_trains_them(name, option)
    for sae, start, want, sae_log in zip(saes, starts, expected, log.saes, strict=True):
        assert sae_log.trained_by == "engine"
        for parameter, value in trained_values(want).items():
            moved = (value - start[parameter]).abs().max()
            limit = 1e-3 if parameter == "topk_threshold" or name[:8] == "enhanced" else 1e-2
            assert moved > limit, f"{parameter} did not train, so this compares nothing"
        assert_close(sae, want)
        assert sae.cfg.normalize_activations == want.cfg.normalize_activations == "none"
        assert sae.cfg.metadata.l0 == pytest.approx(want.cfg.metadata.l0, rel=1e-3)
        assert sae.cfg.metadata.num_dead_features == want.cfg.metadata.num_dead_features
        if sparsity_field(name) != "k":
            continue
        columns = sae_log.columns
        assert max(columns["dead_latents"]) > 0, "there was nothing to revive"
        assert columns["k"][0] == (7.5 if "k moves" in option else sae.cfg.k)
        assert sae.cfg.k == want.cfg.k
        assert sae.activation_fn.k == pytest.approx(want.activation_fn.k, rel=1e-12)
        has_auxiliary = sae.cfg.aux_loss_coefficient > 0
        assert (max(columns["auxiliary_reconstruction_loss"]) > 0) == has_auxiliary
        if option == "k beyond what is positive":
            assert max(columns["l0"]) < sae.cfg.k - 0.5
        if isinstance(sae, BatchTopKTrainingSAE):
            assert sae.topk_threshold.dtype == torch.float64
            torch.testing.assert_close(
                sae.topk_threshold, want.topk_threshold, atol=1e-6, rtol=1e-4
            )
        assert_same_for_inference(sae, want, tmp_path)


@pytest.mark.parametrize(
    ("name", "step"),
    [(name, step) for name in ("batchtopk", "jumprelu") for step in steps_of(name)],
    indirect=["step"],
)
@pytest.mark.usefixtures("step")
def test_a_frozen_decoder_stays_and_all_else_ends_where_sae_lens_would_bring_it(name: str) -> None:
    saes = unlike_saes(name)
    for sae in saes:
        sae.W_dec.requires_grad_(False)
    starts = [sae.W_dec.clone() for sae in saes]
    expected = [oracle.train_with_sae_lens(copy.deepcopy(sae), BATCHES, RUN) for sae in saes]
    # One that is not frozen has a stack of its own, though it shares their shapes.
    other = make(name)

    log = train_saes([*saes, other], iter(BATCHES), RUN)

    assert {sae_log.trained_by for sae_log in log.saes} == {"engine"}
    for sae, start, want in zip(saes, starts, expected, strict=True):
        assert torch.equal(sae.W_dec, start)
        assert_close(sae, want)
    assert not torch.equal(other.W_dec, make(name).W_dec)


def assert_same_for_inference(sae: Any, want: Any, folder: Path) -> None:
    """What is saved for inference: BatchTopK and Matryoshka as JumpReLU with the threshold."""
    found, expected = (
        load_file(one.save_inference_model(folder / place)[0])
        for one, place in ((sae, "ours"), (want, "theirs"))
    )
    assert ("threshold" in expected) == isinstance(sae, BatchTopKTrainingSAE)
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=2e-4, rtol=2e-4)


def test_standard_below_p_1_ends_there_too_for_as_long_as_rounding_allows() -> None:
    """150 steps at small coefficients.

    Where an activation passes close to 0 the gradient has no bound, and the two trainers' rounding
    errors part them for good. So they do sae_lens' float32 and float64: at a coefficient of 0.02
    those two are 3e-3 apart after 200 steps, as far as the engine is from either.
    """
    saes = [
        make("standard", seed=i, lp_norm=0.5, l1_coefficient=coefficient)
        for i, coefficient in enumerate((0.001, 0.002, 0.004))
    ]
    unpenalised = make("standard", seed=2, lp_norm=0.5, l1_coefficient=0.0)
    run = oracle.options_for(150)
    expected = [oracle.train_with_sae_lens(sae, BATCHES, run) for sae in saes]
    train_saes([*saes, unpenalised], iter(BATCHES), run)
    for sae, want in zip(saes, expected, strict=True):
        assert_close(sae, want)
    assert (unpenalised.W_dec - saes[2].W_dec).abs().max() > 1e-3


@pytest.mark.usefixtures("step")
def test_the_notebooks_own_shapes() -> None:
    """D = 100, H = 50, batches of 1024, the notebook's options and learning rate.

    100 steps: of the 5,000,000 pre-activations of this size an SAE computes in them, hardly one
    comes within rounding of its threshold.
    """
    batches = oracle.recorded_batches(110, batch=1024, d_in=100)
    run = oracle.options_for(
        100, total_training_samples=100 * 1024, train_batch_size_samples=1024, lr=3e-4
    )
    options = {"d_in": 100, "d_sae": 50, "l0_warm_up_steps": 70, **NORMALISED}
    saes = [
        oracle.make_sae(seed=i, l0_coefficient=coefficient, **options)
        for i, coefficient in enumerate((0.05, 0.75, 1.5))
    ]
    expected = [oracle.train_with_sae_lens(sae, batches, run) for sae in saes]
    train_saes(saes, iter(batches), run)
    for sae, want in zip(saes, expected, strict=True):
        assert_close(sae, want, atol=3e-5)  # a tenth of one step of Adam, which is smaller here


@pytest.mark.usefixtures("step")
@pytest.mark.parametrize(
    "schedule",
    [
        {"lr_warm_up_steps": 50, "lr_decay_steps": 60},
        {"lr_scheduler_name": "cosineannealing", "lr_warm_up_steps": 20},
        {"lr_scheduler_name": "cosineannealingwarmrestarts", "n_restart_cycles": 3},
        {"adam_beta1": 0.0, "adam_beta2": 0.99},
    ],
    ids=str,
)
def test_learning_rate_schedules_and_betas(schedule: dict[str, Any]) -> None:
    run = oracle.options_for(N_STEPS, **schedule)
    sae = oracle.make_sae()
    expected = oracle.train_with_sae_lens(sae, BATCHES, run)
    constant = copy.deepcopy(sae)
    train_saes([constant], iter(BATCHES), oracle.options_for(N_STEPS))
    train_saes([sae], iter(BATCHES), run)
    assert_close(sae, expected)
    difference = (sae.W_dec - constant.W_dec).abs().max()
    assert difference > 1e-3, "the schedule made no difference, so this compares nothing"


@pytest.mark.usefixtures("step")
def test_batches_of_changing_size_and_a_last_batch_past_the_budget() -> None:
    batches = [batch[: 40 + i % 20] for i, batch in enumerate(BATCHES[:60])]
    run = oracle.options_for(40)
    sae = oracle.make_sae()
    expected = oracle.train_with_sae_lens(sae, batches, run)
    reader = iter(batches)
    train_saes([sae], reader, run)
    assert_close(sae, expected)
    seen, n_read = 0, 0
    while seen < run.total_training_samples:
        seen += batches[n_read].shape[0]
        n_read += 1
    assert len(list(reader)) == len(batches) - n_read, "the engine read past what it needs"
