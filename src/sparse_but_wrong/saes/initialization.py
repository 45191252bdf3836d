"""Start an SAE from the truth: the ground-truth SAE of a toy world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sparse_but_wrong.worlds.toy_model import ToyModel

if TYPE_CHECKING:
    import sae_lens

# Gated SAEs have two in place of b_enc.
_LATENTS_BIASES = ("b_enc", "b_gate", "b_mag")


@torch.no_grad()
def init_sae_to_match_model(
    sae: sae_lens.SAE[Any],
    toy_model: ToyModel,
    noise_level: float | int = 0.0,
    feature_ordering: Sequence[int] | Int[Tensor, " d_sae"] | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Set an SAE's decoder rows and encoder columns to the true feature directions, in place.

    The first min(F, d_sae) latents take a feature each and their biases become 0, as does the
    decoder's; thresholds stay as they are. Further latents keep their weights and biases. The SAE's
    parameters stay the same objects, so an optimizer that holds them keeps working.

    Args:
        sae: with d_in the width of the toy model's activations.
        toy_model: where the directions come from.
        noise_level: standard deviation of Gaussian noise added to every weight that is set; drawn
            on the CPU for the decoder, then for the encoder.
        feature_ordering: the feature that each of these latents takes, min(F, d_sae) different
            indices; 0, 1, 2, … if left out.
        generator: for the noise, on the CPU; torch's global one if left out.
    Raises:
        ValueError: widths that disagree, a `feature_ordering` of another length, a feature that is
            repeated or does not exist, or a negative noise level.
    """
    true_directions = toy_model.embed.weight.detach().cpu().T
    num_feats, hidden_dim = true_directions.shape
    d_sae, d_in = sae.W_dec.shape
    if d_in != hidden_dim:
        raise ValueError(
            f"the SAE reads activations of width {d_in}, but the toy model makes them {hidden_dim} "
            f"wide; make the SAE with d_in={hidden_dim}."
        )
    if not 0 <= noise_level < float("inf"):
        raise ValueError(f"noise_level is {noise_level}; a standard deviation is 0 or more.")
    ordering = _ordering(feature_ordering, d_sae, num_feats)
    directions, filled = true_directions[ordering], slice(len(ordering))
    _make_contiguous(sae.W_dec)
    _make_contiguous(sae.W_enc)
    sae.W_dec[filled] = _with_noise(directions, noise_level, generator).to(sae.W_dec)
    sae.W_enc[:, filled] = _with_noise(directions, noise_level, generator).T.to(sae.W_enc)
    sae.b_dec.zero_()
    for name in _LATENTS_BIASES:
        bias = getattr(sae, name, None)
        if isinstance(bias, nn.Parameter):
            bias[filled] = 0


def _ordering(
    feature_ordering: Sequence[int] | Tensor | None, d_sae: int, num_feats: int
) -> list[int]:
    filled = min(d_sae, num_feats)
    if feature_ordering is None:
        return list(range(filled))
    ordering = [int(feature) for feature in feature_ordering]
    if len(ordering) != filled:
        raise ValueError(
            f"feature_ordering names {len(ordering)} features, but the SAE has {d_sae} latents and "
            f"the toy model {num_feats} features; name {filled} of them."
        )
    for latent, feature in enumerate(ordering):
        if not 0 <= feature < num_feats or feature in ordering[:latent]:
            raise ValueError(
                f"feature_ordering[{latent}] is {feature}; name features from 0 to "
                f"{num_feats - 1}, each once."
            )
    return ordering


def _with_noise(
    directions: Tensor, noise_level: float | int, generator: torch.Generator | None
) -> Tensor:
    if noise_level == 0:
        return directions
    return directions + noise_level * torch.randn(directions.shape, generator=generator)


def _make_contiguous(parameter: nn.Parameter) -> None:
    """Writing into a parameter keeps its strides, and safetensors refuses to save others."""
    if not parameter.is_contiguous():
        parameter.data = parameter.data.contiguous()
