"""Which features latents found and what they mixed in, on decoders written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from sae_lens.synthetic.evals import mean_correlation_coefficient

from sparse_but_wrong.metrics import recovery
from sparse_but_wrong.metrics.recovery import (
    feature_components,
    match_latents,
    matched_cosines,
    mean_abs_cosine,
    pairwise_similarity,
)
from tests.metrics.evaluated import make_sae

EYE = torch.eye(4)
NAN = math.nan


def unit(*degrees):
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def cos(degrees):
    return math.cos(math.radians(degrees))


@pytest.mark.parametrize(
    ("W_dec", "features", "pairs", "cosines", "mcc", "mean_max"),
    [
        # A permutation, whatever the norms.
        (2 * EYE[[3, 0, 1, 2]], 7 * EYE, {0: 1, 1: 2, 2: 3, 3: 0}, [1, 1, 1, 1], 1, 1),
        # Latent 0 is the best of both features, but giving it to feature 0 (cos 5°) would leave
        # feature 1 with latent 1 at 70°. The best sum is cos 20° + cos 10°, latent 0 on feature 1.
        (
            unit(5, -20),
            unit(0, 15).T,
            {0: 1, 1: 0},
            [cos(20), cos(10)],
            (cos(20) + cos(10)) / 2,
            (cos(5) + cos(10)) / 2,
        ),
        # Better an unrelated latent than one that points the opposite way.
        (torch.stack([-EYE[0], EYE[1], EYE[2]]), EYE[:, :2], {0: 2, 1: 1}, [0, 1], 0.5, 0.5),
        (-EYE[:1], EYE[:, :1], {0: 0}, [-1], -1, -1),
        # More latents than features.
        (EYE[[3, 1, 2, 0]], EYE[:, :2], {0: 3, 1: 1}, [1, 1], 1, 1),
        # Both latents are features, so MCC is full; two of four features were found.
        (EYE[[2, 1]], EYE, {1: 1, 2: 0}, [1, 1], 1, 0.5),
        # A decoder row of zeros has found nothing.
        (torch.tensor([[0.0, 0.0], [0.0, 2.0]]), EYE[:2, :2], {0: 0, 1: 1}, [0, 1], 0.5, 0.5),
        # A latent that diverged is paired last.
        (EYE + torch.diag(torch.tensor([0, 0, NAN]), 1), EYE, None, [1, 1, NAN, 1], NAN, NAN),
    ],
)
def test_latents_are_assigned_one_to_one_and_best_overall(
    W_dec, features, pairs, cosines, mcc, mean_max
):
    match = match_latents(make_sae(W_dec), features.requires_grad_())
    pairs = pairs or {i: i for i in range(len(W_dec))}
    assert dict(zip(match.features.tolist(), match.latents.tolist(), strict=True)) == pairs
    assert match.features.tolist() == sorted(pairs)
    assert match.cosines.tolist() == pytest.approx(cosines, nan_ok=True)
    assert (match.mcc, match.mean_max_cosine) == pytest.approx((mcc, mean_max), nan_ok=True)
    assert not match.cosines.requires_grad


def test_agrees_with_sae_lens_where_signs_do_not_matter():
    generator = torch.Generator().manual_seed(2)
    # Directions with positive entries only: every cosine is positive.
    W_dec, features = torch.rand(9, 6, generator=generator), torch.rand(6, 7, generator=generator)
    expected = mean_correlation_coefficient(W_dec, features.T)
    assert match_latents(make_sae(W_dec), features).mcc == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.ones(2, 3), r"\[3, n_features\].*\[2, 3\].*Transpose"),
        (torch.ones(3, 0), r"at least one.*\[3, 0\]"),
        (torch.tensor([[1.0, math.inf], [0.0, 0.0], [0.0, 0.0]]), "feature 1 is not finite"),
    ],
)
def test_what_cannot_be_matched_is_refused(features, message):
    with pytest.raises(ValueError, match=message):
        match_latents(make_sae(torch.ones(2, 3)), features)


@pytest.mark.parametrize(
    ("W_dec", "features", "expected"),
    [
        # In the order of the features.
        (
            [[0.0, 0.0, 2.0], [3.0, 4.0, 0.0], [0.0, 1.0, 0.0]],
            *([0, 1, 2], [[0.6, 0.8, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
        ),
        # Those without a partner last.
        (
            [[0.6, 0.8, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]],
            *([2, 0], [[1.0, 0.0], [0.0, 1.0], [0.0, 0.6], [0.0, -1.0]]),
        ),
        # Fewer latents than features.
        ([[0.0, 1.0, 0.0]], [0, 1, 2], [[0.0, 1.0, 0.0]]),
    ],
)
def test_matched_cosines_of_a_worked_example(W_dec, features, expected):
    found = matched_cosines(make_sae(torch.tensor(W_dec)), torch.eye(3)[:, features])
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # Pairs (a, b) at 60°, (a, c) opposite, (b, c) at 120°.
        ([[2.0, 0.0], [0.5, math.sqrt(0.75)], [-7.0, 0.0]], (1 / 2 + 1 + 1 / 2) / 3),
        # Zeros are similar to nothing.
        ([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], 1 / 3),
        ([[1.0, 1.0]], NAN),
        ([[1.0, NAN], [1.0, 1.0], [0.0, 1.0]], NAN),
        # Single rows of another scale have their direction: 45° with both others.
        *(([[1.0, 0.0], [s, s], [0.0, 1.0]], math.sqrt(2) / 3) for s in (1e25, 1e-25, 1e38)),
    ],
)
def test_similarity_of_worked_examples(rows, expected):
    found = pairwise_similarity(torch.tensor(rows))
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("tile", [1, 3, 5, 13, 64])
def test_similarity_does_not_depend_on_the_tiles(monkeypatch, tile):
    rows = torch.randn(13, 7, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(recovery, "_TILE", tile)
    cosines = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1).abs()
    pairs = [cosines[i, j].item() for i in range(13) for j in range(i)]
    assert pairwise_similarity(rows) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


# Mixing. Three features in three dimensions as columns; 0 and 1 have a cosine of 0.6.
OBLIQUE = torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.8, 0.0], [0.0, 0.0, 1.0]])
NORM = math.sqrt(1.85)
SHARED = (1.1 * 0.6 + 0.8 * 0.8) / NORM


@pytest.mark.parametrize(
    ("rows", "directions", "expected"),
    [
        # Latents that are features hold nothing else, whatever the directions; norms do not count.
        ((3 * OBLIQUE.T).tolist(), OBLIQUE, torch.eye(3).tolist()),
        # A component of an orthogonal feature is the cosine, with its sign.
        (
            [[1.0, 0.0, 0.0], [0.0, 0.8, -0.6], [-0.75, 0.0, 1.0]],
            *(torch.eye(3), [[1, 0, 0], [0, 0.8, -0.6], [-0.6, 0, 0.8]]),
        ),
        # What the directions share is subtracted: row 1 is feature 1 + half of 0, of norm √1.85.
        (
            [[1.0, 0.0, 0.0], [1.1, 0.8, 0.0], [0.0, 0.0, 1.0]],
            *(OBLIQUE, [[1, 0, 0], [1.1 / NORM - SHARED * 0.6, SHARED, 0], [0, 0, 1]]),
        ),
        ([[1.0, 0, 0], [NAN] * 3, [0, 0, 1.0]], torch.eye(3), [[1, 0, 0], [NAN] * 3, [0, 0, 1]]),
    ],
)
def test_mixing_of_worked_examples(rows, directions, expected):
    found = feature_components(make_sae(torch.tensor(rows)), directions)
    for row, wanted in zip(found.tolist(), expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-6, nan_ok=True)


def test_mixing_refuses_other_numbers_of_latents_than_features():
    with pytest.raises(ValueError, match="2 latents in 3 dimensions and the world 3 features in 3"):
        feature_components(make_sae(torch.eye(3)[:2]), torch.eye(3))


def test_mean_abs_cosine_of_directions():
    assert mean_abs_cosine(OBLIQUE) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="a single direction"):
        mean_abs_cosine(torch.ones(3, 1))
