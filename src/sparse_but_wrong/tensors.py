"""What every room shares: the default device, and cosine similarity between columns."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


DEFAULT_DEVICE_STR: str = _default_device()
DEFAULT_DEVICE: torch.device = torch.device(DEFAULT_DEVICE_STR)


def cos_sims(mat1: Float[Tensor, "dim n"], mat2: Float[Tensor, "dim m"]) -> Float[Tensor, "n m"]:
    """Cosine similarities between the columns of two matrices.

    Args:
        mat1: shape [dim, n].
        mat2: shape [dim, m].
    Returns:
        shape [n, m]; entry (i, j) compares column i of `mat1` with column j of `mat2`. A column of
        zeros has similarity 0 with everything.
    Raises:
        ValueError: columns of different length.
    """
    if mat1.shape[0] != mat2.shape[0]:
        raise ValueError(
            f"cos_sims compares columns: mat1 has columns of length {mat1.shape[0]}, "
            f"mat2 of length {mat2.shape[0]}. Transpose the one whose vectors are rows."
        )
    return _unit_columns(mat1).T @ _unit_columns(mat2)


def _unit_columns(matrix: Tensor) -> Tensor:
    largest = matrix.abs().amax(dim=0, keepdim=True)
    # Of such columns the squares leave the range of float32, and shorter ones than 1e-12 are
    # divided by 1e-12; all others are left to the last bit as they are.
    is_extreme = (largest > 0) & ((largest < 1e-12) | (largest > 1e18))
    unit = torch.nn.functional.normalize(matrix / torch.where(is_extreme, largest, 1), dim=0)
    # In half precision 1e-12 is itself 0, and zeros would be divided by it.
    return torch.where(largest == 0, 0, unit)
