"""Train one SAE on a toy model: the published call, served by the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparse_but_wrong.tensors import DEFAULT_DEVICE
from sparse_but_wrong.training.loop import train_saes
from sparse_but_wrong.training.options import TrainOptions
from sparse_but_wrong.worlds.world import embedded

if TYPE_CHECKING:
    import sae_lens


def train_toy_sae(
    sae: sae_lens.TrainingSAE[Any],
    toy_model: nn.Module,
    activations_batch_provider: Callable[[int], Tensor],
    lr: float = 3e-4,
    training_tokens: int = 15_000_000,
    lr_warm_up_steps: int = 0,
    lr_decay_steps: int = 0,
    device: torch.device | str = DEFAULT_DEVICE,
    train_batch_size_tokens: int = 1024,
) -> None:
    """Train an SAE, in place, on a toy model's activations; `train_saes` trains several faster.

    Args:
        sae: a sae_lens training SAE with d_in equal to the toy model's width.
        toy_model: a `ToyModel`, or any module that embeds features when called.
        activations_batch_provider: called with a number of samples, gives features [batch, F].
        lr: Adam's learning rate, held constant between warm-up and decay.
        training_tokens: samples to train on.
        lr_warm_up_steps: steps over which the learning rate rises linearly.
        lr_decay_steps: steps at the end over which it falls linearly to 0.
        device: where to train; the SAE and the toy model are moved there.
        train_batch_size_tokens: samples per batch.
    Raises:
        ValueError: as `train_saes`, which also refuses activations of another width than d_in.
    """
    sae.to(device)
    toy_model.to(device)
    options = TrainOptions(
        total_training_samples=training_tokens,
        train_batch_size_samples=train_batch_size_tokens,
        lr=lr,
        lr_warm_up_steps=lr_warm_up_steps,
        lr_decay_steps=lr_decay_steps,
    )
    source = embedded(toy_model, activations_batch_provider, train_batch_size_tokens)
    train_saes([sae], source, options)
