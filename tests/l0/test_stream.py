"""What is drawn from a stream."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sparse_but_wrong.l0.stream import draw_batch, draw_samples


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


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="activations"):
        draw_batch(iter([torch.ones(shape)]))


def test_a_batch_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[samples, 3\]"):
        draw_samples(iter([torch.randn(4, 3), torch.randn(4, 5)]), 8)
