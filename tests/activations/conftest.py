"""A tiny language model, made once, and caches of its activations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparse_but_wrong.activations.cache import cache_activations
from sparse_but_wrong.activations.language_model import LanguageModel, open_language_model
from sparse_but_wrong.activations.texts import Text, read_text
from tests.activations.caches import Written
from tests.activations.tiny_model import make_tiny_model, write_text

# Three batches of 3 sequences in a shard: 9 × (16 − 1) samples.
SMALL = {
    "n_tokens": 600,
    "context_size": 16,
    "batch_size": 3,
    "samples_per_shard": 130,
    "dtype": "float32",
    "skip_positions": 1,
}

Make = Callable[..., Written]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model that `make_tiny_model` makes; not to be written to."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def model(tiny_model: Path) -> LanguageModel:
    """That model, with the residual stream after its first layer."""
    return open_language_model(str(tiny_model), "model.layers.0")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """Five documents of 200 words that the model knows."""
    return read_text([write_text(tmp_path_factory.mktemp("text"))])


@pytest.fixture
def make(model: LanguageModel, text: Text, tmp_path: Path) -> Make:
    """Writes the cache `name`; arguments other than those of `SMALL` are given by name."""

    def make_(name: str = "cache", **changes: Any) -> Written:
        said: list[str] = []
        options: dict[str, Any] = {"model": model, "text": text, **SMALL, **changes}
        cache_activations(out=tmp_path / name, log=said.append, **options)
        return Written(tmp_path / name, said)

    return make_
