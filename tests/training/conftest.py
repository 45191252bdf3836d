"""What holds of the engine holds with every set of kernels it may find on a machine."""

from __future__ import annotations

import pytest

from sparse_but_wrong.training import products
from sparse_but_wrong.training.native import bindings


@pytest.fixture(params=["compiled", "oneDNN", "bmm"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernels that a test runs with: those a fast machine has, and those every machine has."""
    if request.param == "compiled":
        if bindings.kernels() is None:
            pytest.skip("this machine has no C++ compiler, so there is nothing compiled")
        return request.param
    monkeypatch.setattr(bindings, "kernels", lambda: None)
    if request.param == "bmm":
        monkeypatch.setattr(products, "_linear", None)
    elif products._linear is None:
        pytest.skip("this PyTorch has no oneDNN linear operator, so there is only one set")
    return request.param
