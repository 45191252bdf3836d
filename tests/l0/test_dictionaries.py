"""Directions as a decoder gives them, and their codes, against other solvers and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from scipy.optimize import nnls

from sparse_but_wrong.l0 import codes
from sparse_but_wrong.l0.codes import sparse_codes
from sparse_but_wrong.l0.dictionaries import decoder_directions
from tests.l0.worlds import known, random_rows


@pytest.mark.parametrize(
    ("x", "rows", "penalty", "wanted"),
    [
        # Orthogonal ones: projections less the penalty, cut off at 0.
        (
            [[3.0, 0.4, -2.0], [0.0, 0.1, 1.0]],
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            0.5,
            [[2.5, 0.0, 0.0], [0.0, 0.0, 0.5]],
        ),
        # x is the first direction alone; the second, at 60 degrees, must stay silent.
        ([[2.0, 0.0]], [[1.0, 0.0], [0.5, 0.75**0.5]], 1e-4, [[2.0, 0.0]]),
    ],
)
def test_codes_by_hand(x: list, rows: list, penalty: float, wanted: list) -> None:
    found = sparse_codes(torch.tensor(x), torch.tensor(rows), penalty)
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-3 * (penalty < 0.5), rtol=1e-6)


def test_equals_non_negative_least_squares_where_the_penalty_vanishes() -> None:
    rows = random_rows(12, 8)
    drawn = torch.rand(20, 12, generator=torch.Generator().manual_seed(1))
    x = (2 * drawn - 1).relu() @ rows
    found = sparse_codes(x, rows, 0.0)
    wanted = [nnls(rows.numpy().T.astype(float), one.astype(float))[0] for one in x.numpy()]
    # With 12 directions in 8 dimensions only the fit is unique.
    fits = found.numpy() @ rows.numpy(), np.stack(wanted) @ rows.numpy()
    np.testing.assert_allclose(fits[0], fits[1], atol=2e-3)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_optimality(is_compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # At the optimum the slope is 0 where a code is positive and not negative where it is 0.
    if is_compiled:
        assert codes.kernels() is not None
    else:
        monkeypatch.setattr(codes, "kernels", lambda: None)
    rows, penalty = random_rows(150, 100, seed=2), 0.1
    x = 3 * torch.randn(300, 100, generator=torch.Generator().manual_seed(3))
    found = sparse_codes(x, rows, penalty)
    slope = (found @ rows - x) @ rows.T + penalty
    # How far each would still move: a hundredth of the penalty at most.
    assert float((-slope).maximum(-found).abs().max()) < 1.05e-2 * penalty
    assert 0 < int((found > 0).sum()) < found.numel()


def test_codes_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(30, 40, seed=4)
    rows[0] = torch.nn.functional.normalize(0.6 * rows[1] + 0.8 * rows[2], dim=0)
    found = codes.codes_by_others(rows, 1e-3)
    assert float(found.diagonal().abs().max()) == 0
    torch.testing.assert_close(found[0] @ rows, rows[0], atol=5e-3, rtol=0)
    monkeypatch.setattr(codes, "kernels", lambda: None)
    torch.testing.assert_close(found, codes.codes_by_others(rows, 1e-3), atol=1e-3, rtol=0)


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
    true, x, _ = known(4_096)
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=30, d_sae=20, k=4))
    with torch.no_grad():
        sae.W_dec.copy_(true.rows)
        sae.b_dec.fill_(100.0)
    offset = torch.linspace(-5, 8, 30)
    plain, moved = decoder_directions(sae, x), decoder_directions(sae, x + offset)
    torch.testing.assert_close(moved.bias, plain.bias + offset, rtol=0, atol=1e-3)
    # Nearly that of the world, which has none, and not the SAE's own.
    assert float(plain.bias.norm()) < 0.2


@pytest.mark.parametrize("compiled", [True, False])
def test_codes_of_another_bias_are_a_start(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(codes, "kernels", lambda: None)
    true, x, _ = known(500)
    before = sparse_codes(x, true.rows, 0.01)
    moved = x - 0.05 * true.rows[0]
    kept = before.clone()
    warm = sparse_codes(moved, true.rows, 0.01, before)
    torch.testing.assert_close(warm, sparse_codes(moved, true.rows, 0.01), rtol=0, atol=1e-3)
    assert not torch.allclose(warm, before, atol=1e-3)
    assert torch.equal(before, kept)
