from __future__ import annotations

import math

import pytest
import torch

from sparse_but_wrong.metrics import recovery
from sparse_but_wrong.metrics.recovery import (
    decoder_similarity,
    encoder_similarity,
    match_latents,
    matched_cosines,
)


def unit(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def test_a_permutation_is_undone(make_sae):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 5, generator=generator)
    order = torch.tensor([3, 0, 4, 1, 2])
    match = match_latents(make_sae(2.0 * features.T[order]), features)
    assert match.features.tolist() == [0, 1, 2, 3, 4]
    assert order[match.latents].tolist() == [0, 1, 2, 3, 4]
    assert match.mcc == pytest.approx(1)
    assert match.mean_max_cosine == pytest.approx(1)


def test_the_assignment_is_one_to_one_and_best_overall(make_sae):
    # Latent 0 is the best of both features, but giving it to feature 0 (cos 5°) would leave
    # feature 1 with latent 1 at 70°. The best sum is cos 20° + cos 10° with latent 0 on feature 1.
    features = torch.tensor([unit(0), unit(15)]).T
    match = match_latents(make_sae(torch.tensor([unit(5), unit(-20)])), features)
    pairs = dict(zip(match.features.tolist(), match.latents.tolist(), strict=True))
    assert pairs == {0: 1, 1: 0}
    cos = [math.cos(math.radians(d)) for d in (5, 10, 20)]
    assert match.cosines.tolist() == pytest.approx([cos[2], cos[1]])
    assert match.mcc == pytest.approx((cos[2] + cos[1]) / 2)
    assert match.mean_max_cosine == pytest.approx((cos[0] + cos[1]) / 2)


def test_a_latent_that_points_the_opposite_way_has_not_found_the_feature(make_sae):
    # Better an unrelated latent than an opposite one.
    x, y, z = torch.eye(3)
    match = match_latents(make_sae(torch.stack([-x, y, z])), torch.stack([x, y], dim=1))
    assert match.latents.tolist() == [2, 1]
    assert match.cosines.tolist() == [0, 1]
    assert match.mcc == 0.5
    assert match.mean_max_cosine == 0.5
    assert match_latents(make_sae(-x[None]), x[:, None]).mcc == -1


def test_more_latents_than_features(make_sae):
    features = torch.eye(4)[:, :2]
    match = match_latents(make_sae(torch.eye(4)[[3, 1, 2, 0]]), features)
    assert match.features.tolist() == [0, 1]
    assert match.latents.tolist() == [3, 1]
    assert match.mcc == 1
    assert match.mean_max_cosine == 1


def test_fewer_latents_than_features(make_sae):
    match = match_latents(make_sae(torch.eye(4)[[2, 1]]), torch.eye(4))
    assert match.features.tolist() == [1, 2]
    assert match.latents.tolist() == [1, 0]
    # Both latents are features, so MCC is full; two of four features were found.
    assert match.mcc == 1
    assert match.mean_max_cosine == 0.5


def test_norms_do_not_matter(make_sae):
    generator = torch.Generator().manual_seed(1)
    W_dec = torch.randn(6, 4, generator=generator)
    features = torch.randn(4, 5, generator=generator)
    scale = torch.tensor([0.01, 1.0, 2.0, 30.0, 400.0])
    plain = match_latents(make_sae(W_dec), features)
    scaled = match_latents(make_sae(7 * W_dec), features * scale)
    assert scaled.latents.tolist() == plain.latents.tolist()
    torch.testing.assert_close(scaled.cosines, plain.cosines)


def test_agrees_with_sae_lens_where_signs_do_not_matter(make_sae):
    from sae_lens.synthetic.evals import mean_correlation_coefficient

    generator = torch.Generator().manual_seed(2)
    # Directions with positive entries only: every cosine is positive.
    W_dec = torch.rand(9, 6, generator=generator)
    features = torch.rand(6, 7, generator=generator)
    expected = mean_correlation_coefficient(W_dec, features.T)
    assert match_latents(make_sae(W_dec), features).mcc == pytest.approx(expected, abs=1e-6)


def test_takes_the_weight_of_a_layer_that_wants_gradients(make_sae):
    embed = torch.nn.Linear(3, 3, bias=False)
    embed.weight.data.copy_(torch.eye(3))
    match = match_latents(make_sae(torch.eye(3)), embed.weight)
    assert match.mcc == 1
    assert not match.cosines.requires_grad


def test_a_decoder_row_of_zeros_has_found_nothing(make_sae):
    match = match_latents(make_sae(torch.tensor([[0.0, 0.0], [0.0, 2.0]])), torch.eye(2))
    assert match.cosines.tolist() == [0.0, 1.0]


def test_a_diverged_latent_is_paired_last(make_sae):
    W_dec = torch.eye(3)
    W_dec[1, 0] = math.nan
    match = match_latents(make_sae(W_dec), torch.eye(3))
    assert match.latents.tolist() == [0, 1, 2]
    assert match.cosines[[0, 2]].tolist() == [1, 1]
    assert math.isnan(match.mcc)
    assert math.isnan(match.mean_max_cosine)


def test_refuses_what_it_cannot_match(make_sae):
    sae = make_sae(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"\[3, n_features\], but it is \[2, 3\].*Transpose"):
        match_latents(sae, torch.ones(2, 3))
    with pytest.raises(ValueError, match="no directions"):
        match_latents(sae, torch.ones(3, 0))
    with pytest.raises(ValueError, match="feature 1 is not finite"):
        match_latents(sae, torch.tensor([[1.0, math.inf], [0.0, 0.0], [0.0, 0.0]]))


def test_latents_stand_in_the_order_of_their_features(make_sae):
    decoder = torch.tensor([[0.0, 0.0, 2.0], [3.0, 4.0, 0.0], [0.0, 1.0, 0.0]])
    found = matched_cosines(make_sae(decoder), torch.eye(3))
    expected = torch.tensor([[0.6, 0.8, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(found, expected)


def test_latents_without_a_partner_come_last(make_sae):
    decoder = torch.tensor([[0.6, 0.8, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    found = matched_cosines(make_sae(decoder), torch.eye(3)[:, [2, 0]])
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.6], [0.0, -1.0]])
    torch.testing.assert_close(found, expected)


def test_matched_cosines_of_fewer_latents_than_features(make_sae):
    found = matched_cosines(make_sae(torch.tensor([[0.0, 1.0, 0.0]])), torch.eye(3))
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0, 0.0]]))


def test_similarity_of_a_worked_example(make_sae):
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
    monkeypatch.setattr(recovery, "_TILE", tile)
    for measure, rows in ((decoder_similarity, W_dec), (encoder_similarity, sae.W_enc.T)):
        cosines = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1).abs()
        pairs = [cosines[i, j].item() for i in range(13) for j in range(i)]
        assert measure(sae) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_a_single_latent_has_no_pairs(make_sae):
    assert math.isnan(decoder_similarity(make_sae(torch.ones(1, 3))))


def test_similarity_of_a_diverged_sae_is_nan(make_sae):
    sae = make_sae(torch.tensor([[1.0, math.nan], [1.0, 1.0], [0.0, 1.0]]))
    assert math.isnan(decoder_similarity(sae))
