"""The matrix products, by either set of kernels, against what they are in the book."""

from __future__ import annotations

import pytest
import torch

from sparse_but_wrong.training import products

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("c", [1, 3])
def test_products(c: int) -> None:
    b, d, h = 37, 12, 9
    g = torch.Generator().manual_seed(0)
    x = torch.randn(b, d, generator=g)
    acts, error = torch.randn(c, b, h, generator=g), torch.randn(c, b, d, generator=g)
    W_enc, W_dec = torch.randn(c, d, h, generator=g), torch.randn(c, h, d, generator=g)
    b_enc, b_dec = torch.randn(c, h, generator=g), torch.randn(c, d, generator=g)
    out_dec, out_enc = torch.full((c, h, d), torch.nan), torch.full((c, d, h), torch.nan)
    products.outer(acts, error, out=out_dec)
    products.outer_shared(x, acts, out=out_enc)
    for i in range(c):
        for found, wanted in (
            (products.affine(x, W_enc, b_enc)[i], x @ W_enc[i] + b_enc[i]),
            (products.affine_minus(acts, W_dec, b_dec, x)[i], acts[i] @ W_dec[i] + b_dec[i] - x),
            (products.times_transposed(error, W_dec)[i], error[i] @ W_dec[i].T),
            (out_dec[i], acts[i].T @ error[i]),
            (out_enc[i], x.T @ acts[i]),
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
