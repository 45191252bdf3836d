from __future__ import annotations

import math

import pytest
import torch

from sparse_but_wrong.nth_decoder_projection import nth_decoder_projection
from tests.metrics.evaluated import make_sae


def test_worked_example_on_the_decoder_as_it_is():
    sae = make_sae(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), b_dec=torch.tensor([1.0, 0.0]))
    x = torch.tensor([[4.0, -1.0], [1.0, 7.0], [2.0, 0.5]])
    # Z = [[6, -5], [0, 35], [2, 2.5]], from the top 35, 6, 2.5, 2, 0, -5; B = 3.
    for n, expected in enumerate((35, 2)):
        value = nth_decoder_projection(x, sae, n)
        assert (value.item(), value.shape, value.dtype) == (expected, (), torch.float32)
        assert not value.requires_grad


def test_leading_dimensions_all_count_as_samples():
    generator = torch.Generator().manual_seed(0)
    sae = make_sae(torch.randn(5, 4, generator=generator))
    x = torch.randn(2, 3, 7, 4, generator=generator)
    flat = ((x.reshape(42, 4) @ sae.W_dec.T).flatten()).sort(descending=True).values
    for n in range(5):
        torch.testing.assert_close(nth_decoder_projection(x, sae, n), flat[n * 42].detach())
    one = nth_decoder_projection(x[0, 0, 0], sae, 0)
    torch.testing.assert_close(one, (x[0, 0, 0] @ sae.W_dec.T).max().detach())


def with_nan():
    x = torch.ones(2, 2, 3)
    x[1, 1, 1] = math.nan
    return x


@pytest.mark.parametrize(
    ("x", "n", "message"),
    [
        *((torch.ones(4, 3), n, rf"n = {n} is outside \[0, 3\)") for n in (-1, 3, 4)),
        (torch.ones(2, 4), 0, r"shape \[samples, 3\].*shape \[2, 4\]"),
        (torch.tensor(1.0), 0, r"shape \[samples, 3\]"),
        (torch.ones(2, 0, 3), 0, "at least one sample"),
        (with_nan(), 0, "first at sample 3, dimension 1"),
    ],
)
def test_refuses_what_it_cannot_measure(x, n, message):
    with pytest.raises(ValueError, match=message):
        nth_decoder_projection(x, make_sae(torch.eye(3)), n)
