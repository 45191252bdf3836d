"""Learning directions: from poor starts to the true ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

from sparse_but_wrong.l0.directions import (
    Directions,
    _one_sided,
    _without_constants,
    decoder_directions,
    refine_directions,
)
from sparse_but_wrong.l0.presence import measure_presence
from tests.l0.worlds import samples, small_world, stream, true_directions


def found(directions: Directions, true: torch.Tensor) -> int:
    cosines = directions.rows @ torch.nn.functional.normalize(true, dim=0)
    return int((cosines.max(0).values > 0.99).sum())


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


def test_a_direction_that_is_in_all_samples_goes_into_the_bias() -> None:
    world = small_world()
    true = true_directions(world)
    generator = torch.Generator().manual_seed(0)
    extra = torch.nn.functional.normalize(torch.randn(1, 30, generator=generator), dim=1)
    x, truth = samples(world, 8_192)
    start = Directions(torch.cat([true.rows, extra]), -0.4 * extra[0], 0.005)
    assert measure_presence(start, x).l0 == pytest.approx(truth + 1, rel=0.01)
    without = _without_constants(start, x)
    assert without.rows.shape == (20, 30)
    assert measure_presence(without, x).l0 == pytest.approx(truth, rel=0.01)
    assert float(without.bias.norm()) < 0.05
    # Nothing else is: the features come and go.
    assert _without_constants(without, x) is without


def test_of_a_direction_and_its_reverse_one_stays() -> None:
    # Every sample has one or the other, and neither residual nor histogram minds.
    world = small_world()
    true = true_directions(world)
    x, truth = samples(world, 8_192)
    both = Directions(torch.cat([true.rows, -true.rows[:1]]), 0.4 * true.rows[0], 0.01)
    presence = measure_presence(both, x)
    assert presence.score < 0.02
    assert presence.l0 > truth + 0.5
    settled = _one_sided(both, x)
    assert settled.rows.shape == (20, 30)
    assert measure_presence(settled, x).l0 == pytest.approx(truth, rel=0.01)
    assert _one_sided(settled, x) is settled


def test_of_three_that_add_up_to_nothing_two_stay() -> None:
    world = small_world()
    true = true_directions(world)
    x, truth = samples(world, 8_192)
    third = torch.nn.functional.normalize(-true.rows[:1] - true.rows[1:2], dim=1)
    star = Directions(torch.cat([true.rows, third]), 0.4 * (true.rows[0] + true.rows[1]), 0.01)
    assert measure_presence(star, x).l0 > truth + 0.3
    settled = _one_sided(star, x)
    assert settled.rows.shape == (20, 30)
    assert found(settled, world.directions) == 20
    assert measure_presence(settled, x).l0 == pytest.approx(truth, rel=0.01)


def test_what_two_opposite_directions_express_together_stays() -> None:
    # The second feature is what both hold a little of; no direction is its own.
    true = true_directions(small_world())
    first, second = true.rows[:2]
    pair = torch.stack([first + 0.15 * second, 0.15 * second - first])
    rows = torch.cat([torch.nn.functional.normalize(pair, dim=1), true.rows[2:]])
    assert float((rows @ second).max()) < 0.2
    x, _ = samples(small_world(), 8_192)
    settled = _one_sided(Directions(rows, true.bias, 0.01), x)
    assert settled.rows.shape == (20, 30)
    assert float((settled.rows @ first).max()) > 0.98
    assert float((settled.rows @ second).max()) > 0.98


def test_directions_in_superposition_are_left_as_they_are() -> None:
    x, _ = samples(small_world(), 512)
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(60, 30, generator=generator), dim=1)
    directions = Directions(rows, torch.zeros(30), 0.01)
    assert _one_sided(directions, x) is directions
