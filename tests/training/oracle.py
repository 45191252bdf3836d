"""The slow truth: sae_lens' own trainer, one SAE at a time, on recorded batches."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, TrainingSAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from sparse_but_wrong.training.options import TrainOptions

D_IN, D_SAE, BATCH = 12, 9, 64


def recorded_batches(n: int, seed: int = 0, batch: int = BATCH, d_in: int = D_IN) -> list[Tensor]:
    """Sparse non-negative combinations of random directions, off-centre, of no special scale."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(D_SAE, d_in, generator=g), dim=1)
    batches = []
    for _ in range(n):
        fires = (torch.rand(batch, D_SAE, generator=g) < 0.3).float()
        size = (1 + 0.3 * torch.randn(batch, D_SAE, generator=g)).relu()
        batches.append(1.7 * (fires * size) @ directions + 0.2)
    return batches


def make_sae(seed: int = 0, **changes: Any) -> JumpReLUTrainingSAE:
    """A small JumpReLU SAE whose weights, biases included, follow from a seed."""
    settings: dict[str, Any] = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "l0_coefficient": 0.3,
        "jumprelu_bandwidth": 2.0,
        "jumprelu_init_threshold": 0.1,
        "jumprelu_sparsity_loss_mode": "tanh",
    }
    return seeded(JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**{**settings, **changes})), seed)


AnySAE = TypeVar("AnySAE", bound=TrainingSAE[Any])


def seeded(sae: AnySAE, seed: int) -> AnySAE:
    """The SAE, with weights and biases that follow from a seed."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            parameter = sae.get_parameter(name)
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.2)
    return sae


def train_with_sae_lens(
    sae: AnySAE,
    batches: Sequence[Tensor],
    options: TrainOptions,
    before_batch: Callable[[AnySAE, int], None] | None = None,
) -> AnySAE:
    """A copy of an SAE, trained by sae_lens' `SAETrainer.fit`.

    Args:
        before_batch: called with the copy and the number of each batch before it is drawn.
    """
    sae = copy.deepcopy(sae)

    def drawn() -> Iterator[Tensor]:
        for i, batch in enumerate(batches):
            if before_batch is not None:
                before_batch(sae, i)
            yield batch

    config = SAETrainerConfig(
        total_training_samples=options.total_training_samples,
        train_batch_size_samples=options.train_batch_size_samples,
        lr=options.lr,
        lr_end=options.lr / 10 if options.lr_end is None else options.lr_end,
        lr_scheduler_name=options.lr_scheduler_name,
        lr_warm_up_steps=options.lr_warm_up_steps,
        lr_decay_steps=options.lr_decay_steps,
        n_restart_cycles=options.n_restart_cycles,
        adam_beta1=options.adam_beta1,
        adam_beta2=options.adam_beta2,
        dead_feature_window=options.dead_feature_window,
        feature_sampling_window=options.feature_sampling_window,
        n_batches_for_norm_estimate=options.n_batches_for_norm_estimate,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, sae, drawn())
    with contextlib.redirect_stderr(io.StringIO()):
        trainer.fit()
    return sae


def parameters(sae: TrainingSAE[Any]) -> dict[str, Tensor]:
    """Detached copies of an SAE's parameters."""
    return {name: p.detach().clone() for name, p in sae.named_parameters()}


def options_for(n_steps: int, **changes: Any) -> TrainOptions:
    """Options of a short run without a progress bar."""
    settings: dict[str, Any] = {
        "total_training_samples": n_steps * BATCH,
        "train_batch_size_samples": BATCH,
        "lr": 1e-3,
        "n_batches_for_norm_estimate": 10,
        "progress": False,
        "threads": 2,
    }
    return TrainOptions(**{**settings, **changes})


def endless(batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """The batches over and over."""
    while True:
        yield from batches
