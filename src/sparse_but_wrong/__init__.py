"""Find the L0 at which a sparse autoencoder learns the true features.

The names below are imported when first used, so that ``import sparse_but_wrong`` stays fast.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sparse_but_wrong.registration import register_with_sae_lens

if TYPE_CHECKING:
    from sparse_but_wrong.activations.cache import cache_activations as cache_activations
    from sparse_but_wrong.activations.language_model import (
        open_language_model as open_language_model,
    )
    from sparse_but_wrong.activations.shuffled import ShuffledActivations as ShuffledActivations
    from sparse_but_wrong.activations.stored import open_activations as open_activations
    from sparse_but_wrong.enchanced_batch_topk_sae import (
        EnchancedBatchTopKTrainingSAE as EnchancedBatchTopKTrainingSAE,
    )
    from sparse_but_wrong.enchanced_batch_topk_sae import (
        EnhancedBatchTopKTrainingSAEConfig as EnhancedBatchTopKTrainingSAEConfig,
    )
    from sparse_but_wrong.figures.published import (
        plot_sae_feat_cos_sims as plot_sae_feat_cos_sims,
    )
    from sparse_but_wrong.figures.published import (
        plot_sae_feat_cos_sims_seaborn as plot_sae_feat_cos_sims_seaborn,
    )
    from sparse_but_wrong.figures.recommendation import plot_recommendation as plot_recommendation
    from sparse_but_wrong.figures.sweep import plot_projections as plot_projections
    from sparse_but_wrong.l0.find import FindOptions as FindOptions
    from sparse_but_wrong.l0.find import find_l0 as find_l0
    from sparse_but_wrong.l0.recommend import L0Recommendation as L0Recommendation
    from sparse_but_wrong.l0.recommend import recommend_l0 as recommend_l0
    from sparse_but_wrong.l0.sweep import measure_sweep as measure_sweep
    from sparse_but_wrong.metrics.evaluate import Evaluation as Evaluation
    from sparse_but_wrong.metrics.evaluate import Evaluations as Evaluations
    from sparse_but_wrong.metrics.evaluate import evaluate as evaluate
    from sparse_but_wrong.metrics.projections import (
        decoder_projection_curve as decoder_projection_curve,
    )
    from sparse_but_wrong.metrics.score import score_sae as score_sae
    from sparse_but_wrong.metrics.stream import measure_stream as measure_stream
    from sparse_but_wrong.nth_decoder_projection import (
        nth_decoder_projection as nth_decoder_projection,
    )
    from sparse_but_wrong.saes.load import load_sae as load_sae
    from sparse_but_wrong.training.controls import KTransition as KTransition
    from sparse_but_wrong.training.controls import TargetL0 as TargetL0
    from sparse_but_wrong.training.loop import Snapshot as Snapshot
    from sparse_but_wrong.training.loop import train_saes as train_saes
    from sparse_but_wrong.training.make import make_saes as make_saes
    from sparse_but_wrong.training.options import TrainOptions as TrainOptions
    from sparse_but_wrong.training.toy_sae import train_toy_sae as train_toy_sae
    from sparse_but_wrong.worlds.activations import ToyActivations as ToyActivations
    from sparse_but_wrong.worlds.sampler import FeatureSampler as FeatureSampler
    from sparse_but_wrong.worlds.toy_model import ToyModel as ToyModel
    from sparse_but_wrong.worlds.training_batch import (
        generate_random_correlation_matrix as generate_random_correlation_matrix,
    )
    from sparse_but_wrong.worlds.training_batch import (
        get_training_batch as get_training_batch,
    )

_HOMES = {
    "EnchancedBatchTopKTrainingSAE": "sparse_but_wrong.enchanced_batch_topk_sae",
    "EnhancedBatchTopKTrainingSAEConfig": "sparse_but_wrong.enchanced_batch_topk_sae",
    "Evaluation": "sparse_but_wrong.metrics.evaluate",
    "Evaluations": "sparse_but_wrong.metrics.evaluate",
    "FeatureSampler": "sparse_but_wrong.worlds.sampler",
    "FindOptions": "sparse_but_wrong.l0.find",
    "KTransition": "sparse_but_wrong.training.controls",
    "L0Recommendation": "sparse_but_wrong.l0.recommend",
    "ShuffledActivations": "sparse_but_wrong.activations.shuffled",
    "Snapshot": "sparse_but_wrong.training.loop",
    "TargetL0": "sparse_but_wrong.training.controls",
    "ToyActivations": "sparse_but_wrong.worlds.activations",
    "ToyModel": "sparse_but_wrong.worlds.toy_model",
    "TrainOptions": "sparse_but_wrong.training.options",
    "cache_activations": "sparse_but_wrong.activations.cache",
    "decoder_projection_curve": "sparse_but_wrong.metrics.projections",
    "evaluate": "sparse_but_wrong.metrics.evaluate",
    "find_l0": "sparse_but_wrong.l0.find",
    "generate_random_correlation_matrix": "sparse_but_wrong.worlds.training_batch",
    "get_training_batch": "sparse_but_wrong.worlds.training_batch",
    "load_sae": "sparse_but_wrong.saes.load",
    "make_saes": "sparse_but_wrong.training.make",
    "measure_stream": "sparse_but_wrong.metrics.stream",
    "measure_sweep": "sparse_but_wrong.l0.sweep",
    "nth_decoder_projection": "sparse_but_wrong.nth_decoder_projection",
    "open_activations": "sparse_but_wrong.activations.stored",
    "open_language_model": "sparse_but_wrong.activations.language_model",
    "plot_projections": "sparse_but_wrong.figures.sweep",
    "plot_recommendation": "sparse_but_wrong.figures.recommendation",
    "plot_sae_feat_cos_sims": "sparse_but_wrong.figures.published",
    "plot_sae_feat_cos_sims_seaborn": "sparse_but_wrong.figures.published",
    "recommend_l0": "sparse_but_wrong.l0.recommend",
    "score_sae": "sparse_but_wrong.metrics.score",
    "train_saes": "sparse_but_wrong.training.loop",
    "train_toy_sae": "sparse_but_wrong.training.toy_sae",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        """Keep a name that is both a submodule's and a function's for the function.

        Importing a submodule sets it on its package, so that ``nth_decoder_projection`` would be
        the one or the other by what was imported before. The function has itself as an attribute,
        so that it also does where the module is meant.
        """
        if name in _HOMES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
register_with_sae_lens()
