"""Standard SAEs in the engine: sae_lens' gradients, sae_lens' end, and nobody else's."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
import torch

from sparse_but_wrong.training.architectures.standard import Standard
from sparse_but_wrong.training.loop import train_saes
from tests.training import checks, oracle
from tests.training.makers import make_sae

pytestmark = pytest.mark.usefixtures("kernels")

NORMS = (1.0, 0.5, 1.5, 2.0, 3.0)


@pytest.mark.parametrize(("p", "apply_b_dec"), list(itertools.product(NORMS, (False, True))))
def test_gradient_and_losses_are_autograds(p: float, apply_b_dec: bool) -> None:
    saes = [
        make_sae("standard", seed=seed, lp_norm=p, apply_b_dec_to_input=apply_b_dec)
        for seed in (21, 31, 57)
    ]
    # Below p = 1 the gradient grows without bound towards an activation of 0, and with it the
    # rounding errors of both sides: at an activation of 3e-5 autograd's own float32 gradient is
    # off by 1e-3. These seeds have none so small.
    with torch.no_grad():
        acts = [sae.encode(oracle.recorded_batches(1)[0]) for sae in saes]
    assert all(a[a > 0].min() > 2e-3 for a in acts)
    checks.assert_gradients_are_autograds(Standard, saes, [0.3, 1.1, 0.0], n_fired_min=100)


@pytest.mark.parametrize("p", NORMS)
def test_zero_decoder_rows_and_samples_without_an_active_latent(p: float) -> None:
    saes = [make_sae("standard", seed=i, lp_norm=p) for i in range(2)]
    with torch.no_grad():
        saes[0].W_dec[2] = 0.0
        saes[1].get_parameter("b_enc").sub_(0.6)
        x = oracle.recorded_batches(1)[0]
        acts = saes[1].encode(x)
        assert 0 < (acts.sum(1) == 0).sum() < len(x), "no sample, or every one, is without"
        assert bool((saes[0].encode(x)[:, 2] > 0).any())
    checks.assert_gradients_are_autograds(Standard, saes, [0.3, 0.3], n_fired_min=1)


# Every option of StandardTrainingSAEConfig and what it is combined with.
OPTIONS: dict[str, dict[str, Any]] = {
    "L1": {},
    "large coefficient": {"l1_coefficient": 3.0},
    "warm-up": {"l1_warm_up_steps": 200},
    "warm-up longer than the run": {"l1_warm_up_steps": 1000},
    "p = 1.5": {"lp_norm": 1.5},
    "p = 2": {"lp_norm": 2.0},
    "p = 2, as an integer": {"lp_norm": 2},
    "b_dec not applied to input": {"apply_b_dec_to_input": False},
    "normalised": {"normalize_activations": "expected_average_only_in"},
    "normalised, b_dec not applied, p = 2": {
        "normalize_activations": "expected_average_only_in",
        "apply_b_dec_to_input": False,
        "lp_norm": 2.0,
        "l1_warm_up_steps": 50,
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_three_saes_end_where_sae_lens_would_bring_them(name: str) -> None:
    options = {"l1_coefficient": 0.3, **OPTIONS[name]}
    saes = []
    for i, factor in enumerate((0.2, 1.0, 3.0)):
        coefficient = factor * options["l1_coefficient"]
        sae = make_sae("standard", seed=i, **{**options, "l1_coefficient": coefficient})
        with torch.no_grad():
            sae.get_parameter("b_enc")[0] = -9.0  # one latent that cannot fire
        saes.append(sae)
    checks.assert_parity(saes)
    assert all(sae.cfg.metadata.num_dead_features >= 1 for sae in saes)


def test_p_below_1_ends_there_too_for_as_long_as_rounding_allows() -> None:
    """150 steps at small coefficients.

    Where an activation passes close to 0 the gradient has no bound, and the two trainers' rounding
    errors part them for good. So they do sae_lens' float32 and float64: at a coefficient of 0.02
    those two are 3e-3 apart after 200 steps, as far as the engine is from either.
    """
    saes = [
        make_sae("standard", seed=i, lp_norm=0.5, l1_coefficient=coefficient)
        for i, coefficient in enumerate((0.001, 0.002, 0.004))
    ]
    unpenalised = make_sae("standard", seed=2, lp_norm=0.5, l1_coefficient=0.0)
    checks.assert_parity(saes, n_steps=150)
    train_saes([unpenalised], iter(oracle.recorded_batches(150)), oracle.options_for(150))
    assert (unpenalised.W_dec - saes[2].W_dec).abs().max() > 1e-3


@pytest.mark.parametrize("p", [1.0, 0.5, 1.7])
def test_an_sae_is_its_own(p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    saes = [
        make_sae("standard", seed=i, lp_norm=p, l1_coefficient=0.05 + 0.1 * i, d_sae=7)
        for i in range(4)
    ]
    checks.assert_independent(saes, monkeypatch)


def test_other_norms_go_to_sae_lens(caplog: pytest.LogCaptureFixture) -> None:
    sae = make_sae("standard", lp_norm=float("inf"), l1_coefficient=0.1)
    with caplog.at_level(logging.WARNING, logger="sparse_but_wrong"):
        log = train_saes([sae], iter(oracle.recorded_batches(5)), oracle.options_for(5))
    assert log.saes[0].trained_by == "sae_lens"
    assert "it does not do lp_norm=inf" in caplog.text
