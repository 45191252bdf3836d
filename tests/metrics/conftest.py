"""SAEs with weights set by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor


@pytest.fixture(scope="session")
def make_sae() -> Callable[..., Any]:
    """Builds an inference JumpReLU SAE around a decoder; the encoder is tied unless given."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    def build(W_dec: Tensor, **others: Tensor) -> JumpReLUSAE:
        d_sae, d_in = W_dec.shape
        dtype = str(W_dec.dtype).removeprefix("torch.")
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae, dtype=dtype))
        weights = {"W_dec": W_dec, "W_enc": W_dec.T, **others}
        for name, value in weights.items():
            getattr(sae, name).data.copy_(value)
        return sae

    return build
