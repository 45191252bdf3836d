"""Fixtures that every test may use."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Reference figures and a notebook that tests compare with."""
    return Path(__file__).resolve().parent / "data"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tests are small; more threads per operation only make them wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers_drawn() -> None:
    """So that what fails once fails always, also where a test or a type check, which looks at one
    item of a sequence drawn with `random`, is not seeded itself."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole stack as one chunk, its steps replayed, nothing compiled and no look at any value,
    on the CPU."""
    from sparse_but_wrong.l0 import codes
    from sparse_but_wrong.training import compiled_step, torch_step
    from sparse_but_wrong.training.architectures import topk

    monkeypatch.setattr(compiled_step, "kernels", lambda: None)
    monkeypatch.setattr(codes, "kernels", lambda: None)
    monkeypatch.setattr(torch_step, "is_gpu", lambda _: True)
    monkeypatch.setattr(topk, "may_look", lambda _: False)
