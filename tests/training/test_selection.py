"""The choice of the largest values, by either method, against sorting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparse_but_wrong.training.architectures.topk import largest

pytestmark = pytest.mark.usefixtures("method")


def by_sorting(values: Tensor, counts: Tensor) -> Tensor:
    """A stable sort, downwards: of equal values the first comes first."""
    places = values.sort(dim=2, descending=True, stable=True).indices.argsort(dim=2)
    return (places < counts.unsqueeze(2)).float()


@pytest.mark.parametrize("kind", ["distinct", "many ties", "apart in memory"])
@pytest.mark.parametrize("shape", [(3, 40, 17), (2, 1, 800), (1, 1, 1)], ids=str)
def test_every_row_keeps_exactly_its_own_number_and_the_first_of_equals(
    shape: tuple[int, int, int], kind: str
) -> None:
    g = torch.Generator().manual_seed(0)
    values = torch.randn((*shape[:2], shape[2] + 9), generator=g)[:, :, 5 : 5 + shape[2]]
    if kind != "apart in memory":
        values = values.contiguous()
    if kind == "many ties":
        values = (2 * values).round()  # with zeros of both signs
    counts = torch.randint(0, shape[2] + 1, shape[:2], generator=g)
    counts.view(-1)[0], counts.view(-1)[-1] = 0, shape[2]
    assert torch.equal(largest(values, counts), by_sorting(values, counts))


def test_an_example_by_hand() -> None:
    values = torch.tensor([[[1.0, -2.0, 3.0, 3.0], [-5.0, -4.0, -torch.inf, torch.inf]]])
    counts = torch.tensor([[1, 3]])
    assert largest(values, counts).tolist() == [[[0, 0, 1, 0], [1, 1, 0, 1]]]


def test_values_of_every_size() -> None:
    magnitudes = torch.tensor([1e-45, 1e-38, 1e-7, 1.0, 1.0000001, 3e38, torch.inf])
    values = torch.cat([-magnitudes.flip(0), torch.zeros(1), magnitudes]).view(1, 1, -1)
    for count in range(values.shape[2] + 1):
        expected = [0.0] * (values.shape[2] - count) + [1.0] * count
        assert largest(values, torch.tensor([[count]])).flatten().tolist() == expected


def test_nan_stays_with_its_row() -> None:
    values = torch.randn(3, 2, 50, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([[5, 9], [7, 7], [1, 50]])
    expected = largest(values, counts)
    spoilt = values.clone()
    spoilt[1] = torch.nan
    found = largest(spoilt, counts)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
