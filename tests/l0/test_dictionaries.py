"""Directions as a decoder gives them, and their codes, against other solvers and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from scipy.optimize import nnls

from sparse_but_wrong.l0.dictionaries import decoder_directions, sparse_codes
from tests.l0.worlds import samples, small_world, true_directions


def unit_rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def test_orthogonal_directions_by_hand() -> None:
    # Projections less the penalty, cut off at 0.
    x = torch.tensor([[3.0, 0.4, -2.0], [0.0, 0.1, 1.0]])
    codes = sparse_codes(x, torch.eye(3), 0.5, 50)
    torch.testing.assert_close(codes, torch.tensor([[2.5, 0.0, 0.0], [0.0, 0.0, 0.5]]))


def test_overlap_is_not_counted_twice() -> None:
    # x is the first direction alone; the second, at 60 degrees, must stay silent.
    rows = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5]])
    codes = sparse_codes(torch.tensor([[2.0, 0.0]]), rows, 1e-4, 500)
    torch.testing.assert_close(codes, torch.tensor([[2.0, 0.0]]), atol=1e-3, rtol=0)
    assert float((torch.tensor([[2.0, 0.0]]) @ rows.T)[0, 1]) == 1.0


def test_equals_non_negative_least_squares_where_the_penalty_vanishes() -> None:
    rows = unit_rows(12, 8)
    x = (
        torch.rand(20, 12, generator=torch.Generator().manual_seed(1)).mul_(2).sub_(1).relu_()
        @ rows
    )
    codes = sparse_codes(x, rows, 0.0, 5000)
    wanted = np.stack(
        [nnls(rows.numpy().T.astype(float), one.astype(float))[0] for one in x.numpy()]
    )
    # With 12 directions in 8 dimensions only the fit is unique.
    fits = codes.numpy() @ rows.numpy(), wanted @ rows.numpy()
    np.testing.assert_allclose(fits[0], fits[1], atol=2e-3)


def test_optimality() -> None:
    # At the optimum the slope is 0 where a code is positive and not negative where it is 0.
    rows, penalty = unit_rows(15, 10, seed=2), 0.1
    x = torch.randn(30, 10, generator=torch.Generator().manual_seed(3))
    codes = sparse_codes(x, rows, penalty, 3000)
    slope = (codes @ rows - x) @ rows.T + penalty
    assert float(slope[codes > 0].abs().max()) < 1e-4
    assert float(slope[codes == 0].min()) > -1e-4
    assert 0 < int((codes > 0).sum()) < codes.numel()


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
