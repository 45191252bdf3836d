"""Where metrics go, besides into tables: wandb, TensorBoard, or whatever can do the like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class MetricsLogger(Protocol):
    """Takes metrics by name at a step; a `wandb.Run` does."""

    def log(self, data: dict[str, Any], /, step: int) -> object:
        """Take the metrics of a step. Steps never go back."""
        ...


@runtime_checkable
class ScalarWriter(Protocol):
    """Takes one metric at a time; a `torch.utils.tensorboard.SummaryWriter` does."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Take one metric of a step."""
        ...


Logger = MetricsLogger | ScalarWriter


def check_logger(logger: object) -> None:
    """Raise a TypeError for what takes no metrics, before hours of training."""
    if not isinstance(logger, Logger):
        raise TypeError(
            f"A {type(logger).__name__} is no logger; give a wandb.Run, a TensorBoard "
            "SummaryWriter, or an object with a method log(metrics, step=…)."
        )


def log_metrics(logger: Logger, metrics: Mapping[str, float], step: int) -> None:
    """Hand the metrics of a step to a logger."""
    if isinstance(logger, MetricsLogger):
        logger.log(dict(metrics), step=step)
        return
    for name, value in metrics.items():
        logger.add_scalar(name, value, step)
