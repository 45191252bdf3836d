"""An SAE is measured while sae_lens' own trainers train it, and they do not notice."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    SAETrainer,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from sparse_but_wrong import L0Monitor, evaluate
from tests.activations.tiny_model import D_IN, make_tiny_model
from tests.training import oracle

EVERY_10 = LoggingConfig(log_to_wandb=True, wandb_log_frequency=10, eval_every_n_wandb_logs=1)
X = torch.cat(oracle.recorded_batches(20, seed=9))


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What users set who have no account; nothing leaves the machine."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb.teardown()  # or it keeps the settings that another test's first use has read
    yield
    wandb.teardown()


def train(sae: Any, evaluator: Any, n_steps: int = 30) -> Any:
    """With sae_lens' `SAETrainer`, which measures every ten steps."""
    sae = copy.deepcopy(sae)
    config = SAETrainerConfig(
        total_training_samples=n_steps * oracle.BATCH,
        train_batch_size_samples=oracle.BATCH,
        n_batches_for_norm_estimate=5,
        device="cpu",
        lr=1e-3,
        lr_end=1e-4,
        logger=EVERY_10,
    )
    batches = iter(oracle.recorded_batches(n_steps + 5))
    return SAETrainer(config, sae, batches, evaluator=evaluator).fit()


@pytest.mark.parametrize("architecture", ["batchtopk", "jumprelu"])
def test_it_measures_what_the_finished_sae_would_be(architecture: str) -> None:
    sae = oracle.make(architecture, 0, **oracle.NORMALISED)
    other = oracle.make(architecture, seed=1)
    wandb.init(project="saes")
    monitor = L0Monitor(X, partner=other.W_dec, also=lambda *_: {"mine": 1.0})
    state = torch.random.get_rng_state()
    watched = train(sae, monitor)
    assert torch.equal(torch.random.get_rng_state(), state)
    alone = train(sae, None)
    for name, value in alone.named_parameters():
        assert torch.equal(watched.get_parameter(name), value), name
    # The last of its three measurements is of the SAE that comes out.
    found = evaluate(watched, X)
    assert len(monitor.to_frame()) == 3
    last = monitor.measurements[-1]
    assert last["l0"] == pytest.approx(found.l0, rel=1e-3)
    assert last["c_dec"] == pytest.approx(found.c_dec, rel=1e-4)
    assert last["s_3"] == pytest.approx(found.projections[3], rel=1e-3)
    assert 0 <= last["agreement"] < 1
    assert ("reconstruction_share" in last) == (architecture == "jumprelu")
    logged = monitor(watched, None, ActivationScaler())
    assert logged["mine"] == 1
    assert logged["sbw/l0"] == found.l0


def test_an_sae_shares_all_its_active_latents_with_itself() -> None:
    sae = oracle.make_sae()
    monitor = L0Monitor(X, partner=sae.W_dec)
    assert monitor(sae, None, ActivationScaler())["sbw/agreement"] == 1


def test_it_says_when_l0_leaves_the_interval(caplog: pytest.LogCaptureFixture) -> None:
    """It says so once each time, and not of an SAE that has never been in it."""

    def at(bias: float) -> Any:
        sae = oracle.make_sae(1)
        torch.nn.init.constant_(sae.b_enc, bias)
        return sae

    l0s = {bias: evaluate(at(bias), X).l0 for bias in (-1.0, 0.0, 1.0)}
    assert l0s[-1.0] < l0s[0.0] - 0.5 < l0s[1.0] - 1
    monitor = L0Monitor(X, interval=(l0s[0.0] - 0.1, l0s[0.0] + 0.1))
    for bias in (1.0, 0.0, -1.0, -1.0, 0.0, 1.0):
        monitor(at(bias), None, ActivationScaler())
    low, high = [record.getMessage() for record in caplog.records if "left" in record.msg]
    assert f"{l0s[-1.0]:.4g}" in low
    assert "raise k" in low
    assert f"{l0s[1.0]:.4g}" in high
    assert "lower k" in high


def test_it_says_that_a_coefficient_is_saturated(caplog: pytest.LogCaptureFixture) -> None:
    def said(coefficient: float) -> list[str]:
        caplog.clear()
        monitor = L0Monitor(X)
        for _ in range(4):
            monitor(oracle.make_sae(l0_coefficient=coefficient), None, ActivationScaler())
        return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]

    assert said(0.01) == []
    (once,) = said(1000.0)
    assert "saturated" in once


# sae_lens' own, of token ids that are a tensor already.
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_the_runner_of_sae_lens_takes_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from datasets import Dataset

    caplog.set_level(logging.ERROR, "sae_lens")
    tokens = torch.randint(4, 60, (1_300, 8), generator=torch.Generator().manual_seed(0))
    config: Any = LanguageModelSAERunnerConfig(
        sae=BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=48, k=4),
        model_name=str(make_tiny_model(tmp_path / "model")),
        model_class_name="AutoModelForCausalLM",
        hook_name="model.layers.0",
        dataset_path="given",
        is_dataset_tokenized=True,
        context_size=8,
        training_tokens=40 * 32,
        train_batch_size_tokens=32,
        store_batch_size_prompts=4,
        n_batches_in_buffer=4,
        n_eval_batches=1,
        eval_batch_size_prompts=2,
        checkpoint_path=None,
        output_path=None,
        device="cpu",
        logger=EVERY_10,
    )
    runner = LanguageModelSAETrainingRunner(
        config, override_dataset=Dataset.from_dict({"input_ids": tokens.tolist()})
    )
    held_out: Tensor = torch.randn(256, D_IN, generator=torch.Generator().manual_seed(1))
    monitor: Any = L0Monitor(held_out, also=runner.evaluator)
    runner.evaluator = monitor
    sae = runner.run()
    assert len(monitor.measurements) == 4
    assert monitor.measurements[-1]["l0"] == pytest.approx(evaluate(sae, held_out).l0, rel=1e-6)
