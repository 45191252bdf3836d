"""One step's gradient and losses against sae_lens' autograd, for every loss mode."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from sparse_but_wrong.training.architectures.jumprelu import JumpReLU
from sparse_but_wrong.training.stack import ParameterLayout, stack_parameters
from tests.training import oracle
from tests.training.checks import assert_gradients_are_autograds

pytestmark = pytest.mark.usefixtures("kernels")

MODES = ("tanh", "step", "quadratic")


@pytest.mark.parametrize(
    ("mode", "ste", "pre_act", "apply_b_dec"),
    list(itertools.product(MODES, (False, True), (None, 0.3), (False, True))),
)
def test_gradient_and_losses_are_autograds(
    mode: str, ste: bool, pre_act: float | None, apply_b_dec: bool
) -> None:
    options: dict[str, Any] = {
        "jumprelu_sparsity_loss_mode": mode,
        "jumprelu_ste_to_input": ste,
        "pre_act_loss_coefficient": pre_act,
        "apply_b_dec_to_input": apply_b_dec,
        "target_l0": 2.5,
    }
    # Unlike each other in everything that may differ within a stack.
    saes = [
        oracle.make_sae(seed=0, **options),
        oracle.make_sae(seed=1, **{**options, "jumprelu_bandwidth": 0.7, "target_l0": 4.0}),
        oracle.make_sae(seed=2, **{**options, "jumprelu_tanh_scale": 1.3}),
    ]
    assert_gradients_are_autograds(JumpReLU, saes, [0.3, 1.1, 0.05], n_fired_min=1)


def test_a_latent_with_a_zero_decoder_row_gets_no_nan() -> None:
    sae = oracle.make_sae()
    with torch.no_grad():
        sae.W_dec[2] = 0.0
    layout = ParameterLayout(JumpReLU.parameter_shapes(oracle.D_IN, oracle.D_SAE))
    params = layout.views(stack_parameters([sae], layout))
    flat_grads = torch.zeros(1, layout.size)
    stepper = JumpReLU([sae.cfg], torch.device("cpu"))
    x = oracle.recorded_batches(1)[0]

    stepper.step(
        x,
        params,
        {},
        layout.views(flat_grads),
        torch.ones(1, 1),
        torch.zeros(1, oracle.D_SAE, dtype=torch.bool),
        stepper.workspace(x.shape[0]),
    )

    assert bool(torch.isfinite(flat_grads).all())
