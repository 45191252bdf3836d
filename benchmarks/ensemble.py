"""An ensemble of SAEs over autograd: `vmap(grad(loss))` on stacked parameters, one batched Adam.

Written plainly, as one would with `torch.func`; one step equals a step of sae_lens' `SAETrainer`
for each SAE. It leaves out what does not reach the weights (counts of firings), and BatchTopK's
loss for dead latents, which is zero until a latent has not fired for a thousand steps.

Axes: S SAE, B batch, D d_in, H latent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from sae_lens import TrainingSAE
from torch import Tensor
from torch.func import grad, stack_module_state, vmap

from benchmarks.ensemble_losses import Parameters, make_rule


class Ensemble:
    """SAEs of one architecture and shape, trained together.

    Args:
        saes: JumpReLU (`tanh` mode) or BatchTopK; changed by `write_back` only.
        batch_size: samples per batch.
        lr: Adam's learning rate.
    Raises:
        ValueError: SAEs that no rule in `ensemble_losses` is for.
    """

    def __init__(self, saes: Sequence[TrainingSAE[Any]], batch_size: int, lr: float) -> None:
        self.saes = saes
        self.rule = make_rule(saes, batch_size)
        stacked, _ = stack_module_state(list(saes))
        # Detached: `grad` asks for gradients itself, and autograd need not record that.
        self.parameters = {name: p.detach() for name, p in stacked.items()}
        self.optimizer = torch.optim.Adam(list(self.parameters.values()), lr=lr, fused=True)
        self.scale = 1.0
        self.n_steps = 0

    def estimate_scale(self, batches: Sequence[Tensor]) -> None:
        """From now on scale activations to a mean norm of √D; the weights take it up at the end."""
        mean_norm = torch.stack([batch.norm(dim=-1).mean() for batch in batches]).mean()
        self.scale = math.sqrt(batches[0].shape[-1]) / float(mean_norm)

    def step(self, batch: Tensor) -> None:
        """One step of every SAE on a batch [B, D]."""
        self.rule.before_step(self.parameters)
        settings = self.rule.settings(self.n_steps)
        grads, seen = vmap(grad(self.rule.loss, has_aux=True), in_dims=(0, 0, None))(
            self.parameters, settings, batch * self.scale
        )
        _clip_each(grads)
        for name, parameter in self.parameters.items():
            parameter.grad = grads[name]
        self.optimizer.step()
        self.rule.after_step(seen)
        self.n_steps += 1

    @torch.no_grad()
    def write_back(self) -> None:
        """Give the SAEs their weights, with the scale of the activations folded in."""
        for i, sae in enumerate(self.saes):
            for name, parameter in sae.named_parameters():
                parameter.copy_(self.parameters[name][i])
        self.rule.write_back(self.saes)
        for sae in self.saes:
            sae.fold_activation_norm_scaling_factor(self.scale)


def _clip_each(grads: Parameters, max_norm: float = 1.0) -> None:
    """Clip the gradient of each SAE, in place, to a norm that is taken over all its parameters."""
    squares = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()])  # [P, S]
    factor = (max_norm / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    for g in grads.values():
        g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))
