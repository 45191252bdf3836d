"""`make test-gpu` runs this folder on a GPU; `make test` runs it on the CPU, as on a GPU."""

from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="Run tests/gpu on a CUDA GPU.")


def pytest_configure(config: pytest.Config) -> None:
    if _is_on_gpu(config) and not torch.cuda.is_available():
        raise pytest.UsageError("PyTorch finds no CUDA GPU here, so there is none to test on.")


def _is_on_gpu(config: pytest.Config) -> bool:
    # The option is known only where pytest is given this folder.
    return bool(config.getoption("--gpu", default=False))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """A GPU with --gpu; else the CPU, on which the code for GPUs runs."""
    if _is_on_gpu(request.config):
        return torch.device("cuda", 0)
    request.getfixturevalue("as_on_a_gpu")
    return torch.device("cpu")
