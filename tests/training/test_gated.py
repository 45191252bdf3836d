"""Gated SAEs in the engine: sae_lens' gradients, sae_lens' end, and nobody else's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparse_but_wrong.training.architectures.gated import Gated
from tests.training import checks, oracle
from tests.training.makers import make_sae

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("apply_b_dec", [False, True])
def test_gradient_and_losses_are_autograds(apply_b_dec: bool) -> None:
    saes = [make_sae("gated", seed=i, apply_b_dec_to_input=apply_b_dec) for i in range(3)]
    checks.assert_gradients_are_autograds(Gated, saes, [0.3, 1.1, 0.0], n_fired_min=100)


def test_open_gates_without_a_magnitude_and_magnitudes_behind_closed_gates() -> None:
    sae = make_sae("gated", seed=1)
    with torch.no_grad():
        sae.get_parameter("b_mag")[:5] -= 1.0
        sae.get_parameter("b_gate")[5:] -= 1.0
        centred = oracle.recorded_batches(1)[0] - sae.b_dec
        z = centred @ sae.W_enc
        is_open = z + sae.get_parameter("b_gate") > 0
        has_size = z * sae.get_parameter("r_mag").exp() + sae.get_parameter("b_mag") > 0
    for which in (is_open & ~has_size, ~is_open & has_size, is_open & has_size):
        assert which.sum() > 20
    checks.assert_gradients_are_autograds(Gated, [sae], [0.4], n_fired_min=20)


def test_a_latent_with_a_zero_decoder_row_gets_no_nan() -> None:
    sae = make_sae("gated")
    with torch.no_grad():
        sae.W_dec[2] = 0.0
    checks.assert_gradients_are_autograds(Gated, [sae], [0.4], n_fired_min=100)


# Every option of GatedTrainingSAEConfig and what it is combined with.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "large coefficient": {"l1_coefficient": 3.0},
    "warm-up": {"l1_warm_up_steps": 200},
    "warm-up longer than the run": {"l1_warm_up_steps": 1000},
    "b_dec not applied to input": {"apply_b_dec_to_input": False},
    "normalised": {"normalize_activations": "expected_average_only_in"},
    "normalised, b_dec not applied": {
        "normalize_activations": "expected_average_only_in",
        "apply_b_dec_to_input": False,
        "l1_warm_up_steps": 50,
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_three_saes_end_where_sae_lens_would_bring_them(name: str) -> None:
    options = {"l1_coefficient": 0.3, **OPTIONS[name]}
    saes = []
    for i, factor in enumerate((0.2, 1.0, 3.0)):
        coefficient = factor * options["l1_coefficient"]
        sae = make_sae("gated", seed=i, **{**options, "l1_coefficient": coefficient})
        with torch.no_grad():
            sae.get_parameter("b_gate")[0] = -9.0  # one latent that cannot fire
        saes.append(sae)
    checks.assert_parity(saes)
    assert all(sae.cfg.metadata.num_dead_features >= 1 for sae in saes)


def test_an_sae_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    saes = [make_sae("gated", seed=i, l1_coefficient=0.05 + 0.1 * i, d_sae=7) for i in range(4)]
    checks.assert_independent(saes, monkeypatch)
