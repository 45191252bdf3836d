"""Find the L0 at which a sparse autoencoder learns the true features.

The names below are imported when first used, so that ``import sparse_but_wrong`` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.registration import register_with_sae_lens

if TYPE_CHECKING:
    from sparse_but_wrong.activations.cache import cache_activations as cache_activations
    from sparse_but_wrong.activations.in_order import contiguous_batches as contiguous_batches
    from sparse_but_wrong.activations.language_model import (
        open_language_model as open_language_model,
    )
    from sparse_but_wrong.activations.shuffled import ShuffledActivations as ShuffledActivations
    from sparse_but_wrong.activations.stored import open_activations as open_activations
    from sparse_but_wrong.activations.toy import ToyActivations as ToyActivations
    from sparse_but_wrong.diagnostics.projections import (
        decoder_projection_curve as decoder_projection_curve,
    )
    from sparse_but_wrong.diagnostics.score import score_sae as score_sae
    from sparse_but_wrong.diagnostics.stream import measure_stream as measure_stream
    from sparse_but_wrong.l0.find import FindOptions as FindOptions
    from sparse_but_wrong.l0.find import find_l0 as find_l0
    from sparse_but_wrong.l0.recommend import L0Recommendation as L0Recommendation
    from sparse_but_wrong.l0.recommend import recommend_l0 as recommend_l0
    from sparse_but_wrong.l0.sweep import measure_sweep as measure_sweep
    from sparse_but_wrong.saes.load import load_sae as load_sae
    from sparse_but_wrong.toy_models.sampler import FeatureSampler as FeatureSampler
    from sparse_but_wrong.toy_models.toy_model import ToyModel as ToyModel
    from sparse_but_wrong.training.controls import KTransition as KTransition
    from sparse_but_wrong.training.controls import TargetL0 as TargetL0
    from sparse_but_wrong.training.loop import Snapshot as Snapshot
    from sparse_but_wrong.training.loop import train_saes as train_saes
    from sparse_but_wrong.training.make import make_saes as make_saes
    from sparse_but_wrong.training.options import TrainOptions as TrainOptions

_HOMES = {
    "FeatureSampler": "sparse_but_wrong.toy_models.sampler",
    "FindOptions": "sparse_but_wrong.l0.find",
    "KTransition": "sparse_but_wrong.training.controls",
    "L0Recommendation": "sparse_but_wrong.l0.recommend",
    "ShuffledActivations": "sparse_but_wrong.activations.shuffled",
    "Snapshot": "sparse_but_wrong.training.loop",
    "TargetL0": "sparse_but_wrong.training.controls",
    "ToyActivations": "sparse_but_wrong.activations.toy",
    "ToyModel": "sparse_but_wrong.toy_models.toy_model",
    "TrainOptions": "sparse_but_wrong.training.options",
    "cache_activations": "sparse_but_wrong.activations.cache",
    "contiguous_batches": "sparse_but_wrong.activations.in_order",
    "decoder_projection_curve": "sparse_but_wrong.diagnostics.projections",
    "find_l0": "sparse_but_wrong.l0.find",
    "load_sae": "sparse_but_wrong.saes.load",
    "make_saes": "sparse_but_wrong.training.make",
    "measure_stream": "sparse_but_wrong.diagnostics.stream",
    "measure_sweep": "sparse_but_wrong.l0.sweep",
    "open_activations": "sparse_but_wrong.activations.stored",
    "open_language_model": "sparse_but_wrong.activations.language_model",
    "recommend_l0": "sparse_but_wrong.l0.recommend",
    "score_sae": "sparse_but_wrong.diagnostics.score",
    "train_saes": "sparse_but_wrong.training.loop",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__


register_with_sae_lens()
