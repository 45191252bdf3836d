"""Learning directions: from poor starts to the true ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparse_but_wrong.l0.dictionaries import Directions
from sparse_but_wrong.l0.refine import most_worth, refine_directions
from tests.l0.worlds import found, samples, small_world, stream, true_directions


def mixed_start(n_rows: int, seed: int = 0) -> Directions:
    """True directions, each with much of another in it, some missing or too many."""
    world = small_world()
    true = true_directions(world)
    generator = torch.Generator().manual_seed(seed)
    pick = torch.randint(0, 20, (2, n_rows), generator=generator)
    rows = (
        true.rows[torch.arange(n_rows) % 20] + 0.5 * true.rows[pick[0]] - 0.3 * true.rows[pick[1]]
    )
    return replace(true, rows=torch.nn.functional.normalize(rows, dim=1), penalty=0.015)


def learn(start: Directions, seed: int = 0, **options: int) -> tuple[Directions, float, float]:
    """The directions, what was counted, and the truth."""
    world = small_world()
    source = stream(world)
    batches = [next(source) for _ in range(120)]
    held_out, truth = samples(world, 8_192)
    directions, presence = refine_directions(start, batches, held_out, seed=seed, **options)
    return directions, presence.l0, truth


@pytest.mark.parametrize(("n_rows", "n_extra"), [(20, 0), (20, 10), (30, 0), (15, 8)])
def test_finds_the_true_directions_and_how_many(n_rows: int, n_extra: int) -> None:
    # As many as there are, room to spare, half as many again, and too few latents.
    directions, counted, truth = learn(mixed_start(n_rows), n_extra=n_extra)
    assert found(directions, small_world().directions) == 20
    assert len(directions.rows) == 20
    assert counted == pytest.approx(truth, rel=0.01)
    torch.testing.assert_close(directions.rows.norm(dim=1), torch.ones(20))


def test_a_feature_seen_from_the_other_side_is_turned_round() -> None:
    # The first feature is active more often than not. Its reverse and a bias say the same.
    world = small_world(common=0.7)
    true = true_directions(world)
    rows = true.rows.clone()
    rows[0] *= -1
    flipped = Directions(rows, true.rows[0].clone(), 0.008)
    source = stream(world)
    batches = [next(source) for _ in range(120)]
    held_out, truth = samples(world, 8_192)
    directions, presence = refine_directions(flipped, batches, held_out, seed=0)
    cosines = directions.rows @ world.directions[:, 0]
    assert float(cosines.max()) > 0.99
    assert float(cosines.min()) > -0.3
    assert presence.l0 == pytest.approx(truth, rel=0.015)


def test_follows_from_the_seed() -> None:
    start = mixed_start(15)
    a, b, other = (learn(start, n_extra=8, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(a.rows, b.rows)
    assert torch.equal(a.bias, b.bias)
    # What is added to the start is drawn from what it leaves over.
    assert not torch.equal(a.rows, other.rows)


@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_a_feature_that_is_nearly_always_active(offset: float) -> None:
    # At the first penalties of the annealing it costs less if the bias holds the feature.
    world = small_world(common=0.9)
    added = offset * torch.nn.functional.normalize(torch.linspace(-1, 2, 30), dim=0)
    true = true_directions(world)
    rows = true.rows.clone()
    rows[0] *= -1
    reversed_ = Directions(rows, true.rows[0] + added, 0.016)
    source = stream(world)
    batches = [next(source) + added for _ in range(120)]
    held_out, truth = samples(world, 8_192)
    directions, presence = refine_directions(reversed_, batches, held_out + added, seed=0)
    assert float((directions.rows @ world.directions[:, 0]).max()) > 0.99
    assert presence.l0 == pytest.approx(truth, rel=0.015)


def test_of_more_directions_than_latents_those_worth_least_are_left_out() -> None:
    world = small_world()
    true = true_directions(world)
    x, _ = samples(world, 2_048)
    # One that the others express, put first, and 20 that nothing else does.
    needless = torch.nn.functional.normalize(true.rows[:1] + true.rows[1:2], dim=1)
    more = replace(true, rows=torch.cat([needless, true.rows]))
    assert torch.equal(most_worth(more, x, 20).rows, true.rows)
    assert most_worth(more, x, 21) is more
