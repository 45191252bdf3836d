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
    from sparse_but_wrong.activations.loss_text import open_loss_text as open_loss_text
    from sparse_but_wrong.activations.shuffled import ShuffledActivations as ShuffledActivations
    from sparse_but_wrong.activations.stored import open_activations as open_activations
    from sparse_but_wrong.activations.task_cache import (
        cache_task_activations as cache_task_activations,
        open_task_activations as open_task_activations,
    )
    from sparse_but_wrong.activations.tasks import read_tasks as read_tasks
    from sparse_but_wrong.activations.tokens import open_decoder as open_decoder
    from sparse_but_wrong.api import (
        FoundL0 as FoundL0,
        find_l0 as find_l0,
        recommend_l0 as recommend_l0,
    )
    from sparse_but_wrong.enchanced_batch_topk_sae import (
        EnchancedBatchTopKTrainingSAE as EnchancedBatchTopKTrainingSAE,
        EnhancedBatchTopKTrainingSAEConfig as EnhancedBatchTopKTrainingSAEConfig,
    )
    from sparse_but_wrong.experiments.runner import run_experiment as run_experiment
    from sparse_but_wrong.figures.published import (
        plot_sae_feat_cos_sims as plot_sae_feat_cos_sims,
        plot_sae_feat_cos_sims_seaborn as plot_sae_feat_cos_sims_seaborn,
    )
    from sparse_but_wrong.figures.recommendation import plot_recommendation as plot_recommendation
    from sparse_but_wrong.figures.sweep import plot_projections as plot_projections
    from sparse_but_wrong.l0.monitor import L0Monitor as L0Monitor
    from sparse_but_wrong.l0.options import FindOptions as FindOptions
    from sparse_but_wrong.l0.recommend import L0Recommendation as L0Recommendation
    from sparse_but_wrong.l0.sweep import evaluate_sweep as evaluate_sweep
    from sparse_but_wrong.metrics.evaluate import evaluate as evaluate
    from sparse_but_wrong.metrics.evaluation import (
        Evaluation as Evaluation,
        Evaluations as Evaluations,
    )
    from sparse_but_wrong.metrics.evidence import Evidence as Evidence
    from sparse_but_wrong.metrics.examples import (
        choose_latents as choose_latents,
        top_examples as top_examples,
    )
    from sparse_but_wrong.metrics.model_loss import model_loss as model_loss
    from sparse_but_wrong.metrics.probing import probe as probe
    from sparse_but_wrong.nth_decoder_projection import (
        nth_decoder_projection as nth_decoder_projection,
    )
    from sparse_but_wrong.runs.sweep import Sweep as Sweep, train_sweep as train_sweep
    from sparse_but_wrong.saes.load import load_sae as load_sae
    from sparse_but_wrong.training.controls import KTransition as KTransition, TargetL0 as TargetL0
    from sparse_but_wrong.training.loop import train_saes as train_saes
    from sparse_but_wrong.training.make import (
        init_b_dec_to_mean as init_b_dec_to_mean,
        make_saes as make_saes,
    )
    from sparse_but_wrong.training.options import TrainOptions as TrainOptions
    from sparse_but_wrong.training.state import Snapshot as Snapshot
    from sparse_but_wrong.training.toy_sae import train_toy_sae as train_toy_sae
    from sparse_but_wrong.worlds.correlations import (
        create_correlation_matrix as create_correlation_matrix,
        firing_correlation as firing_correlation,
        generate_random_correlation_matrix as generate_random_correlation_matrix,
        summarize_correlation_matrix as summarize_correlation_matrix,
    )
    from sparse_but_wrong.worlds.features import (
        FeatureSampler as FeatureSampler,
        get_training_batch as get_training_batch,
    )
    from sparse_but_wrong.worlds.synthetic import SyntheticWorld as SyntheticWorld
    from sparse_but_wrong.worlds.toy_model import ToyModel as ToyModel
    from sparse_but_wrong.worlds.world import ToyWorld as ToyWorld

_NAMES = {
    "activations.cache": "cache_activations",
    "activations.language_model": "open_language_model",
    "activations.loss_text": "open_loss_text",
    "activations.shuffled": "ShuffledActivations",
    "activations.stored": "open_activations",
    "activations.tokens": "open_decoder",
    "activations.task_cache": "cache_task_activations open_task_activations",
    "activations.tasks": "read_tasks",
    "api": "FoundL0 find_l0 recommend_l0",
    "enchanced_batch_topk_sae": "EnchancedBatchTopKTrainingSAE EnhancedBatchTopKTrainingSAEConfig",
    "experiments.runner": "run_experiment",
    "figures.published": "plot_sae_feat_cos_sims plot_sae_feat_cos_sims_seaborn",
    "figures.recommendation": "plot_recommendation",
    "figures.sweep": "plot_projections",
    "l0.monitor": "L0Monitor",
    "l0.options": "FindOptions",
    "l0.recommend": "L0Recommendation",
    "l0.sweep": "evaluate_sweep",
    "metrics.evaluate": "evaluate",
    "metrics.evaluation": "Evaluation Evaluations",
    "metrics.evidence": "Evidence",
    "metrics.examples": "choose_latents top_examples",
    "metrics.model_loss": "model_loss",
    "metrics.probing": "probe",
    "nth_decoder_projection": "nth_decoder_projection",
    "runs.sweep": "Sweep train_sweep",
    "saes.load": "load_sae",
    "training.controls": "KTransition TargetL0",
    "training.loop": "train_saes",
    "training.make": "init_b_dec_to_mean make_saes",
    "training.options": "TrainOptions",
    "training.state": "Snapshot",
    "training.toy_sae": "train_toy_sae",
    "worlds.correlations": "create_correlation_matrix firing_correlation "
    "generate_random_correlation_matrix summarize_correlation_matrix",
    "worlds.features": "FeatureSampler get_training_batch",
    "worlds.toy_model": "ToyModel",
    "worlds.synthetic": "SyntheticWorld",
    "worlds.world": "ToyWorld",
}
"""Public names by the module that has them."""

_HOMES = {
    name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names.split()
}

__version__ = "0.2.0"
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
