"""Cosines of latents with features, latents in the order of the features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparse_but_wrong.metrics.matched_cosines import matched_cosines

MakeSAE = Callable[..., Any]


def test_latents_stand_in_the_order_of_their_features(make_sae: MakeSAE) -> None:
    decoder = torch.tensor([[0.0, 0.0, 2.0], [3.0, 4.0, 0.0], [0.0, 1.0, 0.0]])
    found = matched_cosines(make_sae(decoder), torch.eye(3))
    expected = torch.tensor([[0.6, 0.8, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(found, expected)


def test_latents_without_a_partner_come_last(make_sae: MakeSAE) -> None:
    decoder = torch.tensor([[0.6, 0.8, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    found = matched_cosines(make_sae(decoder), torch.eye(3)[:, [2, 0]])
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.6], [0.0, -1.0]])
    torch.testing.assert_close(found, expected)


def test_fewer_latents_than_features(make_sae: MakeSAE) -> None:
    found = matched_cosines(make_sae(torch.tensor([[0.0, 1.0, 0.0]])), torch.eye(3))
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0, 0.0]]))


def test_features_of_another_width_are_refused(make_sae: MakeSAE) -> None:
    with pytest.raises(ValueError, match=r"\[3, n_features\]"):
        matched_cosines(make_sae(torch.eye(3)), torch.eye(4))
