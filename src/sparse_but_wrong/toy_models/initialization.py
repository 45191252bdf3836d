"""Start an SAE from the truth: the ground-truth SAE of a toy world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sparse_but_wrong.toy_models.toy_model import ToyModel

if TYPE_CHECKING:
    import sae_lens

# Gated SAEs have two encoder biases in place of b_enc.
_BIASES = ("b_enc", "b_gate", "b_mag", "b_dec")


@torch.no_grad()
def init_sae_to_match_model(
    sae: sae_lens.SAE[Any],
    toy_model: ToyModel,
    noise_level: float | int = 0.0,
    feature_ordering: Sequence[int] | Int[Tensor, " d_sae"] | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Set an SAE's decoder rows and encoder columns to the true feature directions, in place.

    Biases become 0; thresholds stay as they are. The SAE's parameters stay the same objects, so an
    optimizer that holds them keeps working.

    Args:
        sae: with d_in the width of the toy model's activations.
        toy_model: where the directions come from.
        noise_level: standard deviation of Gaussian noise added to every weight; drawn on the CPU
            for the decoder, then for the encoder.
        feature_ordering: the feature that each latent takes, d_sae different indices; 0, 1, 2, …
            if left out.
        generator: for the noise, on the CPU; torch's global one if left out.
    Raises:
        ValueError: widths that disagree, a number of latents that is neither that of the features
            nor that of `feature_ordering`, a feature that is repeated or does not exist, or a
            negative noise level.
    """
    true_directions = toy_model.embed.weight.detach().cpu().T
    num_feats, hidden_dim = true_directions.shape
    d_sae, d_in = sae.W_dec.shape
    if d_in != hidden_dim:
        raise ValueError(
            f"The SAE reads activations of width {d_in} (d_in) but the toy model makes them "
            f"{hidden_dim} wide: make the SAE with d_in={hidden_dim}."
        )
    if not 0 <= noise_level < float("inf"):
        raise ValueError(f"noise_level is {noise_level}; a standard deviation is 0 or more.")
    directions = true_directions[_ordering(feature_ordering, d_sae, num_feats)]
    _write(sae.W_dec, _with_noise(directions, noise_level, generator))
    _write(sae.W_enc, _with_noise(directions, noise_level, generator).T)
    for name in _BIASES:
        bias = getattr(sae, name, None)
        if isinstance(bias, nn.Parameter):
            bias.zero_()


def _ordering(
    feature_ordering: Sequence[int] | Tensor | None, d_sae: int, num_feats: int
) -> list[int]:
    if feature_ordering is None:
        if d_sae != num_feats:
            raise ValueError(
                f"The SAE has {d_sae} latents but the toy model {num_feats} features. Make the SAE "
                f"with d_sae={num_feats}, or say which features its latents take with "
                "feature_ordering."
            )
        return list(range(num_feats))
    ordering = [int(feature) for feature in feature_ordering]
    if len(ordering) != d_sae:
        raise ValueError(
            f"feature_ordering names {len(ordering)} features but the SAE has {d_sae} latents: "
            "give one feature per latent."
        )
    seen: set[int] = set()
    for latent, feature in enumerate(ordering):
        if not 0 <= feature < num_feats:
            raise ValueError(
                f"feature_ordering[{latent}] is {feature}, but the features are numbered 0 to "
                f"{num_feats - 1}."
            )
        if feature in seen:
            raise ValueError(
                f"feature_ordering[{latent}] is {feature}, which an earlier latent already takes: "
                "name each feature once."
            )
        seen.add(feature)
    return ordering


def _with_noise(
    directions: Tensor, noise_level: float | int, generator: torch.Generator | None
) -> Tensor:
    if noise_level == 0:
        return directions
    return directions + noise_level * torch.randn(directions.shape, generator=generator)


def _write(parameter: nn.Parameter, values: Tensor) -> None:
    if not parameter.is_contiguous():
        # copy_ would keep the strides, and safetensors refuses to save such a parameter.
        parameter.data = torch.empty_like(parameter, memory_format=torch.contiguous_format)
    parameter.copy_(values)
