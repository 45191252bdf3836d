"""What was measured of SAEs, as records and as tables. H stands for d_sae.

Tables of SAEs hold scalars and s_n apart in memory, and s_n as columns s_0, s_1, … in a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
from jaxtyping import Float, Int

from sparse_but_wrong.loggers import Logger, log_metrics
from sparse_but_wrong.metrics.reconstruction import Reconstruction
from sparse_but_wrong.metrics.recovery import FeatureMatch
from sparse_but_wrong.shown import with_figure

if TYPE_CHECKING:
    import pandas as pd

DENSE = 0.1
"""A latent that is active on a larger share of the samples counts as dense."""

RECOVERY = ("mean_max_cosine", "mcc", "uniqueness", "f1", "precision", "recall")
"""Columns of a table that need the true features."""

_COLUMNS = (
    *("l0", "dead_latents", "shrinkage", "mse", "variance_explained", "c_dec", "c_enc", *RECOVERY),
    *("l0_standard_error", "l0_p05", "l0_median", "l0_p95", "dense_latents", "mse_standard_error"),
    *("variance_explained_standard_error", "d_sae", "n_samples", "n_batches"),
)
_SHOWN = ["l0", "dead_latents", "variance_explained", "shrinkage", "c_dec", "c_enc", "mcc", "f1"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Evaluation(Reconstruction):
    """All that was measured of one SAE. NaN where the SAE diverged or something is not known."""

    name: str
    n_samples: int
    n_batches: int
    d_sae: int

    l0: float
    """Active latents per sample, on average. Active means not zero."""
    l0_standard_error: float
    l0_counts: Int[np.ndarray, " numbers"]
    """How many samples had 0, 1, … H active latents."""
    densities: Float[np.ndarray, " H"]
    """The share of samples on which each latent was active."""
    dead_latents: int
    """Latents that were active on no sample. A rare latent looks dead on few samples."""
    dense_latents: int
    """Latents that were active on more than a tenth of the samples."""

    c_dec: float
    """Mean |cosine| over pairs of decoder rows."""
    c_enc: float
    """Mean |cosine| over pairs of encoder columns."""

    match: FeatureMatch | None
    """Latents assigned to true features; None where those were not given."""

    f1: float
    """Mean over latents of how well each tells where the feature nearest to it fires, as
    `sae_lens.synthetic` defines it: nearest by |cosine|, 0 for a latent that never fires with it.
    NaN where it is not known when features fire, as for `precision` and `recall`."""
    precision: float
    """Mean over latents: of the samples on which it is active, those on which its feature fires."""
    recall: float
    """Mean over latents: of the samples on which its feature fires, those on which it is active."""

    projections: Float[np.ndarray, " H"]
    """s_n^dec for n = 0 … H − 1, with unit-norm decoder rows, in the units of the activations."""
    projection_standard_errors: Float[np.ndarray, " H"]
    projection_relative_error: float
    """0 where projections were sorted; where they were counted, each s_n is within this share of
    itself of what sorting would give."""
    histogram_edges: Float[np.ndarray, " edges"]
    histogram_counts: Int[np.ndarray, " bars"]
    """Projections of samples on decoder rows between the edges; the outermost bars also hold what
    lies beyond."""

    @property
    def mcc(self) -> float:
        """Mean cosine of latents with the features they are matched to; NaN without these."""
        return math.nan if self.match is None else self.match.mcc

    @property
    def mean_max_cosine(self) -> float:
        """Mean over features of the best cosine with any latent; NaN without true features."""
        return math.nan if self.match is None else self.match.mean_max_cosine

    @property
    def uniqueness(self) -> float:
        """Different features that latents are nearest to, per latent; NaN without true features."""
        return math.nan if self.match is None else self.match.uniqueness

    def l0_quantile(self, share: float) -> int:
        """The smallest number of active latents that a share of the samples does not exceed."""
        return int(np.searchsorted(self.l0_counts.cumsum(), math.ceil(share * self.n_samples)))

    def to_row(self) -> dict[str, float | int]:
        """The scalars, as columns of a table; s_n^dec is in `projections`."""
        quantiles = {"l0_p05": 0.05, "l0_median": 0.5, "l0_p95": 0.95}
        return {
            name: self.l0_quantile(quantiles[name]) if name in quantiles else getattr(self, name)
            for name in _COLUMNS
        }

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name):.4g}" for name in _SHOWN)
        return f"Evaluation({shown}, d_sae={self.d_sae}, n_samples={self.n_samples:,})"

    def _repr_html_(self) -> str:
        return Evaluations([self])._repr_html_()


class Evaluations(Sequence[Evaluation]):
    """Evaluations of several SAEs on the same samples, by place or by name."""

    def __init__(
        self, evaluations: Iterable[Evaluation], failed: Mapping[str, Exception] | None = None
    ) -> None:
        self._evaluations = tuple(evaluations)
        self.failed = dict(failed or {})
        """Why an SAE could not be evaluated, by its name."""

    @property
    def names(self) -> tuple[str, ...]:
        """The SAEs' names, in order."""
        return tuple(evaluation.name for evaluation in self)

    @property
    def projections(self) -> pd.DataFrame:
        """s_n^dec: a row per SAE, a column per n; NaN where an SAE has fewer latents."""
        import pandas as pd

        values = np.full((len(self), max((e.d_sae for e in self), default=0)), np.nan)
        for row, evaluation in zip(values, self, strict=True):
            row[: evaluation.d_sae] = evaluation.projections
        return pd.DataFrame(values, index=pd.Index(self.names, name="sae"))

    def to_frame(self) -> pd.DataFrame:
        """The scalars: a row per SAE."""
        import pandas as pd

        rows = [evaluation.to_row() for evaluation in self]
        return pd.DataFrame(rows, index=pd.Index(self.names, name="sae"))

    def log_to(self, logger: Logger, step: int) -> None:
        """Hand what is known of the scalars, and s_n^dec for n = H/4, to a logger.

        They are called ``name/evaluation/metric``.

        Args:
            logger: as of `train_saes`.
            step: where they are entered; no earlier than what the logger has, for wandb.
        """
        metrics = {}
        for found in self:
            n = found.d_sae // 4
            of_sae = {**found.to_row(), f"s_{n}": float(found.projections[n])}
            metrics |= {f"{found.name}/evaluation/{k}": v for k, v in of_sae.items() if v == v}
        log_metrics(logger, metrics, step)

    @overload
    def __getitem__(self, at: int | str) -> Evaluation: ...
    @overload
    def __getitem__(self, at: slice) -> Evaluations: ...
    def __getitem__(self, at: int | str | slice) -> Evaluation | Evaluations:
        if isinstance(at, slice):
            return Evaluations(self._evaluations[at], self.failed)
        return self._evaluations[self.names.index(at) if isinstance(at, str) else at]

    def __len__(self) -> int:
        return len(self._evaluations)

    def __repr__(self) -> str:
        return self._shown().to_string()

    def _repr_html_(self) -> str:
        table = self._shown().to_html() if len(self) else ""
        return with_figure(table, "distributions:plot_evaluations", self)

    def _shown(self) -> pd.DataFrame:
        """What is shown of each SAE; how well it recovers features only where those are known."""
        table = self.to_frame().filter(_SHOWN).round(4)
        unknown = [name for name in ("mcc", "f1") if np.isnan(table[name].to_numpy(float)).all()]
        return table.drop(columns=unknown)


def join_projections(table: pd.DataFrame, projections: pd.DataFrame) -> pd.DataFrame:
    """The form for files, of tables of the same rows."""
    return table.join(projections.add_prefix("s_"))


def split_projections(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The scalars of a table in the form for files, and s_n by n."""
    found = table.filter(regex=r"^s_\d+$")
    projections = found.astype(float).rename(columns=lambda name: int(name[2:]))
    return table.drop(columns=found.columns), projections.sort_index(axis=1)
