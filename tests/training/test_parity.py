"""The engine against sae_lens' own trainer: same weights, same batches, same end."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from sparse_but_wrong.training.loop import train_saes
from tests.training import oracle

pytestmark = pytest.mark.usefixtures("kernels")

# Every option of JumpReLUTrainingSAEConfig and what it is combined with; 300 steps each.
OPTIONS: dict[str, dict[str, Any]] = {
    "tanh": {},
    "tanh scale": {"jumprelu_tanh_scale": 1.5},
    "tanh, ste to input": {"jumprelu_ste_to_input": True},
    "step": {"jumprelu_sparsity_loss_mode": "step", "l0_coefficient": 0.1},
    "step, ste to input": {
        "jumprelu_sparsity_loss_mode": "step",
        "l0_coefficient": 0.1,
        "jumprelu_ste_to_input": True,
    },
    "quadratic": {
        "jumprelu_sparsity_loss_mode": "quadratic",
        "target_l0": 2.5,
        "l0_coefficient": 0.1,
    },
    "quadratic, ste to input": {
        "jumprelu_sparsity_loss_mode": "quadratic",
        "target_l0": 2.5,
        "l0_coefficient": 0.1,
        "jumprelu_ste_to_input": True,
    },
    "narrow bandwidth": {"jumprelu_bandwidth": 0.25, "jumprelu_init_threshold": 0.3},
    "pre-activation loss": {"pre_act_loss_coefficient": 0.05, "l0_coefficient": 1.0},
    "pre-activation loss, step": {
        "pre_act_loss_coefficient": 0.05,
        "jumprelu_sparsity_loss_mode": "step",
        "l0_coefficient": 1.0,
    },
    "warm-up": {"l0_warm_up_steps": 200},
    "warm-up longer than the run": {"l0_warm_up_steps": 1000},
    "b_dec not applied to input": {"apply_b_dec_to_input": False},
    "normalised": {"normalize_activations": "expected_average_only_in"},
    "normalised, b_dec not applied": {
        "normalize_activations": "expected_average_only_in",
        "apply_b_dec_to_input": False,
    },
    "threshold from zero": {
        # In tanh mode a threshold of 0 has gradient 0 and stays, so the step mode it is.
        "jumprelu_init_threshold": 0.0,
        "jumprelu_sparsity_loss_mode": "step",
        "l0_coefficient": 0.1,
    },
    "as the notebook": {
        "normalize_activations": "expected_average_only_in",
        "l0_warm_up_steps": 200,
        "l0_coefficient": 0.75,
    },
}
N_STEPS = 300


def assert_parity(options: dict[str, Any], coefficients: list[float]) -> None:
    # A short dead-latent window, so that the pre-activation loss has latents to pull on.
    run = oracle.options_for(N_STEPS, dead_feature_window=20, feature_sampling_window=70)
    batches = oracle.recorded_batches(N_STEPS + 10)
    saes = [
        oracle.make_sae(seed=i, **{**options, "l0_coefficient": coefficient})
        for i, coefficient in enumerate(coefficients)
    ]
    for sae in saes:
        # One latent that cannot fire, to be dead from the start.
        with torch.no_grad():
            sae.b_enc[0] = -3.0
    starts = [oracle.parameters(sae) for sae in saes]
    expected = [oracle.train_with_sae_lens(sae, batches, run) for sae in saes]

    log = train_saes(saes, iter(batches), run)

    for sae, start, want, sae_log in zip(saes, starts, expected, log.saes, strict=True):
        assert sae_log.trained_by == "engine"
        wanted = oracle.parameters(want)
        for name, value in oracle.parameters(sae).items():
            moved = (wanted[name] - start[name]).abs().max()
            assert moved > 1e-2, f"{name} did not train, so this compares nothing"
            # Adam divides by the gradient's own size, so rounding (1e-7 a step) is not damped but
            # carried along 300 steps of up to lr = 1e-3 each; 1e-4 is a tenth of one step.
            torch.testing.assert_close(value, wanted[name], atol=1e-4, rtol=1e-4)
        assert sae.cfg.normalize_activations == want.cfg.normalize_activations == "none"
        assert sae.cfg.metadata.l0 == pytest.approx(want.cfg.metadata.l0, rel=1e-3)
        assert sae.cfg.metadata.num_dead_features == want.cfg.metadata.num_dead_features


@pytest.mark.parametrize("name", OPTIONS)
def test_one_sae_ends_where_sae_lens_would_bring_it(name: str) -> None:
    assert_parity(OPTIONS[name], [OPTIONS[name].get("l0_coefficient", 0.3)])


@pytest.mark.parametrize("name", OPTIONS)
def test_three_saes_at_unequal_coefficients_do_too(name: str) -> None:
    base = OPTIONS[name].get("l0_coefficient", 0.3)
    assert_parity(OPTIONS[name], [0.2 * base, base, 3 * base])


def test_the_notebooks_own_shapes() -> None:
    """D = 100, H = 50, batches of 1024, the notebook's options and learning rate.

    100 steps: of the 5,000,000 pre-activations of this size an SAE computes in them, hardly one
    comes within rounding of its threshold. Where one does, a sample is active for one trainer and
    not for the other, and from there they go apart for good.
    """
    batches = oracle.recorded_batches(110, batch=1024, d_in=100)
    run = oracle.options_for(
        100, total_training_samples=100 * 1024, train_batch_size_samples=1024, lr=3e-4
    )
    saes = [
        oracle.make_sae(
            seed=i,
            d_in=100,
            d_sae=50,
            l0_coefficient=coefficient,
            l0_warm_up_steps=70,
            normalize_activations="expected_average_only_in",
        )
        for i, coefficient in enumerate((0.05, 0.75, 1.5))
    ]
    expected = [oracle.train_with_sae_lens(sae, batches, run) for sae in saes]
    train_saes(saes, iter(batches), run)
    for sae, want in zip(saes, expected, strict=True):
        for name, value in oracle.parameters(sae).items():
            # As above a tenth of one step of Adam, which is smaller here.
            torch.testing.assert_close(value, oracle.parameters(want)[name], atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "schedule",
    [
        {"lr_warm_up_steps": 50},
        {"lr_decay_steps": 60},
        {"lr_warm_up_steps": 50, "lr_decay_steps": 60},
        {"lr_scheduler_name": "cosineannealing", "lr_warm_up_steps": 20},
        {"lr_scheduler_name": "cosineannealingwarmrestarts", "n_restart_cycles": 3},
        {"adam_beta1": 0.0, "adam_beta2": 0.99},
    ],
    ids=str,
)
def test_learning_rate_schedules_and_betas(schedule: dict[str, Any]) -> None:
    run = oracle.options_for(N_STEPS, **schedule)
    batches = oracle.recorded_batches(N_STEPS)
    sae = oracle.make_sae()
    expected = oracle.parameters(oracle.train_with_sae_lens(sae, batches, run))
    constant = copy.deepcopy(sae)
    train_saes([constant], iter(batches), oracle.options_for(N_STEPS))

    train_saes([sae], iter(batches), run)

    for name, value in oracle.parameters(sae).items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-4)
    difference = (sae.W_dec - constant.W_dec).abs().max()
    assert difference > 1e-3, "the schedule made no difference, so this compares nothing"


def test_batches_of_changing_size_and_a_last_batch_past_the_budget() -> None:
    whole = oracle.recorded_batches(60)
    batches = [batch[: 40 + i % 20] for i, batch in enumerate(whole)]
    run = oracle.options_for(40)
    sae = oracle.make_sae()
    expected = oracle.parameters(oracle.train_with_sae_lens(sae, batches, run))
    reader = iter(batches)

    train_saes([sae], reader, run)

    for name, value in oracle.parameters(sae).items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-4)
    seen, n_read = 0, 0
    while seen < run.total_training_samples:
        seen += batches[n_read].shape[0]
        n_read += 1
    assert len(list(reader)) == len(batches) - n_read, "the engine read past what it needs"
