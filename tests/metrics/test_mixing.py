"""What latents hold of a feature that is not theirs, on decoders written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparse_but_wrong.metrics.recovery import (
    feature_components,
    feature_mixing,
    mean_abs_cosine,
)

Make = Callable[..., Any]

# Three features in three dimensions as columns; 0 and 1 have a cosine of 0.6.
OBLIQUE = torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.8, 0.0], [0.0, 0.0, 1.0]])


def test_latents_that_are_features_hold_nothing_else_whatever_the_directions(
    make_sae: Make,
) -> None:
    sae = make_sae(3 * OBLIQUE.T)  # norms do not count
    torch.testing.assert_close(feature_components(sae, OBLIQUE), torch.eye(3))
    mixing = feature_mixing(sae, OBLIQUE)
    torch.testing.assert_close(mixing.components, torch.zeros(2))
    torch.testing.assert_close(mixing.own, torch.ones(2))
    assert mixing.mean == pytest.approx(0, abs=1e-6)
    assert mixing.elsewhere == pytest.approx(0, abs=1e-6)


def test_a_component_of_an_orthogonal_feature_is_the_cosine_with_its_sign(make_sae: Make) -> None:
    rows = torch.eye(3)
    rows[1] = torch.tensor([0.3, 1.0, 0.0])
    rows[2] = torch.tensor([-0.75, 0.0, 1.0])
    mixing = feature_mixing(make_sae(rows), torch.eye(3))
    expected = [0.3 / math.sqrt(1.09), -0.6]
    assert mixing.components.tolist() == pytest.approx(expected)
    assert mixing.own.tolist() == pytest.approx([1 / math.sqrt(1.09), 0.8])
    assert mixing.mean == pytest.approx(sum(expected) / 2)
    assert mixing.elsewhere == 0


def test_what_the_directions_share_is_subtracted(make_sae: Make) -> None:
    rows = OBLIQUE.T.clone()
    rows[1] = rows[1] + 0.5 * rows[0]  # (1.1, 0.8, 0), of norm √1.85
    components = feature_components(make_sae(rows), OBLIQUE)
    norm = math.sqrt(1.85)
    own = (1.1 * 0.6 + 0.8 * 0.8) / norm
    assert components[1, 0].item() == pytest.approx(1.1 / norm - own * 0.6)
    assert components[1, 1].item() == pytest.approx(own)


def test_mixing_with_another_feature_than_asked_is_counted_elsewhere(make_sae: Make) -> None:
    rows = torch.eye(3)
    rows[1] = torch.tensor([0.0, 0.8, -0.6])
    mixing = feature_mixing(make_sae(rows), torch.eye(3), feature=0)
    assert mixing.components.tolist() == [0, 0]
    assert mixing.elsewhere == pytest.approx(0.6)
    assert feature_mixing(make_sae(rows), torch.eye(3), 2).mean == pytest.approx(-0.3)


def test_an_sae_that_diverged_has_nan(make_sae: Make) -> None:
    rows = torch.eye(3)
    rows[1] = torch.nan
    mixing = feature_mixing(make_sae(rows), torch.eye(3))
    assert math.isnan(mixing.mean)
    assert math.isnan(mixing.elsewhere)


def test_what_does_not_fit_is_refused(make_sae: Make) -> None:
    with pytest.raises(ValueError, match="2 latents in 3 dimensions and the world 3 features in 3"):
        feature_components(make_sae(torch.eye(3)[:2]), torch.eye(3))
    with pytest.raises(ValueError, match="feature is 3, but they are numbered 0 to 2"):
        feature_mixing(make_sae(torch.eye(3)), torch.eye(3), feature=3)


def test_mean_abs_cosine_of_directions() -> None:
    assert mean_abs_cosine(OBLIQUE) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="a single direction"):
        mean_abs_cosine(torch.ones(3, 1))
