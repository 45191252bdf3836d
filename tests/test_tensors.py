from __future__ import annotations

import pytest
import torch

from sparse_but_wrong.tensors import cos_sims

COLUMNS = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [-1.0, 1.0]]).T


def test_compares_columns_and_leaves_zeros_zero() -> None:
    expected = [[1.0, 0.6, 0.0, 0.2**0.5 / 10**0.5], [0.0, 0.0, 0.0, 0.0]]
    cosines = cos_sims(COLUMNS, COLUMNS)
    assert torch.allclose(cosines[0], torch.tensor(expected[0]), atol=1e-6)
    assert torch.equal(cosines[2], torch.zeros(4))


# Below 1e-12 torch's normalize divides by 1e-12 instead; from 1e-20 on squares leave float32.
@pytest.mark.parametrize("length", [1e-11, 1e-13, 1e-20, 1e-30, 1e-38, 1e20, 1e37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_cosine_does_not_depend_on_length(length: float, dtype: torch.dtype) -> None:
    columns = COLUMNS.to(dtype)
    expected = cos_sims(columns, columns)
    assert torch.allclose(cos_sims(columns * length, columns), expected, atol=1e-2)
    scaled = (COLUMNS.double() * length).to(dtype)
    if dtype != torch.bfloat16:
        assert torch.allclose(cos_sims(scaled, scaled), expected, atol=1e-6)


def test_half_precision_zeros_stay_zero() -> None:
    columns = COLUMNS.half()
    assert torch.equal(cos_sims(columns, columns)[2], torch.zeros(4, dtype=torch.half))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_not_a_number(value: float) -> None:
    columns = COLUMNS.clone()
    columns[0, 0] = value
    cosines = cos_sims(columns, COLUMNS)
    assert cosines[0, :2].isnan().all()
    assert torch.equal(cosines[1:], cos_sims(COLUMNS, COLUMNS)[1:])


def test_usual_columns_are_normalised_as_ever() -> None:
    """To the last bit: diagnostics of earlier runs are to be met exactly."""
    generator = torch.Generator().manual_seed(0)
    mat1, mat2 = (torch.randn(20, n, generator=generator) for n in (7, 9))
    unit1, unit2 = (torch.nn.functional.normalize(mat, dim=0) for mat in (mat1, mat2))
    assert torch.equal(cos_sims(mat1, mat2), unit1.T @ unit2)
