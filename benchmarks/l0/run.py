"""Run the benchmark: every world through `find_l0`, a row each."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.l0.worlds import BenchmarkWorld, make
from sparse_but_wrong.l0.find import FindOptions, find_l0

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Row:
    """What one world gave."""

    world: str
    split: str
    architecture: str
    seed: int
    n_features: int
    d_in: int
    d_sae: int
    true_l0: float
    """NaN where there are no features."""

    recommended: float
    """NaN where nothing was recommended."""

    low: float
    high: float
    """Ends of the interval."""

    counted: float
    n_directions: int
    argmin_s_n: float
    """The L0 of the SAE with the smallest s_n^dec at n = d_sae / 2.5: a baseline."""

    argmin_c_dec: float
    """The L0 of the SAE with the smallest c_dec: a baseline."""

    seconds: float
    doubts: str

    @property
    def error(self) -> float:
        """Of the recommendation, as a share of the truth."""
        return self.recommended / self.true_l0 - 1

    def as_dict(self) -> dict[str, object]:
        """The row with what follows from it."""
        return {
            **asdict(self),
            "error": self.error,
            "covered": self.low <= self.true_l0 <= self.high,
            "error_argmin_s_n": self.argmin_s_n / self.true_l0 - 1,
            "error_argmin_c_dec": self.argmin_c_dec / self.true_l0 - 1,
        }

    def as_line(self) -> str:
        """The row for people."""
        if math.isnan(self.recommended):
            answer = f"nothing recommended (counted {self.counted:.2f})"
        else:
            answer = (
                f"{self.recommended:.2f}, {self.low:.2f} to {self.high:.2f}, "
                f"error {self.error:+.1%}"
            )
        truth = "no features" if math.isnan(self.true_l0) else f"true L0 {self.true_l0:.2f}"
        return f"{self.world}: {truth}; {answer}; {self.seconds:.0f} s"


def run_benchmark(
    worlds: Sequence[BenchmarkWorld], seed: int, options: FindOptions
) -> Iterator[Row]:
    """One row after the other.

    Args:
        worlds: which.
        seed: of streams and initial weights.
        options: their architecture and seed are replaced.
    """
    for entry in worlds:
        yield _run(entry, replace(options, seed=seed, architecture=entry.architecture))


def _run(entry: BenchmarkWorld, options: FindOptions) -> Row:
    made = make(entry, options.seed)
    started = time.monotonic()
    found = find_l0(made.source, entry.d_sae, options)
    seconds = time.monotonic() - started
    table = found.sweep.table
    # The baselines read the SAEs that anybody would have trained, all seeds and both sweeps.
    is_plain = table["group"].str.startswith("seed_").to_numpy()
    n = round(entry.d_sae / 2.5)
    # Of SAEs that are too narrow for all features it is asked how many are active: what they are to
    # have themselves is another question, that of the large worlds.
    answer = found.active if entry.d_sae < entry.world.n_features else found
    low, high = answer.interval or (math.nan, math.nan)
    return Row(
        world=entry.name,
        split=entry.split,
        architecture=entry.architecture,
        seed=options.seed,
        n_features=entry.world.n_features,
        d_in=entry.world.d_in,
        d_sae=entry.d_sae,
        true_l0=made.true_l0,
        recommended=math.nan if answer.l0 is None else answer.l0,
        low=low,
        high=high,
        counted=math.nan if found.counted is None else found.counted,
        n_directions=found.sweep.counts[0].presence.n_directions if found.sweep.counts else 0,
        argmin_s_n=_l0_at_smallest(table, is_plain, found.sweep.projections[n].to_numpy(float)),
        argmin_c_dec=_l0_at_smallest(table, is_plain, table["c_dec"].to_numpy(float)),
        seconds=seconds,
        doubts=" ".join(found.doubts),
    )


def _l0_at_smallest(table: pd.DataFrame, rows: np.ndarray, metric: np.ndarray) -> float:
    values = np.where(rows, metric, np.inf)
    return float(table["l0"].to_numpy(float)[np.nanargmin(values)])
