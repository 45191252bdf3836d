"""Start an SAE from the truth: the ground-truth SAE of a toy world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from sparse_but_wrong.worlds.toy_model import ToyModel

if TYPE_CHECKING:
    import sae_lens


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
        noise_level: standard deviation of Gaussian noise added to every weight that is set; drawn
            on the CPU for the decoder, then for the encoder.
        feature_ordering: the feature that each of these latents takes, min(F, d_sae) different
            indices; 0, 1, 2, … if left out.
        generator: for the noise, on the CPU; torch's global one if left out.
    Raises:
        ValueError: widths that disagree, a `feature_ordering` of another length, a feature that is
            repeated or does not exist, or a negative noise level.
    """
    directions = toy_model.embed.weight.detach().cpu().T
    (n_features, width), (d_sae, d_in) = directions.shape, sae.W_dec.shape
    if d_in != width:
        raise ValueError(
            f"the SAE reads activations of width {d_in}, but the toy model makes them {width} "
            f"wide; make the SAE with d_in={width}."
        )
    if not 0 <= noise_level < float("inf"):
        raise ValueError(f"noise_level is {noise_level}; a standard deviation is 0 or more.")
    n = min(d_sae, n_features)
    ordering = [int(f) for f in (range(n) if feature_ordering is None else feature_ordering)]
    if len(ordering) != n:
        raise ValueError(
            f"feature_ordering names {len(ordering)} features, but the SAE has {d_sae} latents and "
            f"the toy model {n_features} features; name {n} of them."
        )
    for latent, feature in enumerate(ordering):
        if not 0 <= feature < n_features or feature in ordering[:latent]:
            raise ValueError(
                f"feature_ordering[{latent}] is {feature}; name features from 0 to "
                f"{n_features - 1}, each once."
            )

    def drawn() -> Tensor:
        chosen = directions[ordering]
        if noise_level:
            chosen = chosen + noise_level * torch.randn(chosen.shape, generator=generator)
        return chosen

    for parameter in (sae.W_dec, sae.W_enc):
        # Writing into a parameter keeps its strides, and safetensors refuses to save others.
        parameter.data = parameter.data.contiguous()
    sae.W_dec[:n] = drawn().to(sae.W_dec)
    sae.W_enc[:, :n] = drawn().T.to(sae.W_enc)
    sae.b_dec.zero_()
    for name in ("b_enc", "b_gate", "b_mag"):  # gated SAEs have two in place of b_enc
        if (bias := getattr(sae, name, None)) is not None:
            bias[:n] = 0
