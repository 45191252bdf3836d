"""Learning directions: from poor starts to the true ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

from sparse_but_wrong.l0.directions import Directions, decoder_directions, refine_directions
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
        sae.b_dec.copy_(torch.arange(6.0))
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * 2
    directions = decoder_directions(sae, x)
    assert directions.rows.shape == (2, 6)
    torch.testing.assert_close(directions.rows[0] * sae.W_dec[0].norm(), sae.W_dec.detach()[0])
    torch.testing.assert_close(directions.bias, torch.arange(6.0))
    spread = x.var(dim=0, correction=0).sum().sqrt().item()
    assert directions.penalty == pytest.approx(0.008 * spread)
