"""Ensembles of SAEs over autograd: `vmap(grad(loss))` on stacked parameters, one batched Adam.

Written plainly, as one would with `torch.func`; one step equals a step of sae_lens' `SAETrainer`
for each SAE. They leave out what does not reach the weights (counts of firings), and BatchTopK's
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

Parameters = dict[str, Tensor]
_SHARED = ("jumprelu_bandwidth", "jumprelu_tanh_scale", "l0_warm_up_steps")


def make_ensemble(saes: Sequence[TrainingSAE[Any]], batch_size: int, lr: float) -> Ensemble:
    """SAEs of one architecture and shape, trained together; changed by `write_back` only.

    Raises:
        ValueError: SAEs that no loss is written for here; the message says why.
    """
    architectures = {sae.cfg.architecture() for sae in saes}
    if architectures not in ({"jumprelu"}, {"batchtopk"}):
        raise ValueError(
            "the vmap ensemble takes SAEs that are all JumpReLU or all BatchTopK, not "
            f"{', '.join(sorted(architectures))}."
        )
    if not all(sae.cfg.apply_b_dec_to_input for sae in saes):
        raise ValueError("the vmap ensemble takes SAEs with apply_b_dec_to_input only.")
    return (JumpReLU if architectures == {"jumprelu"} else BatchTopK)(saes, batch_size, lr)


class Ensemble:
    """What ensembles of every architecture share."""

    def __init__(self, saes: Sequence[TrainingSAE[Any]], batch_size: int, lr: float) -> None:
        self.saes, self.batch_size = saes, batch_size
        stacked, _ = stack_module_state(list(saes))
        # Detached: `grad` asks for gradients itself, and autograd need not record that.
        self.parameters = {name: p.detach() for name, p in stacked.items()}
        self.optimizer = torch.optim.Adam(list(self.parameters.values()), lr=lr, fused=True)
        self.scale, self.n_steps = 1.0, 0

    def of_each(self, field: str) -> Tensor:
        """A field of the SAEs' configs, shape [S]."""
        values = [getattr(sae.cfg, field) for sae in self.saes]
        return torch.tensor(values, device=self.saes[0].W_dec.device)

    def begin_step(self) -> Tensor:
        """What the loss takes beside parameters and batch in the next step, shape [S]."""
        raise NotImplementedError

    def loss(self, p: Parameters, setting: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of one SAE on a batch [B, D], and what `after_step` needs to have seen."""
        raise NotImplementedError

    def after_step(self, seen: Tensor) -> None:
        """Take note of what the losses saw, shape [S]."""

    def estimate_scale(self, batches: Sequence[Tensor]) -> None:
        """From now on scale activations to a mean norm of √D; the weights take it up at the end."""
        mean_norm = torch.stack([batch.norm(dim=-1).mean() for batch in batches]).mean()
        self.scale = math.sqrt(batches[0].shape[-1]) / float(mean_norm)

    def step(self, batch: Tensor) -> None:
        """One step of every SAE on a batch [B, D]."""
        each = vmap(grad(self.loss, has_aux=True), in_dims=(0, 0, None))
        grads, seen = each(self.parameters, self.begin_step(), batch * self.scale)
        # Clip the gradient of each SAE to a norm of 1, taken over all its parameters.
        squares = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()])  # [P, S]
        factor = (1 / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
        for name, parameter in self.parameters.items():
            parameter.grad = grads[name].mul_(factor.view(-1, *[1] * (parameter.ndim - 1)))
        self.optimizer.step()
        self.after_step(seen)
        self.n_steps += 1

    @torch.no_grad()
    def write_back(self) -> None:
        """Give the SAEs their weights, with the scale of the activations folded in."""
        for i, sae in enumerate(self.saes):
            for name, parameter in sae.named_parameters():
                parameter.copy_(self.parameters[name][i])
            sae.fold_activation_norm_scaling_factor(self.scale)


class JumpReLU(Ensemble):
    """MSE and Σ tanh(c·acts·‖W_dec‖), with the straight-through gradient for the threshold.

    Raises:
        ValueError: another sparsity loss, SAEs of unlike bandwidth or scale, or losses that the
            notebook's SAEs do not have.
    """

    def __init__(self, saes: Sequence[TrainingSAE[Any]], batch_size: int, lr: float) -> None:
        super().__init__(saes, batch_size, lr)
        self.cfg = saes[0].cfg
        for cfg in (sae.cfg for sae in saes):
            if (
                cfg.jumprelu_sparsity_loss_mode != "tanh"
                or cfg.pre_act_loss_coefficient is not None
                or cfg.jumprelu_ste_to_input
            ):
                raise ValueError(
                    "the vmap ensemble takes JumpReLU SAEs in tanh mode, without "
                    "pre_act_loss_coefficient and jumprelu_ste_to_input."
                )
            for name in _SHARED:
                if getattr(cfg, name) != getattr(self.cfg, name):
                    raise ValueError(f"the SAEs of a vmap ensemble have to share {name}.")
        self.coefficients = self.of_each("l0_coefficient")

    def begin_step(self) -> Tensor:
        """The coefficient of each SAE, which rises linearly at first."""
        # Below zero the gate would let negative values through.
        self.parameters["threshold"].clamp_(min=0.0)
        n_warm_up = self.cfg.l0_warm_up_steps
        return self.coefficients * (min(1.0, self.n_steps / n_warm_up) if n_warm_up else 1.0)

    def loss(self, p: Parameters, setting: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of one SAE."""
        hidden_pre = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
        acts = Gate.apply(hidden_pre, p["threshold"], self.cfg.jumprelu_bandwidth)
        mse = (acts @ p["W_dec"] + p["b_dec"] - x).square().sum(-1).mean()
        scaled = self.cfg.jumprelu_tanh_scale * acts * p["W_dec"].norm(dim=1)
        return mse + setting * torch.tanh(scaled).sum(-1).mean(), setting


class Gate(torch.autograd.Function):
    """x where it exceeds θ, else 0; θ learns through a rectangle of the given width around it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, threshold: Tensor, width: float) -> Tensor:  # noqa: ARG004
        # Times a mask, here and below: on a CPU a third of the time of torch.where.
        return x * (x > threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        del output
        x, threshold, ctx.width = inputs
        ctx.save_for_backward(x, threshold)

    @staticmethod
    def backward(ctx: Any, grad_acts: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, threshold = ctx.saved_tensors
        is_near = (x - threshold).abs() < ctx.width / 2
        grad_threshold = (grad_acts * is_near).sum(0) * (-threshold / ctx.width)
        return grad_acts * (x > threshold), grad_threshold, None


class BatchTopK(Ensemble):
    """MSE on the int(k·B) largest activations of a batch, ranked with decoder norms multiplied in.

    Raises:
        ValueError: SAEs without `rescale_acts_by_decoder_norm`.
    """

    def __init__(self, saes: Sequence[TrainingSAE[Any]], batch_size: int, lr: float) -> None:
        super().__init__(saes, batch_size, lr)
        if not all(sae.cfg.rescale_acts_by_decoder_norm for sae in saes):
            raise ValueError(
                "the vmap ensemble takes BatchTopK SAEs with rescale_acts_by_decoder_norm only."
            )
        n_kept = [int(sae.cfg.k * batch_size) for sae in saes]
        # One k for all is what vmap can do: the largest, and each SAE takes its own from that.
        self.max_kept = max(n_kept)
        self.ranks = torch.tensor([n - 1 for n in n_kept], device=saes[0].W_dec.device)
        self.threshold_lr = self.of_each("topk_threshold_lr").double()
        self.thresholds = torch.stack([sae.topk_threshold for sae in saes])  # type: ignore[arg-type]

    def begin_step(self) -> Tensor:
        """The rank of the smallest value that is kept."""
        return self.ranks

    def loss(self, p: Parameters, setting: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of one SAE, and the smallest value kept that is positive (∞ if none is)."""
        norms = p["W_dec"].norm(dim=-1)
        ranked = (((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]) * norms).relu()
        largest = ranked.detach().flatten().topk(self.max_kept).values
        acts = ranked * (ranked >= largest.gather(0, setting.unsqueeze(0)))
        mse = ((acts / norms) @ p["W_dec"] + p["b_dec"] - x).square().sum(-1).mean()
        smallest = torch.where(acts > 0, acts.detach(), torch.inf).amin()
        return mse, smallest

    def after_step(self, seen: Tensor) -> None:
        """The thresholds for inference follow the smallest values that were kept."""
        moved = torch.lerp(self.thresholds, seen.double(), self.threshold_lr)
        self.thresholds = torch.where(seen.isfinite(), moved, self.thresholds)

    def write_back(self) -> None:
        """As the base class, and the thresholds for inference."""
        for sae, threshold in zip(self.saes, self.thresholds, strict=True):
            sae.topk_threshold = threshold.clone()
        super().write_back()
