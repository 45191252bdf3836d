"""Every sae_lens internal that the package touches, in one place.

The engine must end where sae_lens' own trainer would; whatever can be asked of sae_lens itself
(schedules, folding, metadata, its trainer for what we do not stack) is asked here, not rewritten.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import sae_lens
    from sae_lens.load_model import HookedProxyLM as HookedProxyLM
    from sae_lens.loading.pretrained_saes_directory import (
        PretrainedSAELookup as PretrainedSAELookup,
    )
    from sae_lens.saes.sae import TrainStepOutput
    from sae_lens.synthetic import (
        SyntheticModel as SyntheticModel,
        SyntheticModelConfig as SyntheticModelConfig,
    )
    from sae_lens.training.activation_scaler import ActivationScaler as ActivationScaler
    from sae_lens.training.sae_trainer import Evaluator as Evaluator, SAETrainer


_HOMES = {
    "ACTIVATION_WHITENING_FILENAME": "sae_lens.constants",
    "HookedProxyLM": "sae_lens.load_model",
    "load_model": "sae_lens.load_model",
    "get_conversion_loader_name": "sae_lens.loading.pretrained_sae_loaders",
    "get_gemma_2_config_from_hf": "sae_lens.loading.pretrained_sae_loaders",
    "sae_lens_huggingface_loader": "sae_lens.loading.pretrained_sae_loaders",
    "PretrainedSAELookup": "sae_lens.loading.pretrained_saes_directory",
    "get_pretrained_saes_directory": "sae_lens.loading.pretrained_saes_directory",
    "SAE_CLASS_REGISTRY": "sae_lens.registry",
    "SAE_TRAINING_CLASS_REGISTRY": "sae_lens.registry",
    "SAEMetadata": "sae_lens.saes.sae",
    "mse_loss": "sae_lens.saes.sae",
    "ClassificationMetricsCalculator": "sae_lens.synthetic",
    "SyntheticModel": "sae_lens.synthetic",
    "SyntheticModelConfig": "sae_lens.synthetic",
    "feature_uniqueness": "sae_lens.synthetic",
    "concat_and_batch_sequences": "sae_lens.tokenization_and_batching",
    "extract_stop_at_layer_from_tlens_hook_name": "sae_lens.util",
    "get_special_token_ids": "sae_lens.util",
}
"""Internals that other rooms take from here, and where sae_lens has them."""


def __getattr__(name: str) -> Any:
    # When first used: importing sae_lens takes seconds.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def _number(value: object) -> float:
    """A value of a config as a number; NaN where it is none, as is text that holds one."""
    is_number = hasattr(value, "__float__") and not isinstance(value, bool)
    return float(value) if is_number else math.nan  # pyright: ignore[reportArgumentType]


_LIMITS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "a whole number of at least 1": (
        "d_in d_sae",
        lambda value: hasattr(value, "__index__") and _number(value) >= 1,
    ),
    "a number above 0": (
        "k jumprelu_bandwidth target_l0",
        lambda value: 0 < _number(value) < math.inf,
    ),
    "a number above 0, or infinite": ("lp_norm", lambda value: _number(value) > 0),
    "a number of at least 0": (
        "l0_coefficient l1_coefficient aux_loss_coefficient pre_act_loss_coefficient "
        "l0_warm_up_steps l1_warm_up_steps topk_threshold_lr jumprelu_tanh_scale decoder_init_norm",
        lambda value: 0 <= _number(value) < math.inf,
    ),
    "a number": (
        "jumprelu_init_threshold residual_threshold",
        lambda value: math.isfinite(_number(value)),
    ),
}
"""What fields of sae_lens' training configs must be for anything to come of the training; sae_lens
looks at few of them."""

_MAY_BE_NONE = ("target_l0", "pre_act_loss_coefficient", "decoder_init_norm")


def why_not_config(cfg: sae_lens.TrainingSAEConfig) -> str | None:
    """The field that nobody could train with, and what it must be, in words; or None."""
    for wanted, (names, is_good) in _LIMITS.items():
        for name in names.split():
            value = getattr(cfg, name, None)
            is_there = hasattr(cfg, name) and not (value is None and name in _MAY_BE_NONE)
            if is_there and not is_good(value):
                return f"has {name} = {value!r}; it must be {wanted}"
    if getattr(cfg, "k", 0) > cfg.d_sae:
        return f"has k = {cfg.k:g}, but d_sae = {cfg.d_sae} latents; lower k"  # pyright: ignore[reportAttributeAccessIssue]
    return None


def in_words(sae: sae_lens.TrainingSAE[Any]) -> str:
    """What an SAE is and what sets its sparsity."""
    names = ["k"] if hasattr(sae.cfg, "k") else list(sae.get_coefficients())
    values = {name: sparsity(sae, name)[0] for name in names}
    fields = {k if k == "k" else f"{k}_coefficient": value for k, value in values.items()}
    return ", ".join([type(sae).__name__, *(f"{k} = {v:g}" for k, v in fields.items())])


def sparsity(sae: sae_lens.TrainingSAE[Any], name: str) -> tuple[float, float]:
    """What sets an SAE's sparsity, by sae_lens' name of it: (final value, warm-up steps)."""
    from sae_lens.saes.sae import TrainCoefficientConfig

    if name == "k":
        return float(sae.cfg.k), 0.0
    value = sae.get_coefficients()[name]
    if isinstance(value, TrainCoefficientConfig):
        return float(value.value), float(value.warm_up_steps)
    return float(value), 0.0


def set_sparsity(sae: sae_lens.TrainingSAE[Any], name: str, value: float) -> None:
    """Write into an SAE what sets its sparsity now, by sae_lens' name of it.

    A TopK SAE keeps a whole number of latents, so a fractional k is rounded down there. Where the
    config itself moves k, its own k stays: it says where the transition ends.
    """
    if name == "k":
        moves_k = getattr(sae.cfg, "k_transition", None) is not None
        k = int(value) if isinstance(sae.cfg.k, int) and not moves_k else value
        if not moves_k:
            sae.cfg.k = k
        sae.activation_fn.k = k  # pyright: ignore[reportFunctionMemberAccess]
    else:
        setattr(sae.cfg, f"{name}_coefficient", value)


def learning_rates(scheduler: str, lr: float, **settings: Any) -> Iterator[float]:
    """The learning rate of every step, read off sae_lens' own schedulers.

    The settings are arguments of sae_lens' ``get_lr_scheduler``.
    """
    from sae_lens.training.optim import get_lr_scheduler

    optimizer = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=lr)
    schedule = get_lr_scheduler(scheduler, optimizer=optimizer, lr=lr, **settings)
    while True:
        yield float(optimizer.param_groups[0]["lr"])
        # The scheduler warns unless the optimiser has stepped first; it has nothing to step.
        optimizer.step()
        schedule.step()


def make_trainer(
    sae: sae_lens.TrainingSAE[Any], settings: Mapping[str, Any]
) -> SAETrainer[Any, Any]:
    """sae_lens' own trainer for one SAE, to be stepped from outside.

    `settings` are fields of sae_lens' ``SAETrainerConfig``, device and logger aside.
    """
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    logger = LoggingConfig(log_to_wandb=False)
    config = SAETrainerConfig(**settings, device=str(sae.W_dec.device), logger=logger)
    return SAETrainer(config, sae, iter(()))


def record_training(sae: sae_lens.TrainingSAE[Any], l0: float | None, n_dead: int | None) -> None:
    """Write into an SAE's metadata what sae_lens' trainer writes there at the end of training."""
    from sae_lens import __version__

    sae.cfg.sae_lens_training_version = str(__version__)
    if l0 is not None and n_dead is not None:
        sae.cfg.metadata.l0 = l0
        sae.cfg.metadata.num_dead_features = n_dead


def inference_copy(sae: sae_lens.SAE[Any]) -> sae_lens.SAE[Any]:
    """An SAE as it is used: a BatchTopK SAE as the JumpReLU SAE that it is exported as.

    One that is for inference already comes back as it is.
    """
    import tempfile

    from sae_lens import SAE, TrainingSAE

    if not isinstance(sae, TrainingSAE):
        return sae
    # sae_lens makes the export only while it writes it.
    with tempfile.TemporaryDirectory() as place:
        sae.save_inference_model(place)
        return SAE.load_from_disk(place, device=str(sae.W_dec.device))


def training_class(cfg: object) -> type[sae_lens.TrainingSAE[Any]]:
    """The class of the SAEs that a config describes; a TypeError or ValueError says why none."""
    from sae_lens import TrainingSAEConfig
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

    name = type(cfg).__name__
    if not isinstance(cfg, TrainingSAEConfig):
        raise TypeError(
            f"a {name} describes no SAE that can be trained; give one of sae_lens' training "
            "configs, such as JumpReLUTrainingSAEConfig."
        )
    sae_class, config_class = SAE_TRAINING_CLASS_REGISTRY.get(cfg.architecture(), (None, None))
    if sae_class is None or config_class is None or not isinstance(cfg, config_class):
        raise ValueError(
            f"{name}, of the architecture {cfg.architecture()!r}, is not registered with sae_lens; "
            f"it knows {', '.join(SAE_TRAINING_CLASS_REGISTRY)}. Register others with "
            "sae_lens.register_sae_training_class."
        )
    return sae_class


def step_metrics(
    trainer: SAETrainer[Any, Any], output: TrainStepOutput, coefficients: dict[str, float]
) -> dict[str, float]:
    """What the training log keeps of a step that sae_lens' trainer took with some coefficients."""
    l0 = output.feature_acts.bool().float().sum(-1).to_dense().mean()
    metrics = {
        "loss": float(output.loss.detach()),
        **{name: float(value.detach()) for name, value in output.losses.items()},
        "l0": float(l0),
        "dead_latents": float(trainer.dead_neurons.sum()),
    }
    if len(coefficients) == 1:
        metrics["coefficient"] = next(iter(coefficients.values()))
    elif hasattr(trainer.sae.cfg, "k"):
        metrics["k"] = float(getattr(trainer.sae.activation_fn, "k", trainer.sae.cfg.k))
    return metrics


def fold(scaler: ActivationScaler, sae: sae_lens.TrainingSAE[Any]) -> None:
    """Fold a trainer's normalisation into its SAE, or a copy, as `fit` does in the end."""
    if scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if scaler.whitening is not None:
        sae.fold_activation_whitening(
            mean=scaler.whitening.mean,
            whitening_matrix=scaler.whitening.matrix,
            unwhitening_matrix=scaler.whitening.inverse_matrix,
        )


def complete(trainer: SAETrainer[Any, Any], sae: sae_lens.TrainingSAE[Any]) -> None:
    """Fold a trainer's normalisation into its SAE or a copy and record metadata, as `fit` does."""
    fold(trainer.activation_scaler, sae)
    l0, n_dead = None, None
    if trainer.n_frac_active_samples > 0:
        l0 = float(trainer.feature_sparsity.sum())
        n_dead = int(trainer.dead_neurons.sum())
    record_training(sae, l0, n_dead)
