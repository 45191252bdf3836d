"""The vmap ensemble does what sae_lens does; else its time would say nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TrainingSAE

from benchmarks.ways import LR, vmap_ensemble
from tests.training.oracle import (
    BATCH,
    D_IN,
    D_SAE,
    make_sae,
    options_for,
    recorded_batches,
    train_with_sae_lens,
)


def make_jumprelu(**changes: Any) -> list[TrainingSAE[Any]]:
    settings = {"normalize_activations": "expected_average_only_in", **changes}
    return [
        make_sae(seed=i, l0_coefficient=coefficient, **settings)
        for i, coefficient in enumerate((0.2, 1.1))
    ]


def make_batchtopk() -> list[TrainingSAE[Any]]:
    saes: list[TrainingSAE[Any]] = []
    for seed, k in enumerate((1.5, 4.0)):
        torch.manual_seed(seed)
        config = BatchTopKTrainingSAEConfig(
            d_in=D_IN, d_sae=D_SAE, k=k, normalize_activations="expected_average_only_in"
        )
        saes.append(BatchTopKTrainingSAE(config))
    return saes


def check_equals_sae_lens(saes: Sequence[TrainingSAE[Any]], n_steps: int) -> None:
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
            torch.testing.assert_close(
                sae.state_dict()[name],
                value,
                rtol=1e-5,
                atol=LR / 10,
                msg=lambda m, n=name: f"{n}: {m}",
            )


@pytest.mark.parametrize("n_steps", [1, 5])
def test_an_ensemble_of_jumprelu_saes_steps_as_sae_lens_does(n_steps: int) -> None:
    check_equals_sae_lens(make_jumprelu(), n_steps)


def test_the_coefficient_warms_up_as_in_sae_lens() -> None:
    check_equals_sae_lens(make_jumprelu(l0_warm_up_steps=3), 5)


@pytest.mark.parametrize("n_steps", [1, 5])
def test_an_ensemble_of_batchtopk_saes_steps_as_sae_lens_does(n_steps: int) -> None:
    check_equals_sae_lens(make_batchtopk(), n_steps)


def test_an_ensemble_refuses_what_it_would_train_otherwise() -> None:
    with pytest.raises(ValueError, match="tanh mode"):
        vmap_ensemble([make_sae(jumprelu_sparsity_loss_mode="step")], 1, iter(()), BATCH)
    with pytest.raises(ValueError, match="share jumprelu_bandwidth"):
        vmap_ensemble([make_sae(), make_sae(jumprelu_bandwidth=1.0)], 1, iter(()), BATCH)
    with pytest.raises(ValueError, match="all JumpReLU or all BatchTopK"):
        vmap_ensemble([make_sae(), *make_batchtopk()], 1, iter(()), BATCH)
