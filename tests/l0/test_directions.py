"""Directions as a decoder gives them."""

from __future__ import annotations

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

from sparse_but_wrong.l0.dictionaries import decoder_directions
from tests.l0.worlds import samples, small_world, true_directions


def test_decoder_directions() -> None:
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=6, d_sae=4, k=2))
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(4, 6) * 3)
        sae.W_dec[1] = 0.0
        sae.W_dec[2] = torch.nan
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * 2
    directions = decoder_directions(sae, x)
    assert directions.rows.shape == (2, 6)
    torch.testing.assert_close(directions.rows[0] * sae.W_dec[0].norm(), sae.W_dec.detach()[0])
    spread = x.var(dim=0, correction=0).sum().sqrt().item()
    assert directions.penalty == pytest.approx(0.008 * spread)


def test_the_bias_follows_what_is_added_to_all_samples() -> None:
    true = true_directions(small_world())
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=30, d_sae=20, k=4))
    with torch.no_grad():
        sae.W_dec.copy_(true.rows)
        sae.b_dec.fill_(100.0)
    x, _ = samples(small_world(), 4_096)
    offset = torch.linspace(-5, 8, 30)
    plain, moved = decoder_directions(sae, x), decoder_directions(sae, x + offset)
    torch.testing.assert_close(moved.bias, plain.bias + offset, rtol=0, atol=1e-3)
    # Nearly that of the world, which has none, and not the SAE's own.
    assert float(plain.bias.norm()) < 0.2
