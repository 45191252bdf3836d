"""Small SAEs of any architecture, whose weights follow from a seed."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import TrainingSAE
from sae_lens.registry import get_sae_training_class

from tests.training import oracle


def make_sae(architecture: str, seed: int = 0, **config: Any) -> TrainingSAE[Any]:
    """An SAE of a registered architecture; no parameter is 0, and no norm is special."""
    sae_class, config_class = get_sae_training_class(architecture)
    sae = sae_class(config_class(**{"d_in": oracle.D_IN, "d_sae": oracle.D_SAE, **config}))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.2)
    return sae
