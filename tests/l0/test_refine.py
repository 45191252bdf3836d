"""Learning directions: from poor starts to the true ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparse_but_wrong.l0 import refine
from sparse_but_wrong.l0.dictionaries import Directions
from sparse_but_wrong.l0.presence import Presence
from sparse_but_wrong.l0.refine import most_worth, refine_directions
from tests.l0.worlds import found, known, random_rows, small_world, stream, unit


def learn(
    start: Directions,
    common: float | None = None,
    added: torch.Tensor | float = 0.0,
    seed: int = 0,
    n_extra: int = 0,
) -> tuple[Directions, Presence, float]:
    """The directions, what was counted, and the truth."""
    world = small_world(common=common)
    source = stream(world)
    batches = [next(source) + added for _ in range(120)]
    _, held_out, truth = known(common=common)
    learned = refine_directions(start, batches, held_out + added, seed=seed, n_extra=n_extra)
    return *learned, truth


def mixed_start(n_rows: int) -> Directions:
    """True directions, each with much of another in it, some missing or too many."""
    rows = known(1).true.rows
    pick = torch.randint(0, 20, (2, n_rows), generator=torch.Generator().manual_seed(0))
    mixed = rows[torch.arange(n_rows) % 20] + 0.5 * rows[pick[0]] - 0.3 * rows[pick[1]]
    return Directions(unit(mixed), torch.zeros(30), 0.015)


@pytest.mark.parametrize(("n_rows", "n_extra"), [(20, 0), (20, 10), (30, 0), (15, 8)])
def test_finds_the_true_directions_and_how_many(n_rows: int, n_extra: int) -> None:
    # As many as there are, room to spare, half as many again, and too few latents.
    directions, presence, truth = learn(mixed_start(n_rows), n_extra=n_extra)
    assert found(directions, known(1).true) == 20
    assert len(directions.rows) == 20
    assert presence.l0 == pytest.approx(truth, rel=0.01)
    torch.testing.assert_close(directions.rows.norm(dim=1), torch.ones(20))


@pytest.mark.parametrize(
    ("common", "penalty", "offset"), [(0.7, 0.008, 0.0), (0.9, 0.016, 0.0), (0.9, 0.016, 5.0)]
)
def test_a_feature_seen_from_the_other_side_is_turned_round(
    common: float, penalty: float, offset: float
) -> None:
    # The first feature is active more often than not. Its reverse and a bias say the same, and
    # where it nearly always is, that costs less at the first penalties of the annealing.
    true = known(1, common=common).true
    added = offset * unit(torch.linspace(-1, 2, 30)[None])
    rows = true.rows.clone()
    rows[0] *= -1
    start = Directions(rows, true.rows[0] + added[0], penalty)
    directions, presence, truth = learn(start, common, added)
    cosines = directions.rows @ true.rows[0]
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


def test_of_more_directions_than_latents_those_worth_least_are_left_out() -> None:
    true, x, _ = known(2_048)
    # One that the others express, put first, and 20 that nothing else does.
    needless = unit(true.rows[:1] + true.rows[1:2])
    more = replace(true, rows=torch.cat([needless, true.rows]))
    assert torch.equal(most_worth(more, x, 20).rows, true.rows)
    assert most_worth(more, x, 21) is more


def test_what_does_not_part_is_not_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(256, 8, generator=generator) for _ in range(10)]
    start = Directions(random_rows(16, 8), torch.zeros(8), 0.02)

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(refine, "_prune", fail)
    directions, presence = refine_directions(start, noise, torch.cat(noise), seed=0, n_extra=4)
    assert presence.n_directions == len(directions.rows) == 20
    assert presence.score > 0.5
