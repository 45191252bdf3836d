"""The published import path of starting an SAE from the true features."""

from sparse_but_wrong.saes.initialization import (
    init_sae_to_match_model,
)

__all__ = ["init_sae_to_match_model"]
