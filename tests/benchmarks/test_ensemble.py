"""The vmap ensemble does what sae_lens does; else its time would say nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from benchmarks.ways import LR, vmap_ensemble
from tests.training.oracle import (
    BATCH,
    make,
    make_sae,
    options_for,
    recorded_batches,
    train_with_sae_lens,
)

NORMALIZED = {"normalize_activations": "expected_average_only_in"}


@pytest.mark.parametrize(
    ("architecture", "settings", "n_steps"),
    [
        *(("jumprelu", [{"l0_coefficient": c} for c in (0.2, 1.1)], n) for n in (1, 5)),
        ("jumprelu", [{"l0_coefficient": c, "l0_warm_up_steps": 3} for c in (0.2, 1.1)], 5),
        *(("batchtopk", [{"k": k} for k in (1.5, 4.0)], n) for n in (1, 5)),
    ],
)
def test_an_ensemble_steps_as_sae_lens_does(
    architecture: str, settings: list[dict[str, Any]], n_steps: int
) -> None:
    saes = [make(architecture, seed, **NORMALIZED, **s) for seed, s in enumerate(settings)]
    batches = recorded_batches(n_steps + 1)
    options = options_for(n_steps, lr=LR, n_batches_for_norm_estimate=1)
    expected = [train_with_sae_lens(sae, batches, options) for sae in saes]
    trained = [copy.deepcopy(sae) for sae in saes]
    vmap_ensemble(trained, n_steps, iter(batches), BATCH)
    for before, sae, other in zip(saes, trained, expected, strict=True):
        assert not torch.equal(sae.W_dec, before.W_dec)
        for name, value in other.state_dict().items():
            # Adam's first steps are about lr long whatever the gradient, so rounding of one that
            # nearly cancels can show as a part of lr, and a wrong gradient as lr or more.
            close = {"rtol": 1e-5, "atol": LR / 10, "msg": lambda m, n=name: f"{n}: {m}"}
            torch.testing.assert_close(sae.state_dict()[name], value, **close)


def test_an_ensemble_refuses_what_it_would_train_otherwise() -> None:
    cases: list[tuple[list[Any], str]] = [
        ([make_sae(jumprelu_sparsity_loss_mode="step")], "tanh mode"),
        ([make_sae(), make_sae(jumprelu_bandwidth=1.0)], "share jumprelu_bandwidth"),
        ([make_sae(), make("batchtopk")], "all JumpReLU or all BatchTopK"),
        ([make("batchtopk", rescale_acts_by_decoder_norm=False)], "rescale_acts"),
        ([make_sae(apply_b_dec_to_input=False)], "apply_b_dec_to_input"),
    ]
    for saes, culprit in cases:
        with pytest.raises(ValueError, match=culprit):
            vmap_ensemble(saes, 1, iter(()), BATCH)
