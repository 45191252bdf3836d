"""A run and what was found in it, and what an experiment does with its trained SAEs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from sparse_but_wrong.experiments.verdict import Verdict, in_lines
from sparse_but_wrong.figures.training import training_curves
from sparse_but_wrong.loggers import Logger
from sparse_but_wrong.metrics.evaluation import Evaluation
from sparse_but_wrong.report.run import shown_images
from sparse_but_wrong.runs.folder import RunFolder
from sparse_but_wrong.runs.make import make_spec_saes, world_seed
from sparse_but_wrong.runs.spec import ExperimentSpec, SAESpec
from sparse_but_wrong.sae_lens_compat import inference_copy
from sparse_but_wrong.worlds.synthetic import load_world
from sparse_but_wrong.worlds.world import ToyWorld

if TYPE_CHECKING:
    import sae_lens


@dataclass(frozen=True)
class RunSettings:
    """How to run a spec, apart from what it is."""

    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    """CPU threads; PyTorch's own number if left out."""
    progress: bool = True
    logger: Logger | None = None
    """Is handed the training curves, world by world."""


Figures = dict[str, Figure | tuple[Figure, str]]
"""By their path below the run's `plots` folder, without suffix. With a caption, a figure is in the
report too; the first such is the overview."""


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
    """A run of an experiment, and what was found once it is finished."""

    def __init__(self, folder: RunFolder, spec: ExperimentSpec, settings: RunSettings) -> None:
        self.folder, self.spec, self.settings = folder, spec, settings
        self.saes = RunSAEs(folder, settings.device)
        self.table = pd.DataFrame()
        """A row per SAE: what sets it apart, and its metrics."""
        self.projections = pd.DataFrame()
        """s_n^dec of the same SAEs, a column per n."""
        self.curves = pd.DataFrame()
        """A row per SAE and logged step."""
        self.true_l0: dict[str, float] = {}
        """Features active per sample over the evaluation samples, by toy world."""
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
        images = [image for image in shown_images(self.folder) if image.png][:1]
        figure = "".join(f'<img src="{i.address}" style="max-width: 100%">' for i in images)
        return (
            f"<p><b>{escape(self._title())}</b><br>Claim: {escape(self.spec.claim)}</p>"
            f"<ul>{lines}</ul>{figure}{table}"
        )

    def _title(self) -> str:
        outcome, n_saes = self.verdict.outcome, len(self.spec.saes)
        return f"{self.spec.title}: {outcome} ({n_saes} SAEs, {self.folder.path})"

    @property
    def only_world(self) -> str:
        """The name of the world, where there is one."""
        (name,) = self.spec.worlds
        return name

    @property
    def only_l0(self) -> float:
        """The true L0 of the toy world, where there is one."""
        (true_l0,) = self.true_l0.values()
        return true_l0

    def world(self, name: str | None = None) -> ToyWorld:
        """A toy world of the run; the only one if left out."""
        path = self.folder.checked_world_path(name or self.only_world)
        return load_world(path, self.settings.device)

    def samples(
        self, name: str | None = None
    ) -> tuple[Float[Tensor, "samples d_in"], Float[Tensor, "samples n_features"]]:
        """The activations on which SAEs of a toy world are evaluated, and the features in them."""
        name = name or self.only_world
        seed = world_seed(self.settings.seed, "evaluation", name)
        return self.world(name).stream(self.spec.evaluation_samples, seed).draw()

    def trained(self, sae_id: str) -> sae_lens.TrainingSAE[Any]:
        """An SAE as it was trained; `saes` has it as it is used."""
        return self.folder.load_sae(sae_id, self.settings.device)

    def untrained(self, sae: SAESpec, world: ToyWorld) -> sae_lens.TrainingSAE[Any]:
        """An SAE as it was when its training began."""
        seed, device = self.settings.seed, self.settings.device
        batch_size = self.spec.training.train_batch_size_samples
        for_mean = world.stream(batch_size, world_seed(seed, "stream", sae.world))
        return make_spec_saes([sae], world.d_in, seed, device, world.model, for_mean)[0]


@dataclass(frozen=True)
class Analysis:
    """What is judged, drawn and measured once the SAEs of a spec are trained."""

    judge: Callable[[Run], Verdict]
    """Whether the claim was seen."""
    draw: Callable[[Run], Figures]

    measure: Callable[[Run], dict[str, MeasuredTable]] = lambda _: {}
    """Tables besides that of results, by name; `judge` and `draw` find them in the run."""
    check: Callable[[ExperimentSpec], None] = lambda _: None
    """Refuses a spec that this cannot be done with (ValueError), before anything is trained."""


def draw_curves(run: Run) -> Figures:
    """The training curves, with the true L0 where there is one."""
    true_l0 = run.only_l0 if len(run.true_l0) == 1 else None
    return {"training_curves": training_curves(run.curves, true_l0)}


def floats(table: pd.DataFrame, column: str) -> Float[np.ndarray, " rows"]:
    """A column as float64."""
    return table[column].to_numpy(dtype=np.float64)


def rank_correlation(xs: Float[np.ndarray, " n"], ys: Float[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation; NaN where one of the two is constant or not finite."""
    from scipy.stats import spearmanr

    if not np.isfinite([xs, ys]).all() or 0 in (np.ptp(xs), np.ptp(ys)):
        return math.nan
    return float(np.asarray(spearmanr(xs, ys))[0])
