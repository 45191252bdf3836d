"""The losses of one SAE, written plainly for `torch.func`, and what surrounds them in a step.

B batch, D d_in, H latent; [S] is one value for each SAE of the ensemble.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from sae_lens import TrainingSAE
from torch import Tensor

Parameters = dict[str, Tensor]


class Rule(Protocol):
    """How the SAEs of one architecture are trained."""

    def settings(self, n_steps: int) -> Tensor:
        """What the loss takes beside parameters and batch, after so many steps, shape [S]."""
        ...

    def before_step(self, parameters: Parameters) -> None:
        """Change stacked parameters, in place."""
        ...

    def loss(self, p: Parameters, setting: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of one SAE on a batch [B, D], and what `after_step` needs to have seen."""
        ...

    def after_step(self, seen: Tensor) -> None:
        """Take note of what the losses saw, shape [S]."""
        ...

    def write_back(self, saes: Sequence[TrainingSAE[Any]]) -> None:
        """Give the SAEs what they hold beside parameters."""
        ...


def make_rule(saes: Sequence[TrainingSAE[Any]], batch_size: int) -> Rule:
    """The rule for all SAEs.

    Raises:
        ValueError: SAEs for which no rule is written here; the message says why.
    """
    for sae in saes:
        if not sae.cfg.apply_b_dec_to_input:
            raise ValueError("the vmap ensemble takes SAEs with apply_b_dec_to_input only.")
    architectures = {sae.cfg.architecture() for sae in saes}
    if architectures == {"jumprelu"}:
        return JumpReLURule(saes)
    if architectures == {"batchtopk"}:
        return BatchTopKRule(saes, batch_size)
    raise ValueError(
        "the vmap ensemble takes SAEs that are all JumpReLU or all BatchTopK, not "
        f"{', '.join(sorted(architectures))}."
    )


class JumpReLURule:
    """MSE and Σ tanh(c·acts·‖W_dec‖), with the straight-through gradient for the threshold.

    Raises:
        ValueError: another sparsity loss, SAEs of unlike bandwidth or scale, or losses that the
            notebook's SAEs do not have.
    """

    def __init__(self, saes: Sequence[TrainingSAE[Any]]) -> None:
        first = saes[0].cfg
        for sae in saes:
            cfg = sae.cfg
            if (
                cfg.jumprelu_sparsity_loss_mode != "tanh"
                or cfg.pre_act_loss_coefficient is not None
                or cfg.jumprelu_ste_to_input
            ):
                raise ValueError(
                    "the vmap ensemble takes JumpReLU SAEs in tanh mode, without "
                    "pre_act_loss_coefficient and jumprelu_ste_to_input."
                )
            for name in ("jumprelu_bandwidth", "jumprelu_tanh_scale", "l0_warm_up_steps"):
                if getattr(cfg, name) != getattr(first, name):
                    raise ValueError(f"the SAEs of a vmap ensemble have to share {name}.")
        self.bandwidth: float = first.jumprelu_bandwidth
        self.tanh_scale: float = first.jumprelu_tanh_scale
        self.warm_up_steps: int = first.l0_warm_up_steps
        self.coefficients = torch.tensor(
            [sae.cfg.l0_coefficient for sae in saes], device=saes[0].W_dec.device
        )

    def settings(self, n_steps: int) -> Tensor:
        """The coefficient of each SAE, which rises linearly at first."""
        if n_steps >= self.warm_up_steps:
            return self.coefficients
        return self.coefficients * (n_steps / self.warm_up_steps)

    def before_step(self, parameters: Parameters) -> None:
        """Below zero the gate would let negative values through."""
        parameters["threshold"].clamp_(min=0.0)

    def loss(self, p: Parameters, setting: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of one SAE."""
        hidden_pre = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
        acts = Gate.apply(hidden_pre, p["threshold"], self.bandwidth)
        mse = (acts @ p["W_dec"] + p["b_dec"] - x).square().sum(-1).mean()
        l0 = torch.tanh(self.tanh_scale * acts * p["W_dec"].norm(dim=1)).sum(-1).mean()
        return mse + setting * l0, setting

    def after_step(self, seen: Tensor) -> None:
        """Nothing."""

    def write_back(self, saes: Sequence[TrainingSAE[Any]]) -> None:
        """Nothing."""


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


class BatchTopKRule:
    """MSE on the int(k·B) largest activations of a batch, ranked with decoder norms multiplied in.

    The loss for dead latents is left out: it is zero until a latent has not fired for longer than
    the trainer's `dead_feature_window`.

    Raises:
        ValueError: SAEs without `rescale_acts_by_decoder_norm`.
    """

    def __init__(self, saes: Sequence[TrainingSAE[Any]], batch_size: int) -> None:
        if not all(sae.cfg.rescale_acts_by_decoder_norm for sae in saes):
            raise ValueError(
                "the vmap ensemble takes BatchTopK SAEs with rescale_acts_by_decoder_norm only."
            )
        n_kept = [int(sae.cfg.k * batch_size) for sae in saes]
        # One k for all is what vmap can do: the largest, and each SAE takes its own from that.
        self.max_kept = max(n_kept)
        device = saes[0].W_dec.device
        self.ranks = torch.tensor([n - 1 for n in n_kept], device=device)
        self.threshold_lr = torch.tensor([sae.cfg.topk_threshold_lr for sae in saes]).to(device)
        self.thresholds = torch.stack([sae.topk_threshold for sae in saes])  # type: ignore[arg-type]

    def settings(self, n_steps: int) -> Tensor:  # noqa: ARG002
        """The rank of the smallest value that is kept."""
        return self.ranks

    def before_step(self, parameters: Parameters) -> None:
        """Nothing."""

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
        moved = torch.lerp(self.thresholds, seen.double(), self.threshold_lr.double())
        self.thresholds = torch.where(seen.isfinite(), moved, self.thresholds)

    def write_back(self, saes: Sequence[TrainingSAE[Any]]) -> None:
        """The thresholds for inference."""
        for sae, threshold in zip(saes, self.thresholds, strict=True):
            sae.topk_threshold = threshold.clone()
