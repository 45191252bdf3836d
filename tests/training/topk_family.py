"""Small SAEs of the three architectures that are told how many latents to keep."""

from __future__ import annotations

from typing import Any

from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)

from sparse_but_wrong.training.architectures.batchtopk import BatchTopK
from sparse_but_wrong.training.architectures.matryoshka import Matryoshka
from sparse_but_wrong.training.architectures.topk import TopK
from tests.training import oracle

ARCHITECTURES: dict[str, type[TopK]] = {
    "topk": TopK,
    "batchtopk": BatchTopK,
    "matryoshka": Matryoshka,
}


def make_sae(name: str, seed: int = 0, **changes: Any) -> TopKTrainingSAE:
    """An SAE that keeps 3 latents, whose weights and biases follow from a seed."""
    settings: dict[str, Any] = {"d_in": oracle.D_IN, "d_sae": oracle.D_SAE, "k": 3, **changes}
    if name == "topk":
        return oracle.seeded(TopKTrainingSAE(TopKTrainingSAEConfig(**settings)), seed)
    if name == "batchtopk":
        return oracle.seeded(BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**settings)), seed)
    settings = {"matryoshka_widths": [3, 6, settings["d_sae"]], **settings}
    config = MatryoshkaBatchTopKTrainingSAEConfig(**settings)
    return oracle.seeded(MatryoshkaBatchTopKTrainingSAE(config), seed)
