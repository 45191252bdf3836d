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
    plus = products.plus_product(error, acts, W_dec, out=nan(b, d))
    back = products.times_transposed(error, W_dec, out=nan(b, h))
    vector = products.times_vector(W_dec, b_dec)
    outer, outer_shared = nan(h, d), nan(d, h)
    products.outer(acts, error, out=outer)
    products.outer_shared(x, acts, out=outer_shared)
    for i in range(c):
        for found, wanted in (
            (pre[i], x @ W_enc[i] + b_enc[i]),
            (minus[i], acts[i] @ W_dec[i] + b_dec[i] - x),
            (plus[i], error[i] + acts[i] @ W_dec[i]),
            (back[i], error[i] @ W_dec[i].T),
            (vector[i], W_dec[i] @ b_dec[i]),
            (outer[i], acts[i].T @ error[i]),
            (outer_shared[i], x.T @ acts[i]),
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batched", [False, True], ids=["one by one", "batched, as on a GPU"])
def test_products_of_some_of_the_latents(batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose activations lie apart in memory."""
    if batched:
        monkeypatch.setattr(products, "one_by_one", lambda _: False)
    c, b, d, h = 3, 37, 12, 9
    some = slice(2, 7)
    g = torch.Generator().manual_seed(0)
    acts, error = torch.randn(c, b, h, generator=g), torch.randn(c, b, d, generator=g)
    W_dec, b_dec = torch.randn(c, h, d, generator=g), torch.randn(c, d, generator=g)
    x, outer = torch.randn(b, d, generator=g), torch.zeros(c, h, d)
    less, right = acts[:, :, some], W_dec[:, some]

    minus = products.affine_minus(less, right, b_dec, x, out=torch.empty(c, b, d))
    plus = products.plus_product(error, less, right, out=torch.empty(c, b, d))
    back = products.times_transposed(error, right, out=torch.empty(c, b, 5))
    products.outer(less, error, out=outer[:, some])
    close = torch.testing.assert_close
    for i in range(c):
        close(minus[i], less[i] @ right[i] + b_dec[i] - x, rtol=1e-5, atol=1e-5)
        close(plus[i], error[i] + less[i] @ right[i], rtol=1e-5, atol=1e-5)
        close(back[i], error[i] @ right[i].T, rtol=1e-5, atol=1e-5)
        close(outer[i, some], less[i].T @ error[i], rtol=1e-5, atol=1e-5)
    assert not outer[:, :2].any()
    assert not outer[:, 7:].any()
