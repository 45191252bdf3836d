"""What is done with the trained SAEs of an experiment: measure, judge, draw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparse_but_wrong.experiments.verdict import Verdict
from sparse_but_wrong.metrics.projection_table import split_projections
from sparse_but_wrong.metrics.stream import StreamScore
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.runs.seeds import world_seed
from sparse_but_wrong.runs.spec import ExperimentSpec
from sparse_but_wrong.sae_lens_compat import inference_copy
from sparse_but_wrong.worlds.world import ToyWorld

if TYPE_CHECKING:
    import pandas as pd
    import sae_lens
    from matplotlib.figure import Figure


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


class Results:
    """What a run found: the tables, and the SAEs and samples they come from.

    Args:
        folder: of the run.
        spec: of the run.
        seed: of the run.
        device: where samples and SAEs are put.
        table: a row per SAE.
        curves: a row per SAE and logged step.
    """

    def __init__(
        self,
        folder: RunFolder,
        spec: ExperimentSpec,
        seed: int,
        device: str,
        table: pd.DataFrame,
        curves: pd.DataFrame,
        true_l0: Mapping[str, float],
    ) -> None:
        self.folder, self.spec, self.seed, self.device = folder, spec, seed, device
        self.table, self.curves = table, curves
        self.true_l0 = dict(true_l0)
        """Features active per sample over the evaluation samples, by toy world."""
        self.tables: dict[str, MeasuredTable] = {}
        """What the analysis measured, by name."""
        self.scores: dict[str, StreamScore] = {}
        """Of the SAEs on stored activations: all that was measured, by the SAE's name."""
        self.verdict = Verdict()
        """What the claim came to, once it is judged."""

    @property
    def projections(self) -> pd.DataFrame:
        """s_n of the SAEs of `table`: a column for each n."""
        return split_projections(self.table)[1]

    @property
    def only_world(self) -> str:
        """The name of the world, where there is one."""
        (name,) = self.spec.worlds
        return name

    def world(self, name: str) -> ToyWorld:
        """A toy world of the run."""
        return ToyWorld.load(self.folder.checked_world_path(name), self.device)

    def sae(self, sae_id: str) -> sae_lens.SAE[Any]:
        """A trained SAE as it is used: a BatchTopK SAE as the JumpReLU SAE it is exported as."""
        return inference_sae(self.folder, sae_id, self.device)

    def activations(self, world: str) -> Float[Tensor, "samples d_in"]:
        """The samples on which the SAEs of a toy world are scored."""
        return evaluation_samples(self.spec, self.world(world), world, self.seed)[0]


class Analysis(ABC):
    """What is measured, judged and drawn."""

    def check(self, spec: ExperimentSpec) -> None:  # noqa: B027 (most need nothing)
        """Refuse a spec that this cannot be done with, before anything is trained.

        Raises:
            ValueError: what is missing in the spec.
        """

    def measure(self, results: Results) -> dict[str, MeasuredTable]:
        """Tables besides that of results, by name."""
        del results
        return {}

    @abstractmethod
    def judge(self, results: Results) -> Verdict:
        """What the claim came to."""

    @abstractmethod
    def draw(self, results: Results) -> list[NamedFigure]:
        """The figures; the first with a caption is the overview."""


def inference_sae(folder: RunFolder, sae_id: str, device: str) -> sae_lens.SAE[Any]:
    """A finished SAE as it is used for inference."""
    return inference_copy(folder.load_sae(sae_id, device))


def evaluation_samples(
    spec: ExperimentSpec, world: ToyWorld, name: str, seed: int
) -> tuple[Float[Tensor, "samples d_in"], float]:
    """The activations on which every SAE of a world is scored, and the true L0 of those samples."""
    generator = torch.Generator(device=world.sampler.device).manual_seed(
        world_seed(seed, "evaluation", name)
    )
    features = world.sampler.sample(spec.evaluation_samples, generator)
    true_l0 = (features > 0).sum(1).float().mean().item()
    with torch.no_grad():
        return world.model.embed(features), true_l0
