"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference figures and published notebooks that lies beside a full checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the reference folder ../shared is not beside this checkout")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tests are small; more threads per operation only make them wait for each other."""
    torch.set_num_threads(1)
