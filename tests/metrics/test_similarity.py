from __future__ import annotations

import math

import pytest
import torch

from sparse_but_wrong.metrics import similarity
from sparse_but_wrong.metrics.similarity import decoder_similarity, encoder_similarity


def test_worked_example(make_sae):
    # Pairs of rows: (a, b) at 60°, (a, c) opposite, (b, c) at 120°: (1/2 + 1 + 1/2) / 3.
    W_dec = torch.tensor([[2.0, 0.0], [0.5, math.sqrt(0.75)], [-7.0, 0.0]])
    # Pairs of columns: orthogonal, and two at 45°.
    W_enc = torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 3.0]])
    sae = make_sae(W_dec, W_enc=W_enc)
    assert decoder_similarity(sae) == pytest.approx(2 / 3, abs=1e-6)
    assert encoder_similarity(sae) == pytest.approx(math.sqrt(2) / 3, abs=1e-6)


def test_a_row_of_zeros_counts_as_similar_to_nothing(make_sae):
    sae = make_sae(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    assert decoder_similarity(sae) == pytest.approx(1 / 3)


@pytest.mark.parametrize("tile", [1, 3, 5, 13, 64])
def test_does_not_depend_on_the_tiles(make_sae, monkeypatch, tile):
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(13, 7, generator=generator)
    sae = make_sae(W_dec, W_enc=torch.randn(7, 13, generator=generator))
    monkeypatch.setattr(similarity, "_TILE", tile)
    for measure, rows in ((decoder_similarity, W_dec), (encoder_similarity, sae.W_enc.T)):
        cosines = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1).abs()
        pairs = [cosines[i, j].item() for i in range(13) for j in range(i)]
        assert measure(sae) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_a_single_latent_has_no_pairs(make_sae):
    assert math.isnan(decoder_similarity(make_sae(torch.ones(1, 3))))


def test_a_diverged_sae_is_nan(make_sae):
    sae = make_sae(torch.tensor([[1.0, math.nan], [1.0, 1.0], [0.0, 1.0]]))
    assert math.isnan(decoder_similarity(sae))
