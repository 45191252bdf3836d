"""The matrix products, by either set of kernels, against what they are in the book."""

from __future__ import annotations

import pytest
import torch

from sparse_but_wrong.training import products

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.mark.parametrize("batched", [False, True], ids=["one by one", "batched, as on a GPU"])
@pytest.mark.parametrize("c", [1, 3])
def test_products(c: int, batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if batched:
        monkeypatch.setattr(products, "one_by_one", lambda _: False)
    b, d, h = 37, 12, 9
    g = torch.Generator().manual_seed(0)
    x = torch.randn(b, d, generator=g)
    acts, error = torch.randn(c, b, h, generator=g), torch.randn(c, b, d, generator=g)
    W_enc, W_dec = torch.randn(c, d, h, generator=g), torch.randn(c, h, d, generator=g)
    b_enc, b_dec = torch.randn(c, h, generator=g), torch.randn(c, d, generator=g)

    def nan(*shape: int) -> torch.Tensor:
        return torch.full((c, *shape), torch.nan)

    pre = products.affine(x, W_enc, b_enc, out=nan(b, h))
    minus = products.affine_minus(acts, W_dec, b_dec, x, out=nan(b, d))
    back = products.times_transposed(error, W_dec, out=nan(b, h))
    vector = products.times_vector(W_dec, b_dec)
    outer, outer_shared = nan(h, d), nan(d, h)
    products.outer(acts, error, out=outer)
    products.outer_shared(x, acts, out=outer_shared)
    for i in range(c):
        for found, wanted in (
            (pre[i], x @ W_enc[i] + b_enc[i]),
            (minus[i], acts[i] @ W_dec[i] + b_dec[i] - x),
            (back[i], error[i] @ W_dec[i].T),
            (vector[i], W_dec[i] @ b_dec[i]),
            (outer[i], acts[i].T @ error[i]),
            (outer_shared[i], x.T @ acts[i]),
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
