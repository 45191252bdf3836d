"""Where an SAE's decoder works, in the units of the activations that it is given.

An SAE may normalise each sample itself, while it runs (`normalize_activations` of "layer_norm" or
"constant_norm_rescale"). Its weights then belong to normalised samples, and its reconstruction is
taken back to the sample's own units at the end. What is measured is measured in those units: a
latent's direction is the one that it adds to a reconstruction, and a sample is compared with what
the SAE gives for it when no latent is active, which is `b_dec` taken back. For an SAE that does not
normalise, these are the decoder row and `b_dec` themselves. One function written both ways thus has
one result.

Axes: B samples, D d_in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    import sae_lens


class Frame(NamedTuple):
    """Samples, and where the decoder's rows start from: projections are (samples − bias)·row."""

    samples: Float[Tensor, "B D"]
    bias: Float[Tensor, " D"]
    unit: Float[Tensor, "B 1"] | None
    """What 1 in the SAE's own space is in the units of each sample; None where it is 1."""


def decoder_frame(sae: sae_lens.SAE[Any], samples: Float[Tensor, "B D"]) -> Frame:
    """The frame in which projections on an SAE's decoder rows are measured.

    Args:
        sae: any sae_lens SAE.
        samples: as it is given them.
    Raises:
        ValueError: as `check_readable`.
    """
    check_readable(sae, samples)
    if not _normalises(sae, samples):
        return Frame(samples, sae.b_dec, None)
    own = samples.to(sae.b_dec.device, torch.promote_types(samples.dtype, torch.float32))
    nothing = _taken_back(sae, own, torch.zeros_like)
    unit = _taken_back(sae, own, torch.ones_like) - nothing
    bias = _taken_back(sae, own, sae.b_dec.to(own.dtype).expand_as)
    # Zeros, and NaN where the bias is not finite.
    return Frame(own - bias, sae.b_dec * 0, unit[:, :1])


def check_readable(sae: sae_lens.SAE[Any], samples: Float[Tensor, "B D"], first: int = 0) -> None:
    """Refuse samples that an SAE cannot bring into the space in which it works.

    Args:
        sae: any sae_lens SAE.
        samples: as it is given them.
        first: number of the first of them, for the message.
    Raises:
        ValueError: the SAE expects the heads of a hook_z apart, or its own normalisation gives no
            finite number for a sample, as a rescaling to one norm does for a sample of zeros; the
            message names the first such sample.
    """
    if sae.hook_z_reshaping_mode:
        raise ValueError(
            "the SAE reads activations head by head, as [..., n_heads, d_head], and here they are "
            "flat; call sae.turn_off_forward_pass_hook_z_reshaping() first."
        )
    if not _normalises(sae, samples):
        return
    own = samples.to(sae.b_dec.device, sae.b_dec.dtype)
    # There and back again: a norm of 0, or one that overflows, shows one way or the other.
    there_and_back = _taken_back(sae, own, lambda normalised: normalised)
    bad = (~torch.isfinite(there_and_back)).any(1).nonzero()
    if len(bad):
        sample = int(bad[0])
        norm = torch.linalg.vector_norm(samples[sample].double()).item()
        raise ValueError(
            f"sample {first + sample} has the norm {norm:g}, which the SAE's own normalisation "
            f"({sae.cfg.normalize_activations}) cannot bring to a finite number, and so "
            f"{len(bad)} of {len(samples)} samples; leave them out"
            f"{' (--exclude-outliers does)' if norm == 0 else ''}."
        )


def _normalises(sae: sae_lens.SAE[Any], samples: Tensor) -> bool:
    # The config may say otherwise: folding a factor into weights rewrites it, not what is run.
    few = samples[:1].to(sae.b_dec.device, sae.b_dec.dtype)
    normalised = sae.run_time_activation_norm_fn_in(few)
    if normalised is few:
        return False
    sae.run_time_activation_norm_fn_out(normalised)  # forgets the sample
    return True


def _taken_back(
    sae: sae_lens.SAE[Any], samples: Float[Tensor, "B D"], point: Callable[[Tensor], Tensor]
) -> Float[Tensor, "B D"]:
    """A point of the SAE's own space, which may depend on the sample, in each sample's units."""
    return sae.run_time_activation_norm_fn_out(point(sae.run_time_activation_norm_fn_in(samples)))
