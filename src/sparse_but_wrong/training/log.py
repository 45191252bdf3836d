"""The training log: a few metrics per SAE, every so many steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparse_but_wrong.loggers import Logger, log_metrics

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class SAELog:
    """What was measured on one SAE while it trained.

    Each list has an entry per logged step. Columns: the losses by sae_lens' names, `loss` their
    sum, `l0` (latents active per sample of that batch), `dead_latents` (not fired within the
    dead-latent window), `grad_norm` (before clipping), `coefficient` or `k`, and `lr`.
    """

    trained_by: str
    """``engine``, or ``sae_lens`` where the SAE fell through to sae_lens' own trainer."""

    steps: list[int] = field(default_factory=list)
    columns: dict[str, list[float]] = field(default_factory=dict)
    diverged_at: int | None = None
    """The first step whose gradient was not finite (of those logged, under sae_lens' trainer)."""
    note: str | None = None
    """What the end of the run says about where L0 ended, in words; None where all is well."""

    def append(self, step: int, values: dict[str, float]) -> None:
        """Add the metrics of one step."""
        self.steps.append(step)
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value)
        looked_at = (values.get("loss", 0.0), values.get("grad_norm", 0.0))
        if self.diverged_at is None and not all(math.isfinite(value) for value in looked_at):
            self.diverged_at = step

    def state(self) -> dict[str, Tensor]:
        """The log as tensors, for a checkpoint."""
        # Numbered, because a file does not keep the order of what it holds.
        columns = {f"columns.{i:03d}.{name}": v for i, (name, v) in enumerate(self.columns.items())}
        tensors = {name: torch.tensor(v, dtype=torch.float64) for name, v in columns.items()}
        return {"steps": torch.tensor(self.steps, dtype=torch.int64), **tensors}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue a log from a checkpoint."""
        self.steps = state["steps"].tolist()
        columns = (name for name in sorted(state) if name.startswith("columns."))
        self.columns = {name.split(".", 2)[2]: state[name].tolist() for name in columns}


@dataclass
class TrainingLog:
    """The logs of all SAEs of a run, in the caller's order."""

    saes: list[SAELog]

    def to_frame(self) -> pd.DataFrame:
        """A long table: a row per SAE and logged step; `sae` is the index in the caller's list."""
        import pandas as pd

        frames = [{"sae": i, "step": log.steps, **log.columns} for i, log in enumerate(self.saes)]
        return pd.concat(map(pd.DataFrame, frames), ignore_index=True) if frames else pd.DataFrame()


class LogReporter:
    """Hands a log to a logger as it grows: once per step, the metrics of all SAEs that have it.

    Args:
        names: of the SAEs; a metric is called ``name/metric``.
    """

    def __init__(self, log: TrainingLog, names: Sequence[str], logger: Logger) -> None:
        self.log, self.names, self.logger = log, names, logger
        # What a run that is resumed has logged already was reported before.
        self._n_done = [len(of_sae.steps) for of_sae in log.saes]

    def report(self, end: float = math.inf) -> None:
        """Hand over what is new of the steps before `end`, which all SAEs have finished."""
        due: dict[int, dict[str, float]] = {}
        for i, (name, of_sae) in enumerate(zip(self.names, self.log.saes, strict=True)):
            while self._n_done[i] < len(of_sae.steps) and of_sae.steps[self._n_done[i]] < end:
                at = self._n_done[i]
                metrics = due.setdefault(of_sae.steps[at], {})
                metrics |= {f"{name}/{metric}": v[at] for metric, v in of_sae.columns.items()}
                self._n_done[i] += 1
        for step in sorted(due):
            log_metrics(self.logger, due[step], step)
