"""SAEs with weights set by hand, and evaluations of small ones on a stream."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from torch import Tensor

from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.metrics.evaluation import Evaluations


def make_sae(W_dec: Tensor, normalize: Any = "none", **others: Tensor) -> JumpReLUSAE:
    """An inference JumpReLU SAE around a decoder; the encoder is tied unless given."""
    d_sae, d_in = W_dec.shape
    dtype = str(W_dec.dtype).removeprefix("torch.")
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in, d_sae, dtype, normalize_activations=normalize))
    for name, value in {"W_dec": W_dec, "W_enc": W_dec.T, **others}.items():
        getattr(sae, name).data.copy_(value)
    return sae


def evaluated(*, broken: bool = False) -> Evaluations:
    """Two SAEs on three batches: `wide`, 16 latents of which 4 are dead, and `narrow`, 5 latents.

    Args:
        broken: let the narrow one be one that diverged.
    """
    generator = torch.Generator().manual_seed(0)
    wide, narrow = (make_sae(torch.randn(d_sae, 6, generator=generator)) for d_sae in (16, 5))
    wide.W_enc.data[:, :4] = 0.0
    if broken:
        narrow.W_dec.data.fill_(torch.nan)
    batches = torch.randn(300, 6, generator=generator).split(100)
    return evaluate({"wide": wide, "narrow": narrow}, batches)
