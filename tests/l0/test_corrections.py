"""Directions that express the samples and are not the true ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sparse_but_wrong.l0.corrections import drop_constants, keep_one_side, turn_round, unmix
from sparse_but_wrong.l0.dictionaries import Directions
from sparse_but_wrong.l0.presence import count_present
from tests.l0.worlds import found, known, random_rows, samples, small_world, unit

Change = Callable[[Directions], Directions]


@pytest.mark.parametrize(("held", "at_least"), [(0.6, 0.99), (0.0, 0.999)])
def test_a_child_gives_back_what_it_holds_of_its_parent(held: float, at_least: float) -> None:
    # It is the parent's magnitude that tells, not that they always occur together.
    world, true, parent, child = small_world(), known(1).true, 0, 2
    generator = torch.Generator().manual_seed(99)
    features = world.sampler.sample(8_192, generator)
    features[:, child] *= features[:, parent] > 0
    with torch.no_grad():
        x = world.model.embed(features)
    # Without noise the cut of presence is next to 0, which is too low to unmix by.
    x = x + 0.05 * torch.randn(x.shape, generator=generator)
    rows = true.rows.clone()
    rows[child] += held * rows[parent]
    mixed = replace(true, rows=unit(rows))
    assert (float(mixed.rows[child] @ true.rows[child]) < 0.95) == (held > 0)
    unmixed = unmix(mixed, count_present(mixed, x), x)
    assert float((unmixed.rows * true.rows).sum(1).min()) > at_least


def reversed_at(which: int) -> Change:
    """One is on where its feature is off."""

    def change(true: Directions) -> Directions:
        rows = true.rows.clone()
        rows[which] *= -1
        return replace(true, rows=rows, bias=true.bias + 1.2 * true.rows[which])

    return change


def with_a_constant(true: Directions) -> Directions:
    """One is in all samples."""
    extra = random_rows(1, 30)
    return Directions(torch.cat([true.rows, extra]), -0.4 * extra[0], 0.005)


def with_a_reverse(true: Directions) -> Directions:
    """Every sample has one or the other, and neither residual nor histogram minds."""
    return replace(true, rows=torch.cat([true.rows, -true.rows[:1]]), bias=0.4 * true.rows[0])


def with_a_star(true: Directions) -> Directions:
    """Three that add up to nothing."""
    two = true.rows[0] + true.rows[1]
    return replace(true, rows=torch.cat([true.rows, unit(-two[None])]), bias=0.4 * two)


@pytest.mark.parametrize(
    ("correct", "change", "least", "most"),
    [
        (turn_round, reversed_at(0), 0.3, math.inf),
        (turn_round, reversed_at(19), 0.3, math.inf),
        (drop_constants, with_a_constant, 0.95, 1.05),
        (keep_one_side, with_a_reverse, 0.5, math.inf),
        (keep_one_side, with_a_star, 0.3, math.inf),
    ],
)
def test_directions_of_which_too_many_are_present(
    correct: Callable[..., Directions], change: Change, least: float, most: float
) -> None:
    true, x, truth = known()
    wrong = change(true)
    # They express all there is.
    presence = count_present(wrong, x)
    assert presence.score < 0.02
    assert least < presence.l0 - truth < most
    corrected = correct(wrong, x)
    assert corrected.rows.shape == (20, 30)
    assert found(corrected, true) == 20
    assert count_present(corrected, x).l0 == pytest.approx(truth, rel=0.01)
    assert correct(corrected, x) is corrected
    if correct is not keep_one_side:
        assert torch.equal(corrected.rows, true.rows)
        assert float(corrected.bias.norm()) < 0.05


@pytest.mark.parametrize("common", [None, 0.85])
def test_directions_that_point_forward_are_not_turned_round(common: float | None) -> None:
    # Neither is one whose feature is on more often than not.
    true, x, _ = known(common=common)
    assert turn_round(true, x) is true


def test_what_two_opposite_directions_express_together_stays() -> None:
    # The second feature is what both hold a little of; no direction is its own.
    true, x, _ = known()
    first, second = true.rows[:2]
    pair = torch.stack([first + 0.15 * second, 0.15 * second - first])
    rows = torch.cat([unit(pair), true.rows[2:]])
    assert float((rows @ second).max()) < 0.2
    settled = keep_one_side(replace(true, rows=rows), x)
    assert settled.rows.shape == (20, 30)
    assert float((settled.rows @ first).max()) > 0.98
    assert float((settled.rows @ second).max()) > 0.98


def test_directions_in_superposition_are_left_as_they_are() -> None:
    x, _ = samples(small_world(), 512)
    directions = Directions(random_rows(60, 30), torch.zeros(30), 0.01)
    assert keep_one_side(directions, x) is directions
