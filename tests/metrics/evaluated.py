"""Evaluations of small SAEs on a stream."""

from __future__ import annotations

import torch

from sparse_but_wrong.metrics.evaluate import evaluate
from sparse_but_wrong.metrics.evaluation import Evaluations


def evaluated(*, broken: bool = False) -> Evaluations:
    """Two SAEs on three batches: `wide`, 16 latents of which 4 are dead, and `narrow`, 5 latents.

    Args:
        broken: let the narrow one be one that diverged.
    """
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    generator = torch.Generator().manual_seed(0)
    saes = []
    for d_sae, n_dead in ((16, 4), (5, 0)):
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=6, d_sae=d_sae))
        rows = torch.randn(d_sae, 6, generator=generator)
        sae.W_dec.data.copy_(rows)
        sae.W_enc.data.copy_(rows.T)
        sae.W_enc.data[:, :n_dead] = 0.0
        saes.append(sae)
    if broken:
        saes[1].W_dec.data.fill_(torch.nan)
    batches = torch.randn(300, 6, generator=generator).split(100)
    return evaluate(dict(zip(("wide", "narrow"), saes, strict=True)), batches)
