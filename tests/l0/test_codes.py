"""Non-negative lasso codes, against answers by hand and against another solver."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls

from sparse_but_wrong.l0.dictionaries import sparse_codes


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
