from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparse_but_wrong.nth_decoder_projection import nth_decoder_projection


def sae_with(W_dec: Tensor, b_dec: Tensor | None = None):
    from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig

    sae = JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(d_in=W_dec.shape[1], d_sae=W_dec.shape[0]))
    sae.W_dec.data.copy_(W_dec)
    sae.b_dec.data.copy_(torch.zeros(W_dec.shape[1]) if b_dec is None else b_dec)
    return sae


def test_worked_example_on_the_decoder_as_it_is():
    sae = sae_with(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.tensor([1.0, 0.0]))
    x = torch.tensor([[4.0, -1.0], [1.0, 7.0], [2.0, 0.5]])
    # Z = [[6, -5], [0, 35], [2, 2.5]], from the top 35, 6, 2.5, 2, 0, -5; B = 3.
    assert nth_decoder_projection(x, sae, 0).item() == 35
    assert nth_decoder_projection(x, sae, 1).item() == 2


def test_is_a_scalar_tensor_without_gradient():
    value = nth_decoder_projection(torch.ones(4, 3), sae_with(torch.eye(3)), 1)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert not value.requires_grad


def test_leading_dimensions_all_count_as_samples():
    generator = torch.Generator().manual_seed(0)
    sae = sae_with(torch.randn(5, 4, generator=generator))
    x = torch.randn(2, 3, 7, 4, generator=generator)
    flat = ((x.reshape(42, 4) @ sae.W_dec.T).flatten()).sort(descending=True).values
    for n in range(5):
        expected = flat[n * 42]
        torch.testing.assert_close(nth_decoder_projection(x, sae, n), expected.detach())
    one = nth_decoder_projection(x[0, 0, 0], sae, 0)
    torch.testing.assert_close(one, (x[0, 0, 0] @ sae.W_dec.T).max().detach())


@pytest.mark.parametrize("n", [-1, 3, 4])
def test_n_out_of_range(n):
    with pytest.raises(ValueError, match=rf"n = {n} is outside \[0, 3\)"):
        nth_decoder_projection(torch.ones(4, 3), sae_with(torch.eye(3)), n)


def test_refuses_what_it_cannot_measure():
    sae = sae_with(torch.eye(3))
    with pytest.raises(ValueError, match=r"shape \[\.\.\., 3\].*shape \[2, 4\]"):
        nth_decoder_projection(torch.ones(2, 4), sae, 0)
    with pytest.raises(ValueError, match="no samples"):
        nth_decoder_projection(torch.ones(2, 0, 3), sae, 0)
    x = torch.ones(2, 2, 3)
    x[1, 1, 1] = math.nan
    with pytest.raises(ValueError, match="first at sample 3, dimension 1"):
        nth_decoder_projection(x, sae, 0)
