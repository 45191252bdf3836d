"""What the benchmark's rows come to, against what is aimed at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Metric:
    """A metric of the summary and its target."""

    name: str
    value: float | int
    target: float | None
    """None where nothing is aimed at."""

    at_most: bool = True
    """Whether the target is an upper bound."""

    share: bool = True
    """Whether it is a share, shown in per cent."""

    @property
    def is_met(self) -> bool | None:
        """None where nothing is aimed at or there is nothing to judge."""
        if self.target is None or math.isnan(self.value):
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


def summarize(table: pd.DataFrame) -> list[Metric]:
    """The metrics over all rows.

    SAEs with at least as many latents as the world has features are judged by their errors, over
    worlds where something is recommended, except that the others do not count as within 5 %; of
    narrower ones it is asked that nothing is recommended, or that the interval holds the truth;
    where there are no features, that nothing is. The truth is always the number of the world's
    features active per sample: what an SAE that is wide enough has to reach.

    Args:
        table: rows as `Row.as_dict` gives them.
    """
    featureless = (table["n_features"] == 0).to_numpy(bool)
    narrow = (table["d_sae"] < table["n_features"]).to_numpy(bool)
    wide = ~featureless & ~narrow
    error = np.abs(table["error"].to_numpy(float))
    given = np.isfinite(table["recommended"].to_numpy(float))
    judged = wide & given
    covered = table["covered"].to_numpy(bool)
    half = (table["high"] - table["low"]).to_numpy(float) / (
        2 * table["recommended"].to_numpy(float)
    )
    s_n, c_dec = (
        np.abs(table[name].to_numpy(float))[wide]
        for name in ("error_argmin_s_n", "error_argmin_c_dec")
    )
    return [
        Metric("worlds with d_sae ≥ features", int(wide.sum()), None, share=False),
        Metric("median error", _median(error[judged]), 0.015),
        Metric("within 5 %", _share((error < 0.05)[wide]), 0.90, at_most=False),
        Metric("interval holds the truth", _share(covered[judged]), 0.90, at_most=False),
        Metric("median half-width", _median(half[judged]), 0.06),
        Metric("nothing recommended", _share(~given[wide]), 0.10),
        Metric("median error, argmin of s_n at n = d_sae / 2.5", _median(s_n), None),
        Metric("within 5 %, argmin of s_n at n = d_sae / 2.5", _share(s_n < 0.05), None),
        Metric("median error, argmin of c_dec", _median(c_dec), None),
        Metric("within 5 %, argmin of c_dec", _share(c_dec < 0.05), None),
        Metric("worlds with d_sae < features", int(narrow.sum()), None, share=False),
        Metric(
            "nothing recommended, or the interval holds the truth",
            _share((~given | covered)[narrow]),
            0.90,
            at_most=False,
        ),
        Metric("worlds without features", int(featureless.sum()), None, share=False),
        Metric("nothing recommended there", _share(~given[featureless]), 0.90, at_most=False),
        Metric("hours", float(table["seconds"].to_numpy(float).sum()) / 3600, 2.0, share=False),
    ]


def in_lines(metrics: list[Metric]) -> list[str]:
    """The summary for people."""
    lines = []
    for metric in metrics:
        value = f"{metric.value:.1%}" if metric.share else f"{metric.value:.3g}"
        aim = ""
        if metric.target is not None:
            bound = "≤" if metric.at_most else "≥"
            target = f"{metric.target:.1%}" if metric.share else f"{metric.target:g}"
            met = {True: "met", False: "missed", None: "not judged"}[metric.is_met]
            aim = f" (aim {bound} {target}: {met})"
        lines.append(f"{metric.name}: {value}{aim}")
    return lines


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _share(which: np.ndarray) -> float:
    return float(np.mean(which)) if len(which) else math.nan
