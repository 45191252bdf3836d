"""Public functions whose results draw and save themselves; they stand above every room."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_but_wrong import atomic
from sparse_but_wrong.l0 import find, recommend as rule
from sparse_but_wrong.l0.options import FindOptions
from sparse_but_wrong.l0.recommend import L0Recommendation
from sparse_but_wrong.l0.source import Activations
from sparse_but_wrong.l0.sweep import EvaluatedSweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class FoundL0(L0Recommendation):
    """A recommendation that draws and saves itself."""

    def plot(self) -> Figure:
        """s_n^dec and c_dec over the sweep's L0 with the interval, and the codes counted."""
        from sparse_but_wrong.figures.recommendation import plot_recommendation

        return plot_recommendation(self)

    def save(self, out: str | Path, title: str = "Activations") -> Path:
        """Write `recommendation.json`, `sweep.csv`, the figure, the SAE and a page of all of it.

        Args:
            out: a folder that is empty or does not exist.
            title: of the page.
        Returns:
            The path of the page.
        Raises:
            OSError: the folder holds something, or cannot be written to.
        """
        from sparse_but_wrong.report.recommendation import write_recommendation

        with atomic.claimed(Path(out)) as place:
            facts = {"d_sae": self.sweep.d_sae, "SAEs": len(self.sweep.table)}
            page = write_recommendation(self, place, title, facts, with_sae=True)
        return Path(out) / page.name


def find_l0(
    activations: Activations,
    d_sae: int | None = None,
    options: FindOptions | None = None,
    *,
    column: str | None = None,
) -> FoundL0:
    return _found(find.find_l0(activations, d_sae, options, column=column))


def recommend_l0(sweep: EvaluatedSweep) -> FoundL0:
    return _found(rule.recommend_l0(sweep))


find_l0.__doc__, recommend_l0.__doc__ = find.find_l0.__doc__, rule.recommend_l0.__doc__


def _found(given: L0Recommendation) -> FoundL0:
    return FoundL0(**{f.name: getattr(given, f.name) for f in fields(given)})
