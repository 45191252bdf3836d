"""What is drawn from a stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparse_but_wrong.l0.source import draw_batch, draw_samples, open_source
from sparse_but_wrong.worlds.synthetic import SyntheticWorld
from tests.l0.worlds import small_world, stream
from tests.worlds.synthetic import CONFIG


def test_a_source_may_fill_the_same_tensor_anew() -> None:
    def same() -> Iterator[torch.Tensor]:
        buffer = torch.empty(256, 3)
        generator = torch.Generator().manual_seed(0)
        while True:
            yield buffer.normal_(generator=generator)

    source = same()
    assert len(draw_samples(source, 1_000).unique(dim=0)) == 1_000
    first = draw_batch(source)
    before = first.clone()
    draw_batch(source)
    assert torch.equal(first, before)


def test_batches_come_in_float32_and_without_gradients() -> None:
    given = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    batch = draw_batch(iter([given]))
    assert batch.dtype == torch.float32
    assert not batch.requires_grad


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 3), (4, 5)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="activations"):
        draw_samples(iter([torch.randn(4, 3), torch.ones(shape)]), 8)


def test_stored_activations_are_held_out_first_and_do_not_come_again() -> None:
    x = torch.arange(2_000.0)[:, None].repeat(1, 3)
    source, n_held_out, n_features = open_source(x, None, 600, seed=0)
    assert (n_held_out, n_features) == (500, None)
    drawn = torch.cat([next(source) for _ in range(20)])[:, 0]
    assert not torch.isin(drawn[:500], drawn[500:]).any()
    assert len(drawn.unique()) == 2_000


def test_a_folder_of_sae_lens_with_a_synthetic_model_is_a_world(tmp_path: Path) -> None:
    world = SyntheticWorld(CONFIG)
    world.synthetic.save(tmp_path)
    source, n_samples, n_features = open_source(str(tmp_path), None, 600, seed=3)
    assert (n_samples, n_features) == (600, 40)
    assert torch.equal(next(source), next(world.stream(1_024, 3)))


def test_a_toy_world_knows_its_features() -> None:
    source, n_samples, n_features = open_source(small_world(), None, 600, seed=3)
    assert (n_samples, n_features) == (600, 20)
    assert torch.equal(next(source), next(stream(small_world(), 3, 1_024)))
