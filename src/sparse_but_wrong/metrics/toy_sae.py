"""A quick look at an SAE trained on a toy model."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sparse_but_wrong.metrics.reconstruction import ReconstructionTotals
from sparse_but_wrong.metrics.samples import check_activations, chunks

if TYPE_CHECKING:
    import sae_lens


@dataclass(frozen=True)
class EvalResult:
    """How sparse an SAE is next to the world it was trained on."""

    true_l0: float
    """Features that fire per sample, on average."""
    sae_l0: float
    """Latents with a positive activation per sample, on average."""
    dead_features: int
    """Latents that were above zero on no sample."""
    shrinkage: float
    """Mean of ‖reconstruction‖ / ‖input‖ over the samples whose input is not zero."""


@runtime_checkable
class _HasEmbedding(Protocol):
    @property
    def embed(self) -> nn.Module: ...


@torch.no_grad()
def eval_sae(
    sae: sae_lens.SAE[Any],
    toy_model: nn.Module | _HasEmbedding,
    generate_batch: Callable[[int], Tensor],
    num_samples: int = 100_000,
) -> EvalResult:
    """Draw fresh samples and measure the sparsity and shrinkage of an SAE on them.

    **Changes the SAE**: decoder norms are folded into the encoder in place first
    (`sae.fold_W_dec_norm()`), which keeps what the SAE computes. Where it would not, because a TopK
    SAE ranks its latents without their norms, nothing is folded. Samples are drawn anew, so two
    calls differ by sampling noise: to compare SAEs, use `sparse_but_wrong.evaluate` on samples
    drawn once. That evaluates the thresholded export of a training BatchTopK SAE; here it picks its
    k per batch.

    Args:
        sae: any sae_lens SAE.
        toy_model: a `ToyModel`, any module that embeds features when called, or an object whose
            `embed` is one.
        generate_batch: called once with the number of samples; returns feature magnitudes of
            shape [num_samples, n_features].
        num_samples: how many samples to draw.
    Raises:
        ValueError: `num_samples` below 1; a batch of another shape, or with values that are not
            finite; a toy model whose activations the SAE cannot read.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}: draw at least one sample.")
    embed = toy_model if isinstance(toy_model, nn.Module) else toy_model.embed
    features = generate_batch(num_samples)
    # What no linear layer takes is left to the module itself to refuse.
    n_features = getattr(getattr(toy_model, "embed", embed), "in_features", features.shape[-1])
    if features.shape != (num_samples, n_features):
        raise ValueError(
            f"generate_batch({num_samples}) returned shape {list(features.shape)}, but the toy "
            f"model embeds features of shape [{num_samples}, {n_features}]."
        )
    weight = next(embed.parameters(), features)
    activations = embed(features.to(weight.device, weight.dtype))
    check_activations(activations, sae.cfg.d_in)
    # Only now that nothing is left to refuse. sae_lens refuses where folding changes the ranking.
    with suppress(NotImplementedError):
        sae.fold_W_dec_norm()
    totals, diverged = ReconstructionTotals(), False
    fired = torch.zeros(len(sae.W_dec), dtype=torch.int64)
    for chunk in chunks(activations, sae):
        latent_acts = sae.encode(chunk)
        positive = latent_acts.to_dense().relu()
        fired += (positive != 0).sum(0).cpu()
        diverged |= bool(positive.isnan().any())
        totals.add(chunk, sae.decode(latent_acts))
    return EvalResult(
        true_l0=torch.count_nonzero(features > 0).item() / num_samples,
        sae_l0=math.nan if diverged else fired.sum().item() / num_samples,
        dead_features=int((fired == 0).sum()),
        shrinkage=totals.result().shrinkage,
    )
