"""What holds of the engine holds with the compiled step and with PyTorch's."""

from __future__ import annotations

import pytest

from sparse_but_wrong.training import compiled_step
from sparse_but_wrong.training.architectures import topk


@pytest.fixture(params=["compiled", "pytorch"])
def step(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What takes the steps of SAEs that both can step."""
    if request.param == "pytorch":
        monkeypatch.setattr(compiled_step, "kernels", lambda: None)
    elif compiled_step.kernels() is None:
        pytest.skip("this machine has no C++ compiler, so there is nothing compiled")
    return request.param


@pytest.fixture(params=["looking", "as on a GPU"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the largest values are found."""
    if request.param != "looking":
        monkeypatch.setattr(topk, "may_look", lambda _: False)
