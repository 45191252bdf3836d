"""Directions that express the samples and are not the true ones."""

from __future__ import annotations

import pytest
import torch

from sparse_but_wrong.l0.corrections import drop_constants, keep_one_side, turn_round, unmix
from sparse_but_wrong.l0.dictionaries import Directions
from sparse_but_wrong.l0.presence import count_present
from sparse_but_wrong.worlds.world import ToyWorld
from tests.l0.worlds import found, samples, small_world, true_directions


def _with_a_child(world: ToyWorld, parent: int, child: int) -> torch.Tensor:
    """Activations with a little noise, in which one feature only occurs where another does."""
    generator = torch.Generator().manual_seed(99)
    features = world.sampler.sample(8_192, generator)
    features[:, child] *= features[:, parent] > 0
    with torch.no_grad():
        x = world.model.embed(features)
    # Without noise the cut of presence is next to 0, which is too low to unmix by.
    return x + 0.05 * torch.randn(x.shape, generator=generator)


def test_a_child_gives_back_what_it_holds_of_its_parent() -> None:
    world = small_world()
    true = true_directions(world)
    parent, child = 0, 2
    x = _with_a_child(world, parent, child)
    rows = true.rows.clone()
    rows[child] = torch.nn.functional.normalize(rows[child] + 0.6 * rows[parent], dim=0)
    mixed = Directions(rows, true.bias, true.penalty)
    assert float(rows[child] @ true.rows[child]) < 0.95
    unmixed = unmix(mixed, count_present(mixed, x), x)
    assert float((unmixed.rows * true.rows).sum(1).min()) > 0.99


def test_a_child_that_holds_nothing_of_its_parent_stays_as_it_is() -> None:
    # It is the parent's magnitude that tells, not how often they occur together.
    world = small_world()
    true = true_directions(world)
    x = _with_a_child(world, 0, 2)
    unmixed = unmix(true, count_present(true, x), x)
    assert float((unmixed.rows * true.rows).sum(1).min()) > 0.999


@pytest.mark.parametrize("which", [0, 19])
def test_a_direction_that_is_on_where_its_feature_is_off_is_turned_round(which: int) -> None:
    world = small_world()
    true = true_directions(world)
    x, truth = samples(world, 8_192)
    level = 1.2
    rows = true.rows.clone()
    rows[which] *= -1
    reversed_ = Directions(rows, true.bias + level * true.rows[which], true.penalty)
    # They express all there is, and too many are present.
    presence = count_present(reversed_, x)
    assert presence.score < 0.02
    assert presence.l0 > truth + 0.3
    turned = turn_round(reversed_, x)
    assert torch.equal(turned.rows, true.rows)
    assert float(turned.bias.norm()) < 0.05
    assert count_present(turned, x).l0 == pytest.approx(truth, rel=0.01)
    assert turn_round(turned, x) is turned


@pytest.mark.parametrize("common", [None, 0.85])
def test_directions_that_point_forward_are_not_turned_round(common: float | None) -> None:
    # Neither is one whose feature is on more often than not.
    world = small_world(common=common)
    true = true_directions(world)
    x, _ = samples(world, 8_192)
    assert turn_round(true, x) is true


def test_a_direction_that_is_in_all_samples_goes_into_the_bias() -> None:
    world = small_world()
    true = true_directions(world)
    generator = torch.Generator().manual_seed(0)
    extra = torch.nn.functional.normalize(torch.randn(1, 30, generator=generator), dim=1)
    x, truth = samples(world, 8_192)
    start = Directions(torch.cat([true.rows, extra]), -0.4 * extra[0], 0.005)
    assert count_present(start, x).l0 == pytest.approx(truth + 1, rel=0.01)
    without = drop_constants(start, x)
    assert without.rows.shape == (20, 30)
    assert count_present(without, x).l0 == pytest.approx(truth, rel=0.01)
    assert float(without.bias.norm()) < 0.05
    # Nothing else is: the features come and go.
    assert drop_constants(without, x) is without


def test_of_a_direction_and_its_reverse_one_stays() -> None:
    # Every sample has one or the other, and neither residual nor histogram minds.
    world = small_world()
    true = true_directions(world)
    x, truth = samples(world, 8_192)
    both = Directions(torch.cat([true.rows, -true.rows[:1]]), 0.4 * true.rows[0], 0.01)
    presence = count_present(both, x)
    assert presence.score < 0.02
    assert presence.l0 > truth + 0.5
    settled = keep_one_side(both, x)
    assert settled.rows.shape == (20, 30)
    assert count_present(settled, x).l0 == pytest.approx(truth, rel=0.01)
    assert keep_one_side(settled, x) is settled


def test_of_three_that_add_up_to_nothing_two_stay() -> None:
    world = small_world()
    true = true_directions(world)
    x, truth = samples(world, 8_192)
    third = torch.nn.functional.normalize(-true.rows[:1] - true.rows[1:2], dim=1)
    star = Directions(torch.cat([true.rows, third]), 0.4 * (true.rows[0] + true.rows[1]), 0.01)
    assert count_present(star, x).l0 > truth + 0.3
    settled = keep_one_side(star, x)
    assert settled.rows.shape == (20, 30)
    assert found(settled, world.directions) == 20
    assert count_present(settled, x).l0 == pytest.approx(truth, rel=0.01)


def test_what_two_opposite_directions_express_together_stays() -> None:
    # The second feature is what both hold a little of; no direction is its own.
    true = true_directions(small_world())
    first, second = true.rows[:2]
    pair = torch.stack([first + 0.15 * second, 0.15 * second - first])
    rows = torch.cat([torch.nn.functional.normalize(pair, dim=1), true.rows[2:]])
    assert float((rows @ second).max()) < 0.2
    x, _ = samples(small_world(), 8_192)
    settled = keep_one_side(Directions(rows, true.bias, 0.01), x)
    assert settled.rows.shape == (20, 30)
    assert float((settled.rows @ first).max()) > 0.98
    assert float((settled.rows @ second).max()) > 0.98


def test_directions_in_superposition_are_left_as_they_are() -> None:
    x, _ = samples(small_world(), 512)
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(60, 30, generator=generator), dim=1)
    directions = Directions(rows, torch.zeros(30), 0.01)
    assert keep_one_side(directions, x) is directions
