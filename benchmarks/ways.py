"""Four ways to train the same SAEs. Each trains them in place for a number of steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sae_lens import TrainingSAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from benchmarks.ensemble import make_ensemble
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.options import TrainOptions

LR = 3e-4
SAEs = list[TrainingSAE[Any]]


def one_by_one(saes: SAEs, n_steps: int, stream: Iterator[Tensor], batch_size: int) -> None:
    """The notebook's way: `SAETrainer.fit` for each SAE in turn."""
    for sae in saes:
        SAETrainer(_lens_config(sae, n_steps, batch_size), sae, stream).fit()


def side_by_side(saes: SAEs, n_steps: int, stream: Iterator[Tensor], batch_size: int) -> None:
    """sae_lens' `MultiSAETrainer`: all SAEs on one stream."""
    names = [str(i) for i in range(len(saes))]
    MultiSAETrainer(
        _lens_config(saes[0], n_steps, batch_size),
        dict(zip(names, saes, strict=True)),
        dict.fromkeys(names, "hook"),
        ({"hook": batch} for batch in stream),
    ).fit()


def vmap_ensemble(saes: SAEs, n_steps: int, stream: Iterator[Tensor], batch_size: int) -> None:
    """The published technique for ensembles: `torch.func.vmap` over the gradient of one SAE."""
    ensemble = make_ensemble(saes, batch_size, LR)
    ensemble.estimate_scale([next(stream)])
    for _ in range(n_steps):
        ensemble.step(next(stream))
    ensemble.write_back()


def engine(saes: SAEs, n_steps: int, stream: Iterator[Tensor], batch_size: int) -> None:
    """This package."""
    options = TrainOptions(
        total_training_samples=n_steps * batch_size,
        train_batch_size_samples=batch_size,
        lr=LR,
        n_batches_for_norm_estimate=1,
        progress=False,
    )
    train_saes(saes, stream, options)


def _lens_config(sae: TrainingSAE[Any], n_steps: int, batch_size: int) -> SAETrainerConfig:
    return SAETrainerConfig(
        total_training_samples=n_steps * batch_size,
        train_batch_size_samples=batch_size,
        lr=LR,
        lr_end=LR,
        device=str(sae.W_dec.device),
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=1,
    )
