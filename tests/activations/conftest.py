"""A tiny language model, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.activations.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model that `make_tiny_model` makes; not to be written to."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_model"))
