"""A run and what was found in it, and what an experiment does with its trained SAEs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.experiments.verdict import Verdict, in_lines
from sparse_but_wrong.metrics.evaluation import Evaluation
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.runs.make import make_saes, world_seed
from sparse_but_wrong.runs.spec import ExperimentSpec, SAESpec
from sparse_but_wrong.sae_lens_compat import inference_copy
from sparse_but_wrong.worlds.world import ToyWorld

if TYPE_CHECKING:
    import pandas as pd
    import sae_lens
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RunSettings:
    """How to run a spec, apart from what it is."""

    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    """CPU threads; PyTorch's own number if left out."""

    progress: bool = True


@dataclass(frozen=True, eq=False)
class NamedFigure:
    """A figure and where it goes."""

    name: str
    """Its path below the run's `plots` folder, without suffix."""

    figure: Figure
    caption: str = ""
    """What the report says below it; figures without one are not in the report."""


@dataclass(frozen=True, eq=False)
class MeasuredTable:
    """A table besides that of results."""

    frame: pd.DataFrame
    caption: str


class RunSAEs(Mapping[str, Any]):
    """The trained SAEs of a run by id, each loaded when it is asked for.

    They are as used for inference: a BatchTopK SAE is the JumpReLU SAE that it is exported as.
    """

    def __init__(self, folder: RunFolder, device: str) -> None:
        self._folder, self._device = folder, device

    def __getitem__(self, sae_id: str) -> sae_lens.SAE[Any]:
        if sae_id not in set(self):
            raise KeyError(sae_id)
        return inference_copy(self._folder.load_sae(sae_id, self._device))

    def __iter__(self) -> Iterator[str]:
        return iter(self._folder.finished_saes())

    def __len__(self) -> int:
        return len(self._folder.finished_saes())


class Run:
    """A run of an experiment, and what was found once it is finished.

    Args:
        folder: of the run.
        spec: as it is run.
        settings: seed and device.
    """

    table: pd.DataFrame
    """A row per SAE: what sets it apart, and its metrics."""

    projections: pd.DataFrame
    """s_n^dec of the same SAEs, a column per n."""

    curves: pd.DataFrame
    """A row per SAE and logged step."""

    true_l0: dict[str, float]
    """Features active per sample over the evaluation samples, by toy world."""

    def __init__(self, folder: RunFolder, spec: ExperimentSpec, settings: RunSettings) -> None:
        self.folder, self.spec, self.settings = folder, spec, settings
        self.saes = RunSAEs(folder, settings.device)
        self.tables: dict[str, MeasuredTable] = {}
        """What the analysis measured, by name."""
        self.evaluations: list[Evaluation] = []
        """All that was measured of SAEs on stored activations."""
        self.verdict = Verdict()
        """Whether what the experiment claims was seen."""

    def __repr__(self) -> str:
        return "\n".join([self._title(), f"Claim: {self.spec.claim}", *in_lines(self.verdict)])

    def _repr_html_(self) -> str:
        lines = "".join(f"<li>{escape(line)}</li>" for line in in_lines(self.verdict))
        table = self.table.to_html(index=False, max_rows=40, max_cols=16, border=0)
        return (
            f"<p><b>{escape(self._title())}</b><br>Claim: {escape(self.spec.claim)}</p>"
            f"<ul>{lines}</ul>{table}"
        )

    def _title(self) -> str:
        outcome, n_saes = self.verdict.outcome, len(self.spec.saes)
        return f"{self.spec.title}: {outcome} ({n_saes} SAEs, {self.folder.path})"

    @property
    def only_world(self) -> str:
        """The name of the world, where there is one."""
        (name,) = self.spec.worlds
        return name

    def world(self, name: str) -> ToyWorld:
        """A toy world of the run."""
        return ToyWorld.load(self.folder.checked_world_path(name), self.settings.device)

    def samples(self, name: str) -> tuple[Float[Tensor, "samples d_in"], float]:
        """The activations on which the SAEs of a toy world are evaluated, and their true L0."""
        world = self.world(name)
        generator = torch.Generator(device=world.sampler.device).manual_seed(
            world_seed(self.settings.seed, "evaluation", name)
        )
        features = world.sampler.sample(self.spec.evaluation_samples, generator)
        true_l0 = (features > 0).sum(1).float().mean().item()
        with torch.no_grad():
            return world.model.embed(features), true_l0

    def trained(self, sae_id: str) -> sae_lens.TrainingSAE[Any]:
        """An SAE as it was trained; `saes` has it as it is used."""
        return self.folder.load_sae(sae_id, self.settings.device)

    def untrained(self, sae: SAESpec, world: ToyWorld) -> sae_lens.TrainingSAE[Any]:
        """An SAE as it was when its training began."""
        (made,) = make_saes(
            [sae], world.d_in, self.settings.seed, self.settings.device, world.model
        )
        return made


class Analysis(ABC):
    """What is measured, judged and drawn."""

    def check(self, spec: ExperimentSpec) -> None:  # noqa: B027 (built-in specs fit theirs)
        """Refuse a spec that this cannot be done with, before anything is trained.

        Raises:
            ValueError: what is missing in the spec.
        """

    def measure(self, run: Run) -> dict[str, MeasuredTable]:
        """Tables besides that of results, by name."""
        del run
        return {}

    @abstractmethod
    def judge(self, run: Run) -> Verdict:
        """Whether the claim was seen."""

    @abstractmethod
    def draw(self, run: Run) -> list[NamedFigure]:
        """The figures; the first with a caption is the overview."""


def rank_correlation(xs: Float[np.ndarray, " n"], ys: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation; NaN where one of the two is constant or not finite."""
    from scipy.stats import spearmanr

    if not np.isfinite([xs, ys]).all() or 0 in (np.ptp(xs), np.ptp(ys)):
        return math.nan
    return float(np.asarray(spearmanr(xs, ys))[0])
